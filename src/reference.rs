//! The optimizer's formulas in f64, for the conformance suite. Each file in `rule` and `regime` has a formula of its
//! own, written from the paper and not from the code beside it. Nothing else in the crate uses them.

/// Memory of a rule in f64.
#[derive(Debug, Clone, Default)]
pub struct Moments {
    /// m, or `None` before the first step.
    pub m: Option<Vec<f64>>,
    /// v, or `None` before the first step.
    pub v: Option<Vec<f64>>,
    /// Largest v so far for rules that keep it, or `None` before the first step.
    pub largest_v: Option<Vec<f64>>,
}

/// Inputs of a rule's step.
pub struct RuleStep<'a> {
    /// The gradient after clip and coupled decay.
    pub g: &'a [f64],
    /// Number of steps that were not skipped, including this one.
    pub k: f64,
    /// The rule's memory, which the step changes.
    pub moments: &'a mut Moments,
    /// True for devices that flush denormal f32 numbers in memory to zero.
    pub flushes: bool,
    /// Dimensions of each tensor.
    pub shapes: &'a [Vec<usize>],
}

impl RuleStep<'_> {
    /// Returns a number as the device stores it, with denormal numbers flushed if `flushes` is true.
    pub fn flush(&self, x: f64) -> f64 {
        if self.flushes && x.abs() < f64::from(f32::MIN_POSITIVE) { 0.0 } else { x }
    }

    /// Computes `keep · old + share · new` as the device stores it.
    pub fn mix(&self, keep: f64, old: f64, share: f64, new: f64) -> f64 {
        self.flush(self.flush(keep * old) + self.flush(share * new))
    }

    /// Computes `m ← keep · m + share · g`, starting from zero. Returns the new and the previous m.
    pub fn next_momentum(&mut self, keep: f64, share: f64) -> (Vec<f64>, Vec<f64>) {
        let last = self.moments.m.take().unwrap_or_else(|| vec![0.0; self.g.len()]);
        let next: Vec<f64> = last.iter().zip(self.g).map(|(&m, &g)| self.mix(keep, m, share, g)).collect();
        self.moments.m = Some(next.clone());
        (last, next)
    }

    /// Computes `v ← keep · v + share · g²`, starting from zero.
    pub fn next_squares(&mut self, keep: f64, share: f64) -> Vec<f64> {
        let last = self.moments.v.take().unwrap_or_else(|| vec![0.0; self.g.len()]);
        let square = |g: f64| self.flush(g * g);
        let next: Vec<f64> = last.iter().zip(self.g).map(|(&v, &g)| self.mix(keep, v, share, square(g))).collect();
        self.moments.v = Some(next.clone());
        next
    }
}

/// Inputs of a regime in a step whose gradient is finite and not zero.
pub struct RegimeStep<'a> {
    /// The gradient with coupled decay, before the clip.
    pub g: &'a [f64],
    /// Norm n of the gradient.
    pub norm: f64,
    /// Smoothed norm n̂.
    pub smoothed: f64,
    /// n̂ of the previous step.
    pub last_smoothed: f64,
    /// True for the first such step.
    pub first: bool,
    /// Number of such steps, including this one.
    pub k: f64,
    /// Loss of the step.
    pub loss: f64,
    /// η of the previous step without schedule and trust ratio, or 0 if there is none.
    pub rate: f64,
    /// Parameters before the step.
    pub w: &'a [f64],
    /// z of schedule-free training. Otherwise, and before the first step, the parameters.
    pub base: &'a [f64],
    /// Parameters before the first step.
    pub first_w: &'a [f64],
    /// Gradient of the previous step.
    pub last_g: &'a [f64],
    /// Direction of the previous step.
    pub last_direction: &'a [f64],
    /// ε (1 + ‖w₀‖), the length of the first step.
    pub first_length: f64,
    /// True if the direction does not shrink with the gradient.
    pub scale_free: bool,
    /// Length of the direction that regimes assume if it does not shrink with the gradient.
    pub direction_length: f64,
    /// Rise of ln η by schedule and controls since the previous step, or 0 if they have not raised it.
    pub scheduled_rise: f64,
    /// a_slow and a_fast if the alignment is measured. a_fast is `None` without a brake.
    pub alignment: (f64, Option<f64>),
}

