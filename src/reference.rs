//! The optimizer's formulas in f64, for the conformance suite. Each file in `rule` and `regime` has its own, written from the paper and not from
//! the code beside it. Nothing else of the crate uses them.

/// The memory of a rule.
#[derive(Debug, Clone, Default)]
pub struct Moments {
    /// m, before the first step none.
    pub m: Option<Vec<f64>>,
    /// v, before the first step none.
    pub v: Option<Vec<f64>>,
    /// The largest v so far of rules that keep it, before the first step none.
    pub largest_v: Option<Vec<f64>>,
}

/// What a rule is given.
pub struct RuleStep<'a> {
    /// The gradient after clip and coupled decay.
    pub g: &'a [f64],
    /// Steps that were not skipped, this one included.
    pub k: f64,
    /// The rule's memory, which the step changes.
    pub moments: &'a mut Moments,
    /// True for a device that takes denormal numbers of f32 for zeros, in what is remembered.
    pub flushes: bool,
    /// Of each tensor in turn, the lengths of its dimensions.
    pub shapes: &'a [Vec<usize>],
}

impl RuleStep<'_> {
    /// A number as it is remembered.
    pub fn flush(&self, x: f64) -> f64 {
        if self.flushes && x.abs() < f64::from(f32::MIN_POSITIVE) { 0.0 } else { x }
    }

    /// `keep · old + share · new`, as it is remembered.
    pub fn mix(&self, keep: f64, old: f64, share: f64, new: f64) -> f64 {
        self.flush(self.flush(keep * old) + self.flush(share * new))
    }

    /// `m ← keep · m + share · g` from zero, and the m before.
    pub fn next_momentum(&mut self, keep: f64, share: f64) -> (Vec<f64>, Vec<f64>) {
        let last = self.moments.m.take().unwrap_or_else(|| vec![0.0; self.g.len()]);
        let next: Vec<f64> = last.iter().zip(self.g).map(|(&m, &g)| self.mix(keep, m, share, g)).collect();
        self.moments.m = Some(next.clone());
        (last, next)
    }

    /// `v ← keep · v + share · g²` from zero.
    pub fn next_squares(&mut self, keep: f64, share: f64) -> Vec<f64> {
        let last = self.moments.v.take().unwrap_or_else(|| vec![0.0; self.g.len()]);
        let square = |g: f64| self.flush(g * g);
        let next: Vec<f64> = last.iter().zip(self.g).map(|(&v, &g)| self.mix(keep, v, share, square(g))).collect();
        self.moments.v = Some(next.clone());
        next
    }
}

/// What a regime is given of a step with a finite gradient that is not zero.
pub struct RegimeStep<'a> {
    /// The gradient with coupled decay, before the clip.
    pub g: &'a [f64],
    /// Its norm n.
    pub norm: f64,
    /// n̂.
    pub smoothed: f64,
    /// n̂ of the step before.
    pub last_smoothed: f64,
    /// True for the first of them.
    pub first: bool,
    /// Their number, this one included.
    pub k: f64,
    /// The loss.
    pub loss: f64,
    /// η of the step before, without schedule and trust ratio; 0 where there is none.
    pub rate: f64,
    /// The parameters.
    pub w: &'a [f64],
    /// z of schedule-free training; the parameters elsewhere and before the first step.
    pub base: &'a [f64],
    /// The parameters before the first step.
    pub first_w: &'a [f64],
    /// The gradient of the step before.
    pub last_g: &'a [f64],
    /// The direction of the step before.
    pub last_direction: &'a [f64],
    /// ε (1 + ‖w₀‖), the length of the first step.
    pub first_length: f64,
    /// True if the direction does not shrink with the gradient.
    pub scale_free: bool,
    /// The length that is then taken for the direction's.
    pub direction_length: f64,
    /// By how much schedule and controls have raised ln η since the step before; 0 where they have not.
    pub scheduled_rise: f64,
    /// a_slow and a_fast, where the alignment is measured; no a_fast where there is no brake.
    pub alignment: (f64, Option<f64>),
}

