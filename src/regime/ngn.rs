//! NGN, which uses the loss and the squared norm with a largest rate. Its device code is `shaders/regime/ngn.wgsl`.

use super::{Kernel, LearningRateRegime, Needs, RATE_MAX, RATE_MIN, Regime};
use crate::averaging::Averaging;
use crate::error::{Error, require};
use crate::layout::terms::{LOSS_TERM, NORM_TERM};
use crate::layout::{GroupConstants, GroupState, RawRecord, RegimeConstants, Scaled, shared_structs};
use crate::reference::{Rate, RegimeReference, RegimeStep};
use crate::regime::formula::{MAX_FACTOR, ln_ratio_or_0, rate_along_signs, set_rate};
use crate::regime::gradient::{Gradient, is_sign_rule};
use crate::rule::Rule;

/// NGN: `η = σ/(1 + σ n²/(2 f))` for losses of 0 and above (Orvieto & Xiao 2024, arXiv:2407.04358, eq. 4).
///
/// It keeps no memory per parameter. σ is the largest rate, which is reached where the gradient vanishes. In the
/// record, `norm_term` is the effect of the change of the norm at the previous loss, and `loss_term` the effect of the
/// change of the loss after that.
///
/// A non-finite loss skips the step, as a non-finite gradient does. For sign rules the rate is converted so that a step
/// along the signs is as long as the step along the gradient: `η ← η n/√d`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct Ngn {
    /// σ, the largest rate. The default is 1.
    pub rate: f32,
}

impl Default for Ngn {
    fn default() -> Self {
        Ngn { rate: 1.0 }
    }
}

impl Regime {
    /// Returns [`Ngn`] with `σ = 1`.
    pub fn ngn() -> Self {
        Regime::Ngn(Ngn::default())
    }
}

pub(super) fn examples() -> [Ngn; 1] {
    [Ngn::default()]
}

impl LearningRateRegime for Ngn {
    fn name(&self) -> &'static str {
        "ngn"
    }

    fn summary(&self) -> &'static str {
        "Loss and squared norm, with a largest rate"
    }

    fn kernel(&self) -> &'static Kernel {
        &KERNEL
    }

    fn needs(&self) -> Needs {
        Needs { loss: true, ..Needs::NOTHING }
    }

    fn first_step(&self, _: &Rule, _: &Averaging) -> f32 {
        0.0
    }

    fn constants(&self, _: &Rule) -> RegimeConstants {
        RegimeConstants::of(&NgnConstants { rate: self.rate })
    }

    fn validate(&self) -> Result<(), Error> {
        let in_range = (RATE_MIN..=RATE_MAX).contains(&self.rate);
        require(in_range, || self.owner(), "rate", self.rate, "between 1e-30 and 1e30")
    }

    fn reference(&self, _: &Rule) -> Box<dyn RegimeReference> {
        Box::new(*self)
    }
}

shared_structs! {
    /// Constants of Ngn.
    pub(crate) struct NgnConstants {
        /// σ.
        pub(crate) rate: f32,
    }

    /// State of Ngn.
    pub(crate) struct NgnState {
        /// Loss of the last step with a gradient, at least 0.
        pub(crate) last_loss: f32,
    }
}

pub(super) const KERNEL: Kernel = Kernel {
    constants: Some(NgnConstants::DECLARED),
    state: Some(NgnState::DECLARED),
    follow,
    ..Kernel::new("ngn", include_str!("../../shaders/regime/ngn.wgsl"))
};

fn follow(c: &GroupConstants, g: &Gradient, s: &mut GroupState, r: &mut RawRecord) {
    let rate = c.regime_constants.own::<NgnConstants>().rate;
    let own: &mut NgnState = s.regime.own_mut();
    let loss = g.sums.loss.max(0.0);
    let last_loss = std::mem::replace(&mut own.last_loss, loss);
    let mut wanted = Scaled::ZERO;
    if loss > 0.0 {
        let divisor = divisor(rate, g.square, loss);
        wanted = Scaled::new(rate, 0).quotient(divisor);
        if last_loss > 0.0 {
            let between = self::divisor(rate, g.square, last_loss);
            let last = self::divisor(rate, g.last_norm.product(g.last_norm), last_loss);
            r.terms[NORM_TERM as usize] = last.ln_ratio(between);
            r.terms[LOSS_TERM as usize] = between.ln_ratio(divisor);
        }
    }
    if is_sign_rule(c) {
        wanted = rate_along_signs(c, wanted, g.norm);
        r.terms[NORM_TERM as usize] += ln_ratio_or_0(g.norm, g.last_norm);
    }
    set_rate(wanted, MAX_FACTOR, RATE_MAX, g, s, r);
}

/// Computes 1 + σ n²/(2 f) for f above 0.
fn divisor(rate: f32, square: Scaled, loss: f32) -> Scaled {
    Scaled::ONE.sum(square.times(rate).quotient(Scaled::new(2.0 * loss, 0)))
}

/// NGN in f64.
impl RegimeReference for Ngn {
    fn follow(&mut self, step: &RegimeStep) -> Rate {
        let sigma = f64::from(self.rate);
        if step.loss <= 0.0 {
            return Rate::wanted(0.0);
        }
        Rate::wanted(step.along_signs(sigma / (1.0 + sigma * step.norm * step.norm / (2.0 * step.loss))))
    }
}
