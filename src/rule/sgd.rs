//! Stochastic gradient descent. Its device code is `shaders/rule/sgd.wgsl`.

use super::{HostRule, LastStep, Rule, RuleKind, Traits, UpdateRule};
use crate::averaging::Averaging;
use crate::layout::{RuleNumbers, Update};
use crate::reference::RuleStep;

/// Stochastic gradient descent: `u = g`. It keeps no memory.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct Sgd;

impl Rule {
    /// Returns plain SGD.
    pub fn sgd() -> Self {
        Rule::Sgd(Sgd)
    }
}

pub(super) fn examples() -> [Sgd; 1] {
    [Sgd]
}

impl UpdateRule for Sgd {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn summary(&self) -> &'static str {
        "Plain SGD"
    }

    fn with_momentum(&self, _: f32) -> Rule {
        Rule::Sgd(*self)
    }

    fn kind(&self) -> RuleKind {
        RuleKind::Sgd
    }

    fn first_step(&self, averaging: &Averaging) -> f32 {
        if *averaging == Averaging::ScheduleFree { 0.15 } else { 0.05 }
    }

    fn numbers(&self) -> RuleNumbers {
        RuleNumbers { gradient_share: 1.0, ..RuleNumbers::default() }
    }

    fn reference(&self, step: &mut RuleStep) -> Vec<f64> {
        step.g.to_vec()
    }
}

/// Direction that is the gradient.
pub(crate) struct Plain;

impl HostRule for Plain {
    const TRAITS: Traits = Traits { features: &["sgd"], ..Traits::PLAIN };

    #[inline(always)]
    fn direction(_: &Update, g: f32, _: f32, _: f32, _: f32) -> f32 {
        g
    }

    #[inline(always)]
    fn last_direction(step: &LastStep) -> f32 {
        step.gradient_scale * step.clipped
    }
}
