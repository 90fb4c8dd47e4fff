//! Adagrad. It uses the kernels of AdamW without momentum, with bias corrections of 1.

use super::{Rule, RuleKind, UpdateRule, decay_of, require_epsilon};
use crate::averaging::Averaging;
use crate::error::Error;
use crate::layout::RuleNumbers;
use crate::reference::RuleStep;

/// Adagrad (Duchi, Hazan & Singer 2011, JMLR 12), as in `torch.optim.Adagrad` with a sum that begins at 0: `v ← v +
/// g²`, `u = g / (√v + ε)`. It keeps v, 4 bytes per parameter.
///
/// The directions shrink with the number of steps. In place of PyTorch's `lr_decay`, use a
/// [`Schedule`](crate::Schedule). Regimes treat the rule like [`AdamW`](crate::AdamW) with `β₁ = 0`: it has no
/// momentum, and its direction does not shrink with the gradient. [`AdaGradNorm`](crate::AdaGradNorm) is a regime with
/// one rate per group, where this rule scales each parameter separately.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct Adagrad {
    /// ε, finite, above 0 and not denormal. PyTorch uses 1e-10.
    pub epsilon: f32,
}

impl Default for Adagrad {
    /// Returns Adagrad with PyTorch's ε = 1e-10.
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
            // Bias corrections of 1.
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
