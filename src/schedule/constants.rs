//! Numbers with which the learning-rate pass evaluates a schedule.

use super::{DecayShape, Schedule};
use crate::layout::{GroupConstants, schedule_kinds};

/// Schedule as the constants that [`GroupConstants`] documents.
struct Constants {
    kind: u32,
    rise: u32,
    steps: u32,
    fall: u32,
    first: f32,
    last: f32,
}

impl Constants {
    /// Returns a warm-up followed by this kind over the remaining steps.
    fn after(kind: u32, warmup: u32, steps: u32, first: f32, last: f32) -> Self {
        Constants { kind, rise: warmup, steps, fall: steps - warmup, first, last }
    }

    /// Returns a warm-up followed by falls by a factor of e^ln.
    fn falls(warmup: u32, every: u32, ln: f64) -> Self {
        let (first, last) = split(ln);
        Constants { kind: schedule_kinds::STEP, rise: warmup, steps: every, fall: 0, first, last }
    }
}

/// Splits a number into one of 8 bits, whose product with an integer below 2^16 is exact, and the remainder.
fn split(x: f64) -> (f32, f32) {
    let upper = f32::from_bits(((x as f32).to_bits() + 0x8000) & 0xffff_0000);
    (upper, (x - f64::from(upper)) as f32)
}

impl Schedule {
    /// Writes the schedule into a group's constants for the learning-rate pass. The schedule must be valid. A table
    /// begins at factor 0.
    pub(crate) fn write_to(&self, group: &mut GroupConstants) {
        let constants = self.constants();
        group.schedule = constants.kind;
        group.schedule_rise = constants.rise;
        group.schedule_steps = constants.steps;
        group.schedule_fall = constants.fall;
        group.schedule_first = constants.first;
        group.schedule_last = constants.last;
    }

    fn constants(&self) -> Constants {
        use schedule_kinds as kinds;
        let of = Constants::after;
        match *self {
            Schedule::Constant => of(kinds::CONSTANT, 0, 0, 1.0, 1.0),
            Schedule::WarmupConstant { warmup } => of(kinds::LEVEL, warmup, warmup, 1.0, 1.0),
            Schedule::WarmupCosine { warmup, steps, last } => of(kinds::COSINE, warmup, steps, 1.0, last),
            Schedule::Linear { warmup, steps, last } => of(kinds::POLYNOMIAL, warmup, steps, 1.0, last),
            Schedule::Polynomial { warmup, steps, power, last } => of(kinds::POLYNOMIAL, warmup, steps, power, last),
            Schedule::Exponential { warmup, every, factor } => {
                Constants::falls(warmup, 1, f64::from(factor).ln() / f64::from(every))
            }
            Schedule::CosineRestarts { warmup, period, growth, last } => {
                Constants { kind: kinds::RESTARTS, rise: warmup, steps: period, fall: growth, first: 1.0, last }
            }
            Schedule::WarmupStableDecay { warmup, steps, decay, last, shape } => {
                let kind = match shape {
                    DecayShape::OneMinusSqrt => kinds::ONE_MINUS_SQRT,
                    DecayShape::Linear => kinds::POLYNOMIAL,
                    DecayShape::Cosine => kinds::COSINE,
                };
                Constants { fall: decay, ..of(kind, warmup, steps, 1.0, last) }
            }
            Schedule::InverseSqrt { warmup } => of(kinds::INVERSE_SQRT, warmup, warmup, 1.0, 1.0),
            Schedule::Step { every, factor } => Constants::falls(0, every, f64::from(factor).ln()),
            Schedule::OneCycle { rise, steps, first, last } => of(kinds::ONE_CYCLE, rise, steps, first, last),
            Schedule::Table { ref factors, every } => Constants {
                kind: kinds::TABLE,
                rise: 0,
                steps: every,
                fall: factors.len() as u32,
                first: 1.0,
                last: 1.0,
            },
        }
    }
}
