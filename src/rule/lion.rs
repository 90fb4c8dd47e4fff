//! Lion. Its device code is `shaders/rule/lion.wgsl`.

use super::{HostRule, LastStep, Rule, RuleKind, Traits, UpdateRule, WeightDecay, owner, require_share, sign};
use crate::averaging::Averaging;
use crate::error::{Error, require};
use crate::layout::{RuleNumbers, Update};
use crate::reference::{self, RuleStep};

/// Lion (Chen et al. 2023, arXiv:2302.06675, program 1): `u = sign(β₁ m + (1-β₁) g)`, then `m ← β₂ m + (1-β₂) g`. It
/// keeps m, 4 bytes per parameter. The paper uses decoupled weight decay, which is set on the group.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct Lion {
    /// β₁ in `[0, 1)`. The paper uses 0.9.
    pub beta1: f32,
    /// β₂ in `(0, 1)`. The paper uses 0.99.
    pub beta2: f32,
}

impl Rule {
    /// Returns Lion with the paper's β₁ = 0.9, β₂ = 0.99.
    pub fn lion() -> Self {
        Rule::Lion(Lion { beta1: 0.9, beta2: 0.99 })
    }
}

pub(super) fn examples() -> [Lion; 1] {
    [Lion { beta1: 0.9, beta2: 0.99 }]
}

impl UpdateRule for Lion {
    fn name(&self) -> &'static str {
        "lion"
    }

    fn summary(&self) -> &'static str {
        "The sign of momentum and gradient"
    }

    fn with_momentum(&self, _: f32) -> Rule {
        Rule::Lion(*self)
    }

    fn usual_weight_decay(&self) -> WeightDecay {
        WeightDecay::Decoupled(0.0)
    }

    fn kind(&self) -> RuleKind {
        RuleKind::Lion
    }

    fn first_step(&self, _: &Averaging) -> f32 {
        0.01
    }

    fn numbers(&self) -> RuleNumbers {
        RuleNumbers {
            momentum: self.beta2,
            gradient_share: 1.0 - self.beta2,
            direction_momentum: self.beta1,
            ..RuleNumbers::default()
        }
    }

    fn validate(&self) -> Result<(), Error> {
        require_share(self, "beta1", self.beta1)?;
        let in_range = self.beta2 > 0.0 && self.beta2 < 1.0;
        require(in_range, || owner(self), "beta2", self.beta2, "above 0 and below 1")
    }

    fn reference(&self, step: &mut RuleStep) -> Vec<f64> {
        let (beta1, beta2) = (f64::from(self.beta1), f64::from(self.beta2));
        let (last, _) = step.next_momentum(beta2, 1.0 - beta2);
        let mixed = last.iter().zip(step.g).map(|(&m, &g)| step.mix(beta1, m, 1.0 - beta1, g));
        mixed.map(reference::sign).collect()
    }
}

/// Direction from the signs of the gradient mixed into the momentum.
pub(crate) struct MixedSigns;

impl HostRule for MixedSigns {
    const TRAITS: Traits = Traits { features: &["lion"], momentum: true, sign: true, ..Traits::PLAIN };

    #[inline(always)]
    fn direction(update: &Update, g: f32, last: f32, _: f32, _: f32) -> f32 {
        sign(update.momentum * last + (1.0 - update.momentum) * g)
    }

    /// Computes the direction from m_{t-1} = β₂ m_{t-2} + (1-β₂) g_{t-1}, because β₂ times β₁ m_{t-2} + (1-β₁) g_{t-1}
    /// has the same sign as the direction.
    #[inline(always)]
    fn last_direction(step: &LastStep) -> f32 {
        let (beta_1, beta_2) = (step.numbers.direction_momentum, step.numbers.momentum);
        sign(beta_1 * step.m + (beta_2 - beta_1) * step.clipped)
    }
}
