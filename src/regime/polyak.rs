//! Polyak's rate. Its device code is `shaders/regime/polyak.wgsl`.

use super::{Kernel, LearningRateRegime, Needs, RATE_MAX, RATE_MIN, Regime, require_above_0};
use crate::averaging::Averaging;
use crate::error::{Error, require};
use crate::layout::terms::{LOSS_TERM, NORM_TERM};
use crate::layout::{GroupConstants, GroupState, RawRecord, RegimeConstants, Scaled, shared_structs};
use crate::reference::{Rate, RegimeReference, RegimeStep};
use crate::regime::formula::{MAX_FACTOR, ln_ratio_or_0, rate_along_signs, set_rate};
use crate::regime::gradient::{Gradient, is_sign_rule};
use crate::rule::Rule;

/// Polyak's rate: `η = (f - f*)/(c n²)`, at most `max_rate` (Polyak 1987; stochastic: Loizou et al. 2021,
/// arXiv:2002.10542, eq. 2).
///
/// It keeps no memory per parameter. The change of ln η in one step is limited to ±ln 10. If `f ≤ f*`, the rate falls
/// by that limit. In the record, `loss_term` is `ln` of the growth of `f - f*`, and `norm_term` is `-2
/// ln(n_t/n_{t-1})`.
///
/// A non-finite loss skips the step, as a non-finite gradient does. For sign rules the rate is converted so that a step
/// along the signs is as long as the step along the gradient: `η ← η n/√d`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct Polyak {
    /// f*, the smallest possible loss. The default is 0.
    pub optimum: f32,
    /// c, the factor of the squared norm. The default is 1/2.
    pub factor: f32,
    /// Largest rate. `f32::INFINITY` sets no limit.
    pub max_rate: f32,
}

impl Default for Polyak {
    fn default() -> Self {
        Polyak { optimum: 0.0, factor: 0.5, max_rate: f32::INFINITY }
    }
}

impl Regime {
    /// Returns [`Polyak`] with `f* = 0` and `c = 1/2`.
    pub fn polyak() -> Self {
        Regime::Polyak(Polyak::default())
    }
}

pub(super) fn examples() -> [Polyak; 1] {
    [Polyak::default()]
}

impl LearningRateRegime for Polyak {
    fn name(&self) -> &'static str {
        "polyak"
    }

    fn summary(&self) -> &'static str {
        "Loss over squared norm"
    }

    fn kernel(&self) -> &'static Kernel {
        &KERNEL
    }

    fn needs(&self) -> Needs {
        Needs { loss: true, ..Needs::NOTHING }
    }

    /// Returns false for rules whose direction grows with the momentum.
    fn suits(&self, rule: &Rule) -> bool {
        rule.momentum() == 0.0 || rule.is_scale_free()
    }

    fn first_step(&self, _: &Rule, _: &Averaging) -> f32 {
        0.0
    }

    fn constants(&self, _: &Rule) -> RegimeConstants {
        let max_rate = self.max_rate.min(RATE_MAX);
        RegimeConstants::of(&PolyakConstants { factor: self.factor, optimum: self.optimum, max_rate })
    }

    fn validate(&self) -> Result<(), Error> {
        let owner = || self.owner();
        require(self.optimum.is_finite(), owner, "optimum", self.optimum, "finite")?;
        require_above_0(self, "factor", self.factor)?;
        let expected = "at least 1e-30 (f32::INFINITY for none)";
        require(self.max_rate >= RATE_MIN, owner, "max_rate", self.max_rate, expected)
    }

    fn reference(&self, _: &Rule) -> Box<dyn RegimeReference> {
        Box::new(*self)
    }
}

shared_structs! {
    /// Constants of Polyak.
    pub(crate) struct PolyakConstants {
        /// c.
        pub(crate) factor: f32,
        /// f*.
        pub(crate) optimum: f32,
        /// Largest η.
        pub(crate) max_rate: f32,
    }

    /// State of Polyak.
    pub(crate) struct PolyakState {
        /// f - f* of the last step with a gradient, at least 0.
        pub(crate) last_loss: f32,
    }
}

pub(super) const KERNEL: Kernel = Kernel {
    constants: Some(PolyakConstants::DECLARED),
    state: Some(PolyakState::DECLARED),
    follow,
    ..Kernel::new("polyak", include_str!("../../shaders/regime/polyak.wgsl"))
};

fn follow(c: &GroupConstants, g: &Gradient, s: &mut GroupState, r: &mut RawRecord) {
    let k: &PolyakConstants = c.regime_constants.own();
    let own: &mut PolyakState = s.regime.own_mut();
    let loss = (g.sums.loss - k.optimum).max(0.0);
    let last_loss = std::mem::replace(&mut own.last_loss, loss);
    let mut wanted = Scaled::ZERO;
    if loss > 0.0 {
        wanted = Scaled::new(loss, 0).quotient(g.square.times(k.factor));
    }
    let norm_change = ln_ratio_or_0(g.norm, g.last_norm);
    r.terms[NORM_TERM as usize] = -2.0 * norm_change;
    r.terms[LOSS_TERM as usize] = ln_ratio_or_0(Scaled::new(loss, 0), Scaled::new(last_loss, 0));
    if is_sign_rule(c) {
        wanted = rate_along_signs(c, wanted, g.norm);
        r.terms[NORM_TERM as usize] += norm_change;
    }
    set_rate(wanted, MAX_FACTOR, k.max_rate, g, s, r);
}

/// Polyak's rate in f64.
impl RegimeReference for Polyak {
    fn follow(&mut self, step: &RegimeStep) -> Rate {
        let excess = (step.loss - f64::from(self.optimum)).max(0.0);
        let rate = step.along_signs(excess / (f64::from(self.factor) * step.norm * step.norm));
        Rate::Wanted { rate, max_change: 10.0, max_rate: f64::from(self.max_rate.min(1e30)) }
    }
}
