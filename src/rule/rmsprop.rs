//! RMSprop. It uses the kernels of AdamW without momentum, with bias corrections of 1.

use super::{Rule, RuleKind, UpdateRule, decay_of, require_epsilon, require_share};
use crate::averaging::Averaging;
use crate::error::Error;
use crate::layout::RuleNumbers;
use crate::reference::RuleStep;

/// RMSprop (Tieleman & Hinton 2012, lecture 6.5 of their course), as in `torch.optim.RMSprop` without momentum and not
/// centred: `v ← α v + (1-α) g²`, `u = g / (√v + ε)`. It keeps v, 4 bytes per parameter.
///
/// There is no bias correction: the first directions are 1/√(1-α) times as long as later ones, ten times with the
/// default. The first rate allows for it. Otherwise regimes treat the rule like [`AdamW`](crate::AdamW) with `β₁ = 0`:
/// it has no momentum, and its direction does not shrink with the gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct RmsProp {
    /// α in `[0, 1)`, the weight of the old mean of squares. PyTorch uses 0.99.
    pub alpha: f32,
    /// ε, finite, above 0 and not denormal. PyTorch uses 1e-8.
    pub epsilon: f32,
}

impl Default for RmsProp {
    /// Returns RMSprop with PyTorch's α = 0.99, ε = 1e-8.
    fn default() -> Self {
        RmsProp { alpha: 0.99, epsilon: 1e-8 }
    }
}

impl Rule {
    /// Returns RMSprop with PyTorch's α = 0.99, ε = 1e-8.
    pub fn rmsprop() -> Self {
        Rule::RmsProp(RmsProp::default())
    }
}

pub(super) fn examples() -> [RmsProp; 1] {
    [RmsProp::default()]
}

impl UpdateRule for RmsProp {
    fn name(&self) -> &'static str {
        "rmsprop"
    }

    fn summary(&self) -> &'static str {
        "RMSprop with PyTorch's defaults, without momentum"
    }

    fn with_momentum(&self, _: f32) -> Rule {
        Rule::RmsProp(*self)
    }

    fn kind(&self) -> RuleKind {
        RuleKind::AdamWWithoutMomentum
    }

    fn first_step(&self, _: &Averaging) -> f32 {
        0.05 * (1.0 - self.alpha).sqrt()
    }

    fn numbers(&self) -> RuleNumbers {
        RuleNumbers {
            square_keep: self.alpha,
            square_share: 1.0 - self.alpha,
            // Bias corrections of 1.
            first_decay: decay_of(0.0),
            second_decay: decay_of(0.0),
            epsilon: self.epsilon,
            ..RuleNumbers::default()
        }
    }

    fn validate(&self) -> Result<(), Error> {
        require_share(self, "alpha", self.alpha)?;
        require_epsilon(self, self.epsilon, "finite, above 0 and not denormal (1e-8 in PyTorch)")
    }

    fn reference(&self, step: &mut RuleStep) -> Vec<f64> {
        let g: Vec<f64> = step.g.iter().map(|g| g.clamp(-1.8e19, 1.8e19)).collect();
        let step = &mut RuleStep { g: &g, moments: step.moments, ..*step };
        let v = step.next_squares(f64::from(self.alpha), 1.0 - f64::from(self.alpha));
        g.iter().zip(&v).map(|(g, v)| g / (v.sqrt() + f64::from(self.epsilon))).collect()
    }
}
