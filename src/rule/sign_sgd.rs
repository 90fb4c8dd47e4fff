//! signSGD. Its device code is `shaders/rule/sign_sgd.wgsl`.

use super::{HostRule, LastStep, Rule, RuleKind, Traits, UpdateRule, sign};
use crate::averaging::Averaging;
use crate::layout::{RuleNumbers, Update};
use crate::reference::{self, RuleStep};

/// signSGD: `u = sign(g)` with `sign(0) = 0` (Bernstein et al. 2018, arXiv:1802.04434, algorithm 1). It keeps no
/// memory.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct SignSgd;

impl Rule {
    /// Returns signSGD.
    pub fn sign_sgd() -> Self {
        Rule::SignSgd(SignSgd)
    }
}

pub(super) fn examples() -> [SignSgd; 1] {
    [SignSgd]
}

impl UpdateRule for SignSgd {
    fn name(&self) -> &'static str {
        "signsgd"
    }

    fn summary(&self) -> &'static str {
        "The sign of the gradient"
    }

    fn with_momentum(&self, _: f32) -> Rule {
        Rule::SignSgd(*self)
    }

    fn kind(&self) -> RuleKind {
        RuleKind::SignSgd
    }

    fn first_step(&self, _: &Averaging) -> f32 {
        0.03
    }

    fn numbers(&self) -> RuleNumbers {
        RuleNumbers { gradient_share: 1.0, ..RuleNumbers::default() }
    }

    fn reference(&self, step: &mut RuleStep) -> Vec<f64> {
        step.g.iter().map(|&g| reference::sign(g)).collect()
    }
}

/// Direction from the signs of the gradient.
pub(crate) struct Signs;

impl HostRule for Signs {
    const TRAITS: Traits = Traits { features: &["sign_sgd"], sign: true, ..Traits::PLAIN };

    #[inline(always)]
    fn direction(_: &Update, g: f32, _: f32, _: f32, _: f32) -> f32 {
        sign(g)
    }

    #[inline(always)]
    fn last_direction(step: &LastStep) -> f32 {
        sign(step.g)
    }
}
