//! AdaGradNorm, which uses the sum of squared norms. Its device code is `shaders/regime/adagrad_norm.wgsl`.

use super::{Kernel, LearningRateRegime, RATE_MAX, Regime, require_above_0, require_at_least_0};
use crate::averaging::Averaging;
use crate::error::Error;
use crate::layout::terms::HISTORY_TERM;
use crate::layout::{GroupConstants, GroupState, RawRecord, RegimeConstants, Scaled, shared_structs};
use crate::reference::{Rate, RegimeReference, RegimeStep};
use crate::regime::formula::{MAX_FACTOR, direction_square_of, ln_ratio_or_0, set_rate};
use crate::regime::gradient::{Gradient};
use crate::rule::Rule;

/// Learning rate from the sum of squared norms: `η = c / √(b₀² + Σ n²)` (Ward, Wu & Bottou 2019, arXiv:1806.01811, eq.
/// 1, where c is η). It keeps no memory per parameter.
///
/// The rate only falls. For sign rules Σ n² is replaced by Σ d, where d is the squared length of a direction.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct AdaGradNorm {
    /// c, in units of the parameters. The default is 1. With `b₀ = 0` the first step has this length.
    pub scale: f32,
    /// b₀, in units of the gradient. The default is 0.
    pub offset: f32,
}

impl Default for AdaGradNorm {
    fn default() -> Self {
        AdaGradNorm { scale: 1.0, offset: 0.0 }
    }
}

impl Regime {
    /// Returns [`AdaGradNorm`] with scale 1 and offset 0.
    pub fn adagrad_norm() -> Self {
        Regime::AdaGradNorm(AdaGradNorm::default())
    }
}

pub(super) fn examples() -> [AdaGradNorm; 1] {
    [AdaGradNorm::default()]
}

impl LearningRateRegime for AdaGradNorm {
    fn name(&self) -> &'static str {
        "adagrad-norm"
    }

    fn summary(&self) -> &'static str {
        "The sum of squared norms"
    }

    fn kernel(&self) -> &'static Kernel {
        &KERNEL
    }

    fn first_step(&self, _: &Rule, _: &Averaging) -> f32 {
        0.0
    }

    fn constants(&self, _: &Rule) -> RegimeConstants {
        RegimeConstants::of(&AdaGradNormConstants { scale: self.scale, offset: self.offset })
    }

    fn validate(&self) -> Result<(), Error> {
        require_above_0(self, "scale", self.scale)?;
        require_at_least_0(self, "offset", self.offset)
    }

    fn reference(&self, _: &Rule) -> Box<dyn RegimeReference> {
        Box::new(Reference { scale: self.scale.into(), history: f64::from(self.offset).powi(2) })
    }
}

shared_structs! {
    /// Constants of AdaGradNorm.
    pub(crate) struct AdaGradNormConstants {
        /// c.
        pub(crate) scale: f32,
        /// b₀.
        pub(crate) offset: f32,
    }

    /// State of AdaGradNorm.
    pub(crate) struct AdaGradNormState {
        /// b₀² + Σ n².
        pub(crate) history: Scaled,
    }
}

pub(super) const KERNEL: Kernel = Kernel {
    constants: Some(AdaGradNormConstants::DECLARED),
    state: Some(AdaGradNormState::DECLARED),
    follow,
    ..Kernel::new("adagrad_norm", include_str!("../../shaders/regime/adagrad_norm.wgsl"))
};

fn follow(c: &GroupConstants, g: &Gradient, s: &mut GroupState, r: &mut RawRecord) {
    let k: &AdaGradNormConstants = c.regime_constants.own();
    let own: &mut AdaGradNormState = s.regime.own_mut();
    let last = own.history;
    let start = if g.first { Scaled::new(k.offset, 0).product(Scaled::new(k.offset, 0)) } else { last };
    own.history = start.sum(direction_square_of(c, g.square));
    let wanted = Scaled::new(k.scale, 0).quotient(own.history.root());
    r.terms[HISTORY_TERM as usize] = -0.5 * ln_ratio_or_0(own.history, last);
    set_rate(wanted, MAX_FACTOR, RATE_MAX, g, s, r);
}

/// AdaGradNorm in f64.
struct Reference {
    scale: f64,
    history: f64,
}

impl RegimeReference for Reference {
    fn follow(&mut self, step: &RegimeStep) -> Rate {
        self.history += step.direction_square();
        Rate::wanted(self.scale / self.history.sqrt())
    }
}
