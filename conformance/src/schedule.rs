//! Schedules in f64, written from their documentation, and a list of cases.

use std::f64::consts::PI;

use wgpu_optim::{DecayShape, Schedule};

/// Returns the factor at step `t`.
pub fn factor_at(schedule: &Schedule, t: u32) -> f64 {
    let warmup = warmup_of(schedule);
    if t < warmup {
        return match *schedule {
            Schedule::OneCycle { rise, first, .. } => {
                toward(first.into(), 1.0, (1.0 - (PI * f64::from(t) / f64::from(rise)).cos()) / 2.0)
            }
            _ => (f64::from(t) + 1.0) / f64::from(warmup),
        }
        .max(1e-6);
    }
    // Completed fraction of a fall from one step to another.
    let done = |from: u32, to: u32| (f64::from(t - from) / f64::from(to - from)).min(1.0);
    let cosine = |x: f64| (1.0 + (PI * x).cos()) / 2.0;
    let factor = match *schedule {
        Schedule::WarmupCosine { steps, last, .. } | Schedule::OneCycle { steps, last, .. } => {
            toward(last.into(), 1.0, cosine(done(warmup, steps)))
        }
        Schedule::Linear { steps, last, .. } => toward(last.into(), 1.0, 1.0 - done(warmup, steps)),
        Schedule::Polynomial { steps, power, last, .. } => {
            toward(last.into(), 1.0, (1.0 - done(warmup, steps)).powf(power.into()))
        }
        Schedule::Exponential { every, factor, .. } => f64::from(factor).powf(f64::from(t - warmup) / f64::from(every)),
        Schedule::CosineRestarts { period, growth, last, .. } => {
            let (mut start, mut length) = (u64::from(warmup), u64::from(period));
            let t = u64::from(t);
            if growth == 1 {
                start += (t - start) / length * length;
            }
            while t >= start + length {
                start += length;
                length *= u64::from(growth);
            }
            toward(last.into(), 1.0, cosine((t - start) as f64 / length as f64))
        }
        Schedule::WarmupStableDecay { steps, decay, .. } if t < steps - decay => 1.0,
        Schedule::WarmupStableDecay { steps, decay, last, shape, .. } => {
            let x = done(steps - decay, steps);
            let left = match shape {
                DecayShape::Linear => 1.0 - x,
                DecayShape::Cosine => cosine(x),
                _ => 1.0 - x.sqrt(),
            };
            toward(last.into(), 1.0, left)
        }
        Schedule::InverseSqrt { warmup } => (f64::from(warmup) / (f64::from(t) + 1.0)).sqrt(),
        Schedule::Step { every, factor } => f64::from(factor).powf((t / every).into()),
        Schedule::Table { ref factors, every } => {
            let at = (t / every) as usize;
            match factors.get(at..at + 2) {
                Some(pair) => toward(pair[0].into(), pair[1].into(), f64::from(t % every) / f64::from(every)),
                None => factors[factors.len() - 1].into(),
            }
        }
        _ => 1.0,
    };
    // `Step` and `Exponential` schedules may rise, up to e^20.
    factor.clamp(1e-6, 20.0_f64.exp())
}

fn toward(from: f64, to: f64, share: f64) -> f64 {
    from + (to - from) * share
}

fn warmup_of(schedule: &Schedule) -> u32 {
    match *schedule {
        Schedule::WarmupConstant { warmup }
        | Schedule::WarmupCosine { warmup, .. }
        | Schedule::Linear { warmup, .. }
        | Schedule::Polynomial { warmup, .. }
        | Schedule::Exponential { warmup, .. }
        | Schedule::CosineRestarts { warmup, .. }
        | Schedule::WarmupStableDecay { warmup, .. }
        | Schedule::InverseSqrt { warmup }
        | Schedule::OneCycle { rise: warmup, .. } => warmup,
        _ => 0,
    }
}

/// Returns schedules of every kind for a run of this many steps, at least 6, with and without a warm-up.
pub fn schedules(steps: u32) -> Vec<Schedule> {
    let (warmup, half) = (steps / 3, steps / 2);
    let wsd = |shape| Schedule::WarmupStableDecay { warmup, steps, decay: half, last: 0.05, shape };
    let mut all = Schedule::all(steps);
    all.extend([
        Schedule::WarmupCosine { warmup, steps, last: 0.1 },
        Schedule::Linear { warmup, steps, last: 0.1 },
        Schedule::Polynomial { warmup, steps, power: 0.5, last: 0.01 },
        Schedule::Exponential { warmup, every: 1, factor: 0.9 },
        Schedule::CosineRestarts { warmup: 2, period: 3, growth: 1, last: 0.1 },
        Schedule::CosineRestarts { warmup: 1, period: 1, growth: 3, last: 0.0 },
        wsd(DecayShape::OneMinusSqrt),
        wsd(DecayShape::Linear),
        wsd(DecayShape::Cosine),
        Schedule::InverseSqrt { warmup },
        Schedule::Step { every: 2, factor: 0.5 },
        Schedule::OneCycle { rise: warmup, steps, first: 0.04, last: 0.01 },
        Schedule::Table { factors: [0.1, 1.0, 0.5, 0.7].into(), every: 2 },
        Schedule::Table { factors: [0.5, 0.0, 2.0].into(), every: 1 },
    ]);
    all
}