impl RegimeStep<'_> {
    /// The squared length of the direction: of the gradient or of its signs.
    pub fn direction_square(&self) -> f64 {
        if self.scale_free { self.direction_length.powi(2) } else { self.norm * self.norm }
    }

    /// The rate of a step along the signs that is as long as one along the gradient at this rate; the same rate for other rules.
    pub fn along_signs(&self, rate: f64) -> f64 {
        if self.scale_free { rate * self.norm / self.direction_length } else { rate }
    }

    /// s and y of the last step.
    pub fn secant(&self) -> (Vec<f64>, Vec<f64>) {
        let y = self.g.iter().zip(self.last_g).map(|(a, b)| a - b).collect();
        (self.last_direction.iter().map(|u| -self.rate * u).collect(), y)
    }
}

/// What a regime is given of a look: a second gradient of the same batch, after the step.
#[derive(Clone, Copy)]
pub struct RegimeLook<'a> {
    /// The step, without weight decay.
    pub s: &'a [f64],
    /// The change of the gradient.
    pub y: &'a [f64],
    /// The direction of the step.
    pub u: &'a [f64],
    /// The gradient before the step.
    pub g: &'a [f64],
    /// The rate of the step: s is -rate u.
    pub rate: f64,
}

/// What a regime makes of a step.
#[derive(Debug, Clone, Copy)]
pub enum Rate {
    /// The rate is of the first step's length, or the caller's; after the first step it stays.
    Unchanged,
    /// The formula gives the rate, which is then limited: its change to a factor, and itself to a largest value.
    Wanted {
        /// η.
        rate: f64,
        /// The largest factor by which it changes.
        max_change: f64,
        /// The largest η.
        max_rate: f64,
    },
    /// The formula gives the change of ln η since the first step, within the limits of η; a step raises ln η by ln 10 at most.
    Change {
        /// ln η_t - ln η_0.
        total: f64,
        /// What of this step's change comes from the norm.
        norm: f64,
        /// What comes from the alignment.
        alignment: f64,
        /// What comes from the brake.
        brake: f64,
        /// What the floor of the agreement holds back.
        held: f64,
    },
}

impl Rate {
    /// A wanted rate with the limits that most regimes have.
    pub fn wanted(rate: f64) -> Self {
        Rate::Wanted { rate, max_change: 10.0, max_rate: 1e30 }
    }
}

/// A regime with its state in f64.
#[doc(hidden)]
pub trait RegimeReference: std::panic::UnwindSafe + std::panic::RefUnwindSafe {
    /// The rate of a step.
    fn follow(&mut self, step: &RegimeStep) -> Rate;

    /// The magnitude of the terms that the last wanted rate is a difference of, by which its rounding errors are judged; 0 where it is none.
    fn rate_size(&self) -> f64 {
        0.0
    }

    /// Uses the rate of the step with all its factors, and its number among those that moved the group.
    fn settle(&mut self, _rate: f64, _k: f64) {}

    /// What the moments of the rule are multiplied by before the step: m by this, v by its square.
    fn moment_ratio(&mut self) -> f64 {
        1.0
    }

    /// False where the rule's corrections for moments that began at zero are left out.
    fn corrects_bias(&self) -> bool {
        true
    }

    /// The new parameters, where they are more than the old ones less the step, which has rate and weight decay in it.
    fn place(&mut self, _first_w: &[f64], _step: &[f64]) -> Option<Vec<f64>> {
        None
    }

    /// A look at the last step.
    fn look(&mut self, _: &RegimeLook) {}
}

/// ‖x‖, scaled so that 1e30 and 1e-38 square to something.
pub fn norm(x: &[f64]) -> f64 {
    let largest = x.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    if largest == 0.0 {
        return 0.0;
    }
    largest * x.iter().map(|x| (x / largest).powi(2)).sum::<f64>().sqrt()
}

/// ⟨a, b⟩
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// 0 of 0, where `signum` is ±1.
pub fn sign(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { x.signum() }
}
