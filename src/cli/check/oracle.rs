//! The right answer, in f64, written from the specification and not from the shaders: one parameter group, one step at a time.
#![allow(dead_code, reason = "each test file uses its own part")]

use wgpu_optim::{Regime, Rule, StepMode, WeightDecay};

/// One group in f64.
pub struct Oracle {
    pub rule: Rule,
    pub regime: Regime,
    pub decay: WeightDecay,
    pub clip: f64,
    pub maximize: bool,
    pub w: Vec<f64>,
    m: Option<Vec<f64>>,
    q: Vec<f64>,
    last_sign: Vec<f64>,
    w0_norm: f64,
    mean_square: f64,
    k: i32,
    pub smoothed: f64,
    pub ln_rate: Option<f64>,
}

/// What a step of the oracle did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    pub skipped: bool,
    pub zero: bool,
    pub first: bool,
    pub norm: f64,
    pub slow: f64,
    pub fast: f64,
    pub norm_term: f64,
    pub alignment_term: f64,
    pub brake_term: f64,
    pub clamp_term: f64,
    pub rate: f64,
}

fn norm(x: &[f64]) -> f64 {
    // Scaled, so that 1e30 and 1e-38 square to something.
    let largest = x.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    if largest == 0.0 {
        return 0.0;
    }
    largest * x.iter().map(|x| (x / largest).powi(2)).sum::<f64>().sqrt()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn sign(x: f64) -> f64 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        0.0
    }
}

impl Oracle {
    pub fn new(rule: Rule, regime: Regime, w: &[f32]) -> Self {
        let w: Vec<f64> = w.iter().map(|&x| f64::from(x)).collect();
        Oracle {
            rule,
            regime,
            decay: WeightDecay::Coupled(0.0),
            clip: f64::INFINITY,
            maximize: false,
            m: None,
            q: vec![0.0; w.len()],
            last_sign: vec![0.0; w.len()],
            w0_norm: norm(&w),
            mean_square: 0.0,
            k: 0,
            smoothed: 0.0,
            ln_rate: regime.initial_rate().map(|rate| f64::from(rate).ln()),
            w,
        }
    }

    pub fn rate(&self) -> f64 {
        self.ln_rate.map_or(0.0, f64::exp)
    }

    pub fn step(&mut self, raw: &[f32]) -> Outcome {
        self.step_in(StepMode::TwoPass, raw)
    }

    /// With `Lagged` the step takes the rate that held before it.
    pub fn step_in(&mut self, mode: StepMode, raw: &[f32]) -> Outcome {
        let rate_before = self.rate();
        let sign_of_climb = if self.maximize { -1.0 } else { 1.0 };
        let coupled = f64::from(self.decay.coupled());
        let raw: Vec<f64> = raw.iter().map(|&g| sign_of_climb * f64::from(g)).collect();
        let seen: Vec<f64> = raw
            .iter()
            .zip(&self.w)
            .map(|(g, w)| g + coupled * w)
            .collect();
        let mut out = Outcome::default();
        if seen.iter().any(|g| !g.is_finite()) {
            out.skipped = true;
            out.rate = self.rate();
            return out;
        }
        out.norm = norm(&seen);
        if out.norm == 0.0 {
            out.zero = true;
        } else {
            self.change_rate(&seen, &mut out);
        }
        out.rate = self.rate();
        let rate = match mode {
            StepMode::Lagged => rate_before,
            _ => out.rate,
        };

        let raw_norm = norm(&raw);
        let factor = if raw_norm > self.clip {
            self.clip / raw_norm
        } else {
            1.0
        };
        let g: Vec<f64> = raw
            .iter()
            .zip(&self.w)
            .map(|(g, w)| factor * g + coupled * w)
            .collect();
        let direction: Vec<f64> = match self.rule {
            Rule::Sgd => g.clone(),
            Rule::SignSgd => g.iter().map(|&g| sign(g)).collect(),
            Rule::Sgdm {
                momentum,
                dampening,
                nesterov,
            } => {
                let (mu, share) = (f64::from(momentum), 1.0 - f64::from(dampening));
                let m: Vec<f64> = match self.m.take() {
                    None => g.clone(),
                    Some(m) => m.iter().zip(&g).map(|(m, g)| mu * m + share * g).collect(),
                };
                let u = if nesterov {
                    g.iter().zip(&m).map(|(g, m)| g + mu * m).collect()
                } else {
                    m.clone()
                };
                self.m = Some(m);
                u
            }
            Rule::Signum { momentum } => {
                let beta = f64::from(momentum);
                let m = self.m.take().unwrap_or_else(|| vec![0.0; g.len()]);
                let m: Vec<f64> = m
                    .iter()
                    .zip(&g)
                    .map(|(m, g)| beta * m + (1.0 - beta) * g)
                    .collect();
                let u = m.iter().map(|&m| sign(m)).collect();
                self.m = Some(m);
                u
            }
            _ => unreachable!("the oracle knows every rule"),
        };
        for ((q, last), g) in self.q.iter_mut().zip(&mut self.last_sign).zip(&g) {
            *q = (*q + sign(*g)).clamp(-7.0, 7.0);
            *last = sign(*g);
        }
        let shrink = 1.0 - rate * f64::from(self.decay.decoupled());
        for (w, u) in self.w.iter_mut().zip(&direction) {
            *w = shrink * *w - rate * u;
        }
        out
    }

    fn change_rate(&mut self, g: &[f64], out: &mut Outcome) {
        let n = out.norm;
        let beta = f64::from(self.regime.smoothing());
        self.k += 1;
        let started = self.k > 1;
        self.mean_square = beta * self.mean_square + (1.0 - beta) * n * n;
        let smoothed = (self.mean_square / (1.0 - beta.powi(self.k))).sqrt().max(n);
        let last = std::mem::replace(&mut self.smoothed, smoothed);
        if !started {
            out.first = true;
            let length = f64::from(self.regime.first_step()) * (1.0 + self.w0_norm);
            let direction = if self.rule.is_sign() {
                (g.len() as f64).sqrt()
            } else {
                n
            };
            self.ln_rate
                .get_or_insert((length / direction).clamp(1e-30, 1e30).ln());
            return;
        }
        out.norm_term = f64::from(self.regime.exponent()) * (last / smoothed).ln();
        let cosine = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        let mut brake = 0.0;
        if self.rule.has_momentum() {
            if let Some(m) = &self.m {
                out.slow = cosine(dot(g, m), n * norm(m));
            }
        } else {
            out.slow = cosine(dot(g, &self.q), n * norm(&self.q));
            out.fast = cosine(
                dot(g, &self.last_sign),
                g.iter().map(|g| g.abs()).sum::<f64>(),
            );
            brake = (out.fast + f64::from(self.regime.brake_slack())).min(0.0);
        }
        let weight = f64::from(self.regime.gain()) * n / smoothed;
        out.alignment_term = weight * out.slow;
        out.brake_term = weight * brake;
        let wanted = out.norm_term + out.alignment_term + out.brake_term;
        let change = wanted.clamp(-std::f64::consts::LN_10, std::f64::consts::LN_10);
        let before = self.ln_rate.expect("started");
        let limit = 1e30_f64.ln();
        let after = (before + change).clamp(-limit, limit);
        out.clamp_term = after - before - wanted;
        self.ln_rate = Some(after);
    }
}
