//! The right answer, in f64, written from the specification and not from the shaders: one parameter group, one step at a time.
#![allow(dead_code, reason = "each test file uses its own part")]

use wgpu_optim::{Averaging, Regime, Rule, Schedule, SecantForm, StepMode, WeightDecay};

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
    mean_norm: f64,
    /// Of the next step, for regimes that go by it.
    pub loss: f64,
    pub schedule: Schedule,
    w_0: Vec<f64>,
    last_seen: Vec<f64>,
    last_direction: Vec<f64>,
    history: f64,
    farthest: f64,
    last_growth: f64,
    taken: u32,
    pub averaging: Averaging,
    /// The average of the parameters, once it has started.
    pub average: Option<Vec<f64>>,
    /// η of the last step that was not skipped, with the schedule.
    last_rate: Option<f64>,
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
            mean_norm: 0.0,
            loss: 1.0,
            schedule: Schedule::Constant,
            w_0: w.clone(),
            last_seen: Vec::new(),
            last_direction: Vec::new(),
            history: 0.0,
            farthest: 0.0,
            last_growth: f64::INFINITY,
            taken: 0,
            averaging: Averaging::Off,
            average: None,
            last_rate: None,
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
        // A lagged step takes what the one before left, and the first the given rate with the schedule's first factor.
        let rate_before = self.last_rate.unwrap_or_else(|| match mode {
            StepMode::Lagged => self.rate() * self.schedule_factor(),
            _ => self.rate(),
        });
        let sign_of_climb = if self.maximize { -1.0 } else { 1.0 };
        let coupled = f64::from(self.decay.coupled());
        let raw: Vec<f64> = raw.iter().map(|&g| sign_of_climb * f64::from(g)).collect();
        let seen: Vec<f64> = raw
            .iter()
            .zip(&self.w)
            .map(|(g, w)| g + coupled * w)
            .collect();
        let mut out = Outcome::default();
        if seen.iter().any(|g| !g.is_finite()) || !self.loss.is_finite() {
            out.skipped = true;
            out.rate = rate_before;
            return out;
        }
        out.norm = norm(&seen);
        if out.norm == 0.0 {
            out.zero = true;
        } else {
            self.change_rate(&seen, &mut out);
        }
        out.rate = self.rate() * self.schedule_factor();
        self.last_rate = Some(out.rate);
        self.taken += 1;
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
        self.last_seen = seen;
        self.last_direction = direction.clone();
        let shrink = 1.0 - rate * f64::from(self.decay.decoupled());
        for (w, u) in self.w.iter_mut().zip(&direction) {
            *w = shrink * *w - rate * u;
        }
        self.average_iterate();
        out
    }

    /// Takes the iterate of the step just taken into the average, as the papers have it.
    fn average_iterate(&mut self) {
        let (start, weight): (u32, &dyn Fn(f64) -> f64) = match self.averaging {
            Averaging::Running { start } => (start, &|k| 1.0 / k),
            Averaging::Exponential { decay, start } => (start, &move |_| 1.0 - f64::from(decay)),
            Averaging::PolynomialDecay { eta, start } => {
                let eta = f64::from(eta);
                (start, &move |k| (1.0 + eta) / (k + eta))
            }
            _ => return,
        };
        if self.taken <= start {
            return;
        }
        self.average = Some(match self.average.take() {
            None => self.w.clone(),
            Some(average) => {
                let a = weight(f64::from(self.taken - start));
                let pairs = average.iter().zip(&self.w);
                pairs
                    .map(|(average, w)| (1.0 - a) * average + a * w)
                    .collect()
            }
        });
    }

    fn change_rate(&mut self, g: &[f64], out: &mut Outcome) {
        let n = out.norm;
        let beta = f64::from(self.regime.smoothing());
        self.k += 1;
        let started = self.k > 1;
        self.mean_square = beta * self.mean_square + (1.0 - beta) * n * n;
        // Over fewer steps than the mean's longest memory.
        self.mean_norm += (n - self.mean_norm) / f64::from(self.k);
        let smoothed = (self.mean_square / (1.0 - beta.powi(self.k)))
            .sqrt()
            .max(n)
            .max(f64::from(self.regime.norm_floor()) * self.mean_norm);
        let last = std::mem::replace(&mut self.smoothed, smoothed);
        if !started {
            out.first = true;
            if let Some(rate) = self.formula(g, n, true) {
                self.ln_rate = Some(rate.clamp(1e-30, 1e30).ln());
                return;
            }
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
        if let Some(wanted) = self.formula(g, n, false) {
            let before = self.ln_rate.expect("started");
            let most = match self.regime {
                Regime::BarzilaiBorwein(secant) => f64::from(secant.max_change).ln(),
                _ => std::f64::consts::LN_10,
            };
            let change = (wanted.ln() - before).clamp(-most, most);
            let limit = match self.regime {
                Regime::Polyak(polyak) => f64::from(polyak.max_rate.min(1e30)).ln(),
                _ => 1e30_f64.ln(),
            };
            let after = (before + change).min(limit).max(-(1e30_f64.ln()));
            self.last_growth = (after - before).exp();
            self.ln_rate = Some(after);
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

    /// The rate of regimes that say what it is; `None` for those that say how it changes, and for a first step by its length.
    fn formula(&mut self, g: &[f64], n: f64, first: bool) -> Option<f64> {
        let d = g.len() as f64;
        let signs = self.rule.is_sign();
        let square = if signs { d } else { n * n };
        let to_signs = if signs { n / d.sqrt() } else { 1.0 };
        match self.regime {
            Regime::AdaGradNorm(regime) => {
                if first {
                    self.history = f64::from(regime.offset).powi(2);
                }
                self.history += square;
                Some(f64::from(regime.scale) / self.history.sqrt())
            }
            Regime::DoG(_) | Regime::DoWG(_) => {
                if first {
                    self.farthest = f64::from(self.regime.first_step()) * (1.0 + self.w0_norm);
                }
                let way: Vec<f64> = self.w.iter().zip(&self.w_0).map(|(a, b)| a - b).collect();
                self.farthest = self.farthest.max(norm(&way));
                let weight = match self.regime {
                    Regime::DoWG(_) => self.farthest.powi(2),
                    _ => 1.0,
                };
                self.history += weight * square;
                let reached = match self.regime {
                    Regime::DoWG(_) => self.farthest.powi(2),
                    _ => self.farthest,
                };
                Some(reached / self.history.sqrt())
            }
            Regime::Polyak(regime) => {
                let excess = (self.loss - f64::from(regime.optimum)).max(0.0);
                let least = if first { 1e-30 } else { 0.0 };
                Some((excess / (f64::from(regime.factor) * n * n) * to_signs).max(least))
            }
            Regime::Ngn(regime) => {
                let sigma = f64::from(regime.rate);
                if self.loss <= 0.0 {
                    return Some(0.0);
                }
                Some(sigma / (1.0 + sigma * n * n / (2.0 * self.loss)) * to_signs)
            }
            Regime::BarzilaiBorwein(_) | Regime::AdGd(_) if !first => {
                let eta = self.rate();
                let y: Vec<f64> = g.iter().zip(&self.last_seen).map(|(a, b)| a - b).collect();
                let s: Vec<f64> = self.last_direction.iter().map(|u| -eta * u).collect();
                let (ss, sy, yy) = (dot(&s, &s), dot(&s, &y), dot(&y, &y));
                let wanted = match self.regime {
                    Regime::BarzilaiBorwein(regime) => match regime.form {
                        SecantForm::Long | SecantForm::Short if sy <= 0.0 || yy == 0.0 => {
                            return Some(eta);
                        }
                        SecantForm::Long => ss / sy,
                        SecantForm::Short => sy / yy,
                        SecantForm::Geometric => (ss / yy).sqrt(),
                    },
                    _ => {
                        let secant = (ss / yy).sqrt() / 2.0 * to_signs;
                        return Some(secant.min((1.0 + self.last_growth).sqrt() * eta));
                    }
                };
                Some(wanted * to_signs)
            }
            _ => None,
        }
    }

    fn schedule_factor(&self) -> f64 {
        let t = f64::from(self.taken);
        let half_cosine = |from: f64, to: f64, x: f64| {
            to + (from - to) * (1.0 + (std::f64::consts::PI * x.min(1.0)).cos()) / 2.0
        };
        let share = |start: u32, end: u32| (t - f64::from(start)) / f64::from(end - start);
        let factor: f64 = match self.schedule {
            Schedule::WarmupCosine { warmup, .. } | Schedule::InverseSqrt { warmup }
                if self.taken < warmup =>
            {
                (t + 1.0) / f64::from(warmup)
            }
            Schedule::WarmupCosine {
                warmup,
                steps,
                last,
            } => half_cosine(1.0, f64::from(last), share(warmup, steps)),
            Schedule::InverseSqrt { warmup } => (f64::from(warmup) / (t + 1.0)).sqrt(),
            Schedule::Step { every, factor } => f64::from(factor).powi((self.taken / every) as i32),
            Schedule::OneCycle { rise, first, .. } if self.taken < rise => {
                half_cosine(f64::from(first), 1.0, share(0, rise))
            }
            Schedule::OneCycle {
                rise, steps, last, ..
            } => half_cosine(1.0, f64::from(last), share(rise, steps)),
            _ => 1.0,
        };
        factor.max(1e-6)
    }
}
