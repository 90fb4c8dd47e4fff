//! Barzilai and Borwein's rates, computed from the last secant. Their device code is
//! `shaders/regime/barzilai_borwein.wgsl`.

use super::{Kernel, LearningRateRegime, Needs, RATE_MAX, Regime, require_first_step};
use super::first_rate::set_first_rate;
use super::secant::{last_secant, ratio_of_lengths};
use crate::averaging::Averaging;
use crate::error::{Error, require};
use crate::layout::terms::{CURVATURE_TERM, NORM_TERM};
use crate::layout::{GroupConstants, GroupState, RawRecord, RegimeConstants, Scaled, shared_structs};
use crate::reference::{Rate, RegimeReference, RegimeStep, dot};
use crate::regime::formula::{MAX_FACTOR, ln_ratio_or_0, rate_along_signs, set_rate};
use crate::regime::gradient::{Gradient, is_sign_rule};
use crate::rule::Rule;

/// Barzilai and Borwein's rates `s·s/s·y` and `s·y/y·y`, or their geometric mean `‖s‖/‖y‖` (Barzilai & Borwein 1988;
/// for stochastic gradients Tan et al. 2016, arXiv:1605.04131, eq. 6 and 7).
///
/// Safeguards: the rate changes by at most a factor of `max_change` per step. It is carried over if `s = 0` (after a
/// gradient of zeros) or `y = 0`, and in Long and Short also if `s·y ≤ 0` (no positive curvature). It falls by
/// `max_change` if a sum overflows f32.
///
/// In the record, `norm_term` is the part that the norm explains (`0`, `-x` and `-x/2` with `x = ln(n_t/n_{t-1})`),
/// `curvature_term` the rest and `clamp_term` the effect of the bound.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct BarzilaiBorwein {
    /// Formula of the rate.
    pub form: SecantForm,
    /// Largest growth factor per step, above 1. Its inverse is the largest shrink. The default is 2.
    pub max_change: f32,
    /// η of the first step. `None` derives it from the first step's length.
    pub initial_rate: Option<f32>,
    /// ε of the first step, used if `initial_rate` is `None`. The default is 1e-2.
    pub first_step: f32,
}

impl BarzilaiBorwein {
    /// Returns the regime in this form, with the default constants.
    pub fn new(form: SecantForm) -> Self {
        BarzilaiBorwein { form, max_change: 2.0, initial_rate: None, first_step: 1e-2 }
    }
}

/// Formula that turns a secant into a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub enum SecantForm {
    /// `s·s/s·y`, the long rate, which is least squares in `s`.
    Long,
    /// `s·y/y·y`, the short rate, which is least squares in `y`.
    Short,
    /// `‖s‖/‖y‖`, the geometric mean of both rates.
    Geometric,
}

impl Regime {
    /// Returns [`BarzilaiBorwein`] in this form.
    pub fn barzilai_borwein(form: SecantForm) -> Self {
        Regime::BarzilaiBorwein(BarzilaiBorwein::new(form))
    }
}

pub(super) fn examples() -> [BarzilaiBorwein; 3] {
    [SecantForm::Long, SecantForm::Short, SecantForm::Geometric].map(BarzilaiBorwein::new)
}

impl LearningRateRegime for BarzilaiBorwein {
    fn name(&self) -> &'static str {
        match self.form {
            SecantForm::Long => "bb-long",
            SecantForm::Short => "bb-short",
            SecantForm::Geometric => "bb-geometric",
        }
    }

    fn summary(&self) -> &'static str {
        match self.form {
            SecantForm::Long => "Barzilai-Borwein, s·s/s·y",
            SecantForm::Short => "Barzilai-Borwein, s·y/y·y",
            SecantForm::Geometric => "Barzilai-Borwein, the geometric mean",
        }
    }

    fn kernel(&self) -> &'static Kernel {
        &KERNEL
    }

    fn needs(&self) -> Needs {
        Needs { last_gradient: true, initial_norm: self.initial_rate.is_none(), ..Needs::NOTHING }
    }

    /// Returns false for rules with momentum, whose step is not along the gradient.
    fn suits(&self, rule: &Rule) -> bool {
        rule.momentum() == 0.0
    }

    fn initial_rate(&self) -> Option<f32> {
        self.initial_rate
    }

    fn first_step(&self, _: &Rule, _: &Averaging) -> f32 {
        self.first_step
    }

    fn constants(&self, _: &Rule) -> RegimeConstants {
        let form = match self.form {
            SecantForm::Long => forms::SECANT_LONG,
            SecantForm::Short => forms::SECANT_SHORT,
            SecantForm::Geometric => forms::SECANT_GEOMETRIC,
        };
        RegimeConstants::of(&BarzilaiBorweinConstants { form, max_change: self.max_change.min(MAX_FACTOR) })
    }

    fn validate(&self) -> Result<(), Error> {
        let in_range = self.max_change.is_finite() && self.max_change > 1.0;
        require(in_range, || self.owner(), "max_change", self.max_change, "finite and above 1")?;
        require_first_step(self, Some(self.first_step), self.initial_rate)
    }

    fn reference(&self, _: &Rule) -> Box<dyn RegimeReference> {
        Box::new(*self)
    }
}

