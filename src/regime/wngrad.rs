//! WNGrad, which uses squared norms divided by a running sum. Its device code is `shaders/regime/wngrad.wgsl`.

use super::{Kernel, LearningRateRegime, RATE_MAX, Regime, require_above_0, require_at_least_0};
use crate::averaging::Averaging;
use crate::error::Error;
use crate::layout::terms::HISTORY_TERM;
use crate::layout::{GroupConstants, GroupState, RawRecord, RegimeConstants, Scaled, shared_structs};
use crate::reference::{Rate, RegimeReference, RegimeStep};
use crate::regime::formula::{MAX_FACTOR, direction_square_of, ln_ratio_or_0, set_rate};
use crate::regime::gradient::Gradient;
use crate::rule::Rule;

/// WNGrad: `η = c/b_t`, `b_t = b_{t-1} + n²/b_{t-1}` (Wu, Ward & Bottou 2018, arXiv:1803.02865, algorithm 1, where c is
/// 1). It keeps no memory per parameter.
///
/// The rate only falls. With `b₀ = 0` the first `b` is n, so that the first step has the length c. For sign rules n² is
/// replaced by d, the squared length of the direction. In the record, `history_term` is `-ln(b_t/b_{t-1})`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct WnGrad {
    /// c, in units of the parameters times those of the gradient, divided by those of b. The default is 1.
    pub scale: f32,
    /// b₀, in units of the gradient. The default is 0.
    pub offset: f32,
}

impl Default for WnGrad {
    fn default() -> Self {
        WnGrad { scale: 1.0, offset: 0.0 }
    }
}

impl Regime {
    /// Returns [`WnGrad`] with scale 1 and offset 0.
    pub fn wngrad() -> Self {
        Regime::WnGrad(WnGrad::default())
    }
}

pub(super) fn examples() -> [WnGrad; 1] {
    [WnGrad::default()]
}

impl LearningRateRegime for WnGrad {
    fn name(&self) -> &'static str {
        "wngrad"
    }

    fn summary(&self) -> &'static str {
        "The sum of squared norms, each divided by the sum before it"
    }

    fn kernel(&self) -> &'static Kernel {
        &KERNEL
    }

    fn first_step(&self, _: &Rule, _: &Averaging) -> f32 {
        0.0
    }

    fn constants(&self, _: &Rule) -> RegimeConstants {
        RegimeConstants::of(&WnGradConstants { scale: self.scale, offset: self.offset })
    }

    fn validate(&self) -> Result<(), Error> {
        require_above_0(self, "scale", self.scale)?;
        require_at_least_0(self, "offset", self.offset)
    }

    fn reference(&self, _: &Rule) -> Box<dyn RegimeReference> {
        Box::new(Reference { scale: self.scale.into(), b: self.offset.into() })
    }
}

shared_structs! {
    /// Constants of WnGrad.
    pub(crate) struct WnGradConstants {
        /// c.
        pub(crate) scale: f32,
        /// b₀.
        pub(crate) offset: f32,
    }

    /// State of WnGrad.
    pub(crate) struct WnGradState {
        /// b of the last step with a gradient.
        pub(crate) b: Scaled,
    }
}

pub(super) const KERNEL: Kernel = Kernel {
    constants: Some(WnGradConstants::DECLARED),
    state: Some(WnGradState::DECLARED),
    follow,
    ..Kernel::new("wngrad", include_str!("../../shaders/regime/wngrad.wgsl"))
};

fn follow(c: &GroupConstants, g: &Gradient, s: &mut GroupState, r: &mut RawRecord) {
    let k: &WnGradConstants = c.regime_constants.own();
    let own: &mut WnGradState = s.regime.own_mut();
    let last = own.b;
    let before = if g.first { Scaled::new(k.offset, 0) } else { last };
    let square = direction_square_of(c, g.square);
    own.b = if before.is_zero() { square.root() } else { before.sum(square.quotient(before)) };
    let wanted = Scaled::new(k.scale, 0).quotient(own.b);
    r.terms[HISTORY_TERM as usize] = -ln_ratio_or_0(own.b, last);
    set_rate(wanted, MAX_FACTOR, RATE_MAX, g, s, r);
}

/// WNGrad in f64.
struct Reference {
    scale: f64,
    b: f64,
}

impl RegimeReference for Reference {
    fn follow(&mut self, step: &RegimeStep) -> Rate {
        let square = step.direction_square();
        self.b = if self.b == 0.0 { square.sqrt() } else { self.b + square / self.b };
        Rate::wanted(self.scale / self.b)
    }
}
