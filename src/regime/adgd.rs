//! AdGD, which uses half the last secant with bounded growth. Its device code is `shaders/regime/adgd.wgsl`.

use super::{Kernel, LearningRateRegime, Needs, RATE_MAX, Regime, require_first_step};
use super::first_rate::set_first_rate;
use super::secant::{last_secant, ratio_of_lengths};
use crate::averaging::Averaging;
use crate::error::Error;
use crate::layout::terms::{CURVATURE_TERM, GATE_TERM, NORM_TERM};
use crate::layout::{GroupConstants, GroupState, RawRecord, RegimeState, Scaled, shared_structs};
use crate::reference::{Rate, RegimeReference, RegimeStep, dot};
use crate::regime::formula::{MAX_FACTOR, ln_ratio_or_0, rate_along_signs, set_rate};
use crate::regime::gradient::{Gradient, is_sign_rule};
use crate::rule::Rule;

/// AdGD: `η = min(√(1 + θ_{t-1}) η_{t-1}, ‖s‖/(2‖y‖))`, `θ_{t-1} = η_{t-1}/η_{t-2}` (Malitsky & Mishchenko 2020,
/// arXiv:1910.09529, algorithm 1; `θ_0 = ∞`). The rate is carried over if `s = 0` (after a gradient of zeros) or `y =
/// 0`.
///
/// In the record, `norm_term` is `-x/2` with `x = ln(n_t/n_{t-1})`, `curvature_term` is the rest of the secant, and
/// `gate_term` is the part of a rise that the bound on growth held back.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct AdGd {
    /// η of the first step. `None` derives it from the first step's length.
    pub initial_rate: Option<f32>,
    /// ε of the first step, used if `initial_rate` is `None`. The default is 1e-2.
    pub first_step: f32,
}

impl Default for AdGd {
    fn default() -> Self {
        AdGd { initial_rate: None, first_step: 1e-2 }
    }
}

impl Regime {
    /// Returns [`AdGd`] with the automatic first step.
    pub fn adgd() -> Self {
        Regime::AdGd(AdGd::default())
    }
}

pub(super) fn examples() -> [AdGd; 1] {
    [AdGd::default()]
}

impl LearningRateRegime for AdGd {
    fn name(&self) -> &'static str {
        "adgd"
    }

    fn summary(&self) -> &'static str {
        "Malitsky and Mishchenko's secant with bounded growth"
    }

    fn kernel(&self) -> &'static Kernel {
        &KERNEL
    }

    fn needs(&self) -> Needs {
        Needs { last_gradient: true, initial_norm: self.initial_rate.is_none(), ..Needs::NOTHING }
    }

    fn initial_rate(&self) -> Option<f32> {
        self.initial_rate
    }

    fn first_step(&self, _: &Rule, _: &Averaging) -> f32 {
        self.first_step
    }

    /// Returns the state with θ_0 = ∞.
    fn first_state(&self) -> RegimeState {
        RegimeState::of(&AdGdState { last_growth: f32::MAX })
    }

    fn validate(&self) -> Result<(), Error> {
        require_first_step(self, Some(self.first_step), self.initial_rate)
    }

    fn reference(&self, _: &Rule) -> Box<dyn RegimeReference> {
        Box::new(Reference { last_growth: f64::INFINITY, last_rate: None })
    }
}

shared_structs! {
    /// State of AdGd.
    pub(crate) struct AdGdState {
        /// θ_{t-1} = η_{t-1}/η_{t-2}.
        pub(crate) last_growth: f32,
    }
}

pub(super) const KERNEL: Kernel = Kernel {
    state: Some(AdGdState::DECLARED),
    follow,
    ..Kernel::new("adgd", include_str!("../../shaders/regime/adgd.wgsl"))
};

fn follow(c: &GroupConstants, g: &Gradient, s: &mut GroupState, r: &mut RawRecord) {
    if g.first {
        set_first_rate(c, g, s, r);
        return;
    }
    let wanted = secant_rate(c, g, s, r);
    let last_growth = set_rate(wanted, MAX_FACTOR, RATE_MAX, g, s, r);
    *s.regime.own_mut() = AdGdState { last_growth };
}

fn secant_rate(c: &GroupConstants, g: &Gradient, s: &GroupState, r: &mut RawRecord) -> Scaled {
    let old = Scaled::new(s.regime_rate, 0);
    let Some(secant) = last_secant(c, g, s) else {
        return Scaled::ZERO;
    };
    let mut factor = ratio_of_lengths(&secant);
    if factor.is_zero() {
        return old;
    }
    let mut share_of_norm = -0.5;
    if is_sign_rule(c) {
        factor = rate_along_signs(c, factor, g.norm);
        share_of_norm = 0.5;
    }
    let of_norm = share_of_norm * ln_ratio_or_0(g.norm, g.last_norm);
    let rate = old.product(factor).times(0.5);
    r.terms[NORM_TERM as usize] = of_norm;
    r.terms[CURVATURE_TERM as usize] = rate.ln_ratio(old) - of_norm;
    let growth = Scaled::ONE.sum(Scaled::new(s.regime.own::<AdGdState>().last_growth, 0));
    let most = old.product(growth.root());
    if most.less(rate) {
        r.terms[GATE_TERM as usize] = most.ln_ratio(rate);
        return most;
    }
    rate
}

/// AdGD in f64.
struct Reference {
    last_growth: f64,
    last_rate: Option<f64>,
}

impl RegimeReference for Reference {
    fn follow(&mut self, step: &RegimeStep) -> Rate {
        if step.first {
            return Rate::Unchanged;
        }
        if let Some(last) = self.last_rate {
            self.last_growth = step.rate / last;
        }
        self.last_rate = Some(step.rate);
        let (s, y) = step.secant();
        let (ss, yy) = (dot(&s, &s), dot(&y, &y));
        if ss == 0.0 || yy == 0.0 {
            return Rate::wanted(step.rate);
        }
        let secant = step.along_signs((ss / yy).sqrt() / 2.0);
        Rate::wanted(secant.min((1.0 + self.last_growth).sqrt() * step.rate))
    }
}