shared_structs! {
    /// Constants of BarzilaiBorwein.
    pub(crate) struct BarzilaiBorweinConstants {
        /// One of [`forms`].
        pub(crate) form: u32,
        /// Largest factor by which one step changes η.
        pub(crate) max_change: f32,
    }
}

/// Formulas of the rate.
pub(crate) mod forms {
    crate::layout::shared_constants! { ""
        /// `s·s/s·y`.
        pub const SECANT_LONG: u32 = 0;
        /// `s·y/y·y`.
        pub const SECANT_SHORT: u32 = 1;
        /// `‖s‖/‖y‖`.
        pub const SECANT_GEOMETRIC: u32 = 2;
    }
}

pub(super) const KERNEL: Kernel = Kernel {
    constants: Some(BarzilaiBorweinConstants::DECLARED),
    own_constants: forms::wgsl,
    follow,
    ..Kernel::new("barzilai_borwein", include_str!("../../shaders/regime/barzilai_borwein.wgsl"))
};

fn follow(c: &GroupConstants, g: &Gradient, s: &mut GroupState, r: &mut RawRecord) {
    if g.first {
        set_first_rate(c, g, s, r);
        return;
    }
    let wanted = secant_rate(c, g, s, r);
    let max_change = c.regime_constants.own::<BarzilaiBorweinConstants>().max_change;
    set_rate(wanted, max_change, RATE_MAX, g, s, r);
}

fn secant_rate(c: &GroupConstants, g: &Gradient, s: &GroupState, r: &mut RawRecord) -> Scaled {
    let old = Scaled::new(s.regime_rate, 0);
    let Some(secant) = last_secant(c, g, s) else {
        return Scaled::ZERO;
    };
    let (mut factor, mut share_of_norm) = match c.regime_constants.own::<BarzilaiBorweinConstants>().form {
        forms::SECANT_LONG if secant.u_dot_y < 0.0 => {
            (Scaled::new(secant.u_square, secant.shift).quotient(Scaled::new(secant.u_dot_y, 0)), 0.0)
        }
        forms::SECANT_SHORT if secant.u_dot_y < 0.0 && secant.y_square > 0.0 => {
            (Scaled::new(secant.u_dot_y, secant.shift).quotient(Scaled::new(secant.y_square, 0)), -1.0)
        }
        forms::SECANT_GEOMETRIC => (ratio_of_lengths(&secant), -0.5),
        _ => return old,
    };
    if factor.is_zero() {
        return old;
    }
    if is_sign_rule(c) {
        factor = rate_along_signs(c, factor, g.norm);
        share_of_norm += 1.0;
    }
    let of_norm = share_of_norm * ln_ratio_or_0(g.norm, g.last_norm);
    let rate = old.product(factor);
    r.terms[NORM_TERM as usize] = of_norm;
    r.terms[CURVATURE_TERM as usize] = rate.ln_ratio(old) - of_norm;
    rate
}

/// Barzilai and Borwein's rates in f64.
impl RegimeReference for BarzilaiBorwein {
    fn follow(&mut self, step: &RegimeStep) -> Rate {
        if step.first {
            return Rate::Unchanged;
        }
        let (s, y) = step.secant();
        let (ss, sy, yy) = (dot(&s, &s), dot(&s, &y), dot(&y, &y));
        let rate = match self.form {
            _ if ss == 0.0 || yy == 0.0 => step.rate,
            SecantForm::Long | SecantForm::Short if sy <= 0.0 => step.rate,
            SecantForm::Long => step.along_signs(ss / sy),
            SecantForm::Short => step.along_signs(sy / yy),
            SecantForm::Geometric => step.along_signs((ss / yy).sqrt()),
        };
        Rate::Wanted { rate, max_change: self.max_change.into(), max_rate: 1e30 }
    }
}
