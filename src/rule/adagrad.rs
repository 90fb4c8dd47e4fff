//! Adagrad. Its kernels are those of AdamW without momentum, whose bias corrections its numbers make 1.

use super::{Rule, RuleKind, UpdateRule, decay_of, require_epsilon};
use crate::averaging::Averaging;
use crate::error::Error;
use crate::layout::RuleNumbers;
use crate::reference::RuleStep;

/// Adagrad (Duchi, Hazan & Singer 2011, JMLR 12), as `torch.optim.Adagrad` has it with a sum that begins at 0: `v ← v + g²`,
/// `u = g / (√v + ε)`. Keeps v, 4 bytes per parameter.
///
/// Its directions shrink with the number of steps. PyTorch's `lr_decay` is a [`Schedule`](crate::Schedule) here. It is a rule without momentum
/// that does not shrink with the gradient, as [`AdamW`](crate::AdamW) with `β₁ = 0`. [`AdaGradNorm`](crate::AdaGradNorm) is a regime: one rate
/// for a group, where this rule has one for each parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub struct Adagrad {
    /// ε, finite, above 0 and not denormal; 1e-10 in PyTorch.
    pub epsilon: f32,
}

impl Default for Adagrad {
    /// PyTorch's ε = 1e-10.
    fn default() -> Self {
        Adagrad { epsilon: 1e-10 }
    }
}

impl Rule {
    /// Returns Adagrad with PyTorch's ε = 1e-10.
    pub fn adagrad() -> Self {
        Rule::Adagrad(Adagrad::default())
    }
}

pub(super) fn examples() -> [Adagrad; 1] {
    [Adagrad::default()]
}

impl UpdateRule for Adagrad {
    fn name(&self) -> &'static str {
        "adagrad"
    }

    fn summary(&self) -> &'static str {
        "Adagrad with PyTorch's defaults"
    }

    fn with_momentum(&self, _: f32) -> Rule {
        Rule::Adagrad(*self)
    }

    fn kind(&self) -> RuleKind {
        RuleKind::AdamWWithoutMomentum
    }

    fn first_step(&self, _: &Averaging) -> f32 {
        0.05
    }

    fn numbers(&self) -> RuleNumbers {
        RuleNumbers {
            square_keep: 1.0,
            square_share: 1.0,
            // The corrections are 1.
            first_decay: decay_of(0.0),
            second_decay: decay_of(0.0),
            epsilon: self.epsilon,
            ..RuleNumbers::default()
        }
    }

    fn validate(&self) -> Result<(), Error> {
        require_epsilon(self, self.epsilon, "finite, above 0 and not denormal (1e-10 in PyTorch)")
    }

    fn reference(&self, step: &mut RuleStep) -> Vec<f64> {
        let g: Vec<f64> = step.g.iter().map(|g| g.clamp(-1.8e19, 1.8e19)).collect();
        let step = &mut RuleStep { g: &g, moments: step.moments, ..*step };
        let v = step.next_squares(1.0, 1.0);
        g.iter().zip(&v).map(|(g, v)| g / (v.sqrt() + f64::from(self.epsilon))).collect()
    }
}