impl RegimeStep<'_> {
    /// Returns the squared length of the direction: that of the gradient or of its signs.
    pub fn direction_square(&self) -> f64 {
        if self.scale_free { self.direction_length.powi(2) } else { self.norm * self.norm }
    }

    /// Returns the rate of a step along the signs that is as long as a step along the gradient at this rate. Other
    /// rules keep the rate.
    pub fn along_signs(&self, rate: f64) -> f64 {
        if self.scale_free { rate * self.norm / self.direction_length } else { rate }
    }

    /// Returns s and y of the last step.
    pub fn secant(&self) -> (Vec<f64>, Vec<f64>) {
        let y = self.g.iter().zip(self.last_g).map(|(a, b)| a - b).collect();
        (self.last_direction.iter().map(|u| -self.rate * u).collect(), y)
    }
}

/// Inputs of a regime in a look, which is a second gradient of the same batch after the step.
#[derive(Clone, Copy)]
pub struct RegimeLook<'a> {
    /// Step without weight decay.
    pub s: &'a [f64],
    /// Change of the gradient.
    pub y: &'a [f64],
    /// Direction of the step.
    pub u: &'a [f64],
    /// Gradient before the step.
    pub g: &'a [f64],
    /// Rate of the step: s = -rate u.
    pub rate: f64,
}

/// Result of a regime for a step.
#[derive(Debug, Clone, Copy)]
pub enum Rate {
    /// The rate comes from the first step's length or from the caller, and stays unchanged after the first step.
    Unchanged,
    /// The formula gives the rate. Its change and its value are then limited.
    Wanted {
        /// η.
        rate: f64,
        /// Largest factor by which η changes.
        max_change: f64,
        /// Largest η.
        max_rate: f64,
    },
    /// The formula gives the change of ln η since the first step, within the limits of η. A step raises ln η by ln 10
    /// at most.
    Change {
        /// ln η_t - ln η_0.
        total: f64,
        /// Part of this step's change that comes from the norm.
        norm: f64,
        /// Part that comes from the alignment.
        alignment: f64,
        /// Part that comes from the brake.
        brake: f64,
        /// Part that the floor of the agreement holds back.
        held: f64,
    },
}

impl Rate {
    /// Returns a wanted rate with the limits of most regimes.
    pub fn wanted(rate: f64) -> Self {
        Rate::Wanted { rate, max_change: 10.0, max_rate: 1e30 }
    }
}

/// A regime with its state in f64.
#[doc(hidden)]
pub trait RegimeReference: std::panic::UnwindSafe + std::panic::RefUnwindSafe {
    /// Computes the rate of a step.
    fn follow(&mut self, step: &RegimeStep) -> Rate;

    /// Returns the magnitude of the terms whose difference is the last wanted rate. The rounding errors of the rate are
    /// measured relative to it. It is 0 if the rate is not a difference.
    fn rate_size(&self) -> f64 {
        0.0
    }

    /// Receives the final rate of the step with all its factors, and the step's number among those that moved the
    /// group.
    fn settle(&mut self, _rate: f64, _k: f64) {}

    /// Returns the factor of m before the step. v is multiplied by its square.
    fn moment_ratio(&mut self) -> f64 {
        1.0
    }

    /// Returns false if the rule's bias corrections are left out.
    fn corrects_bias(&self) -> bool {
        true
    }

    /// Returns the new parameters if they are not just the old ones minus the step. `_step` includes rate and weight
    /// decay.
    fn place(&mut self, _first_w: &[f64], _step: &[f64]) -> Option<Vec<f64>> {
        None
    }

    /// Receives a look at the last step.
    fn look(&mut self, _: &RegimeLook) {}
}

/// Computes ‖x‖, scaled so that squares of 1e30 and 1e-38 do not overflow or underflow.
pub fn norm(x: &[f64]) -> f64 {
    let largest = x.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    if largest == 0.0 {
        return 0.0;
    }
    largest * x.iter().map(|x| (x / largest).powi(2)).sum::<f64>().sqrt()
}

/// Computes ⟨a, b⟩.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Returns the sign of x, which is 0 for 0, unlike `signum`.
pub fn sign(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { x.signum() }
}
