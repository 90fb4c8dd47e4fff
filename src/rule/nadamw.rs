//! NAdamW, which is AdamW with Nesterov momentum. Its device code is `shaders/rule/nadamw.wgsl`.

use super::{
    AdamW, HostRule, LARGEST_SQUARED, LastStep, Rule, RuleKind, Traits, UpdateRule, WeightDecay, owner, preconditioned, require_share,
};
use crate::averaging::Averaging;
use crate::error::{Error, require};
use crate::layout::{RuleNumbers, Update};
use crate::reference::RuleStep;

/// AdamW with Nesterov momentum (Dozat 2016, with a constant β₁), as in `optax.nadamw`: the moments of [`AdamW`], and
/// `u = (β₁ m/(1-β₁ᵏ⁺¹) + (1-β₁) g/(1-β₁ᵏ)) / (√v/√(1-β₂ᵏ) + ε)` at the k-th step that was not skipped. It keeps m and
/// v, 8 bytes per parameter.
///
/// The steps of `torch.optim.NAdam` differ, because it raises β₁ over the first steps (`momentum_decay`).
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct NAdamW {
    /// β₁ in `(0, 1)`. optax uses 0.9.
    pub beta1: f32,
    /// β₂ in `[0, 1)`. optax uses 0.999.
    pub beta2: f32,
    /// ε, finite, above 0 and not denormal. optax uses 1e-8.
    pub epsilon: f32,
}

impl Default for NAdamW {
    /// Returns NAdamW with β₁ = 0.9, β₂ = 0.999, ε = 1e-8.
    fn default() -> Self {
        NAdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }
}

impl Rule {
    /// Returns NAdamW with β₁ = 0.9, β₂ = 0.999 and ε = 1e-8. The weight decay is AdamW's 0.01 unless the group sets
    /// another.
    pub fn nadamw() -> Self {
        Rule::NAdamW(NAdamW::default())
    }
}

pub(super) fn examples() -> [NAdamW; 1] {
    [NAdamW::default()]
}

impl NAdamW {
    /// Returns AdamW with the same numbers.
    fn moments(&self) -> AdamW {
        AdamW { beta1: self.beta1, beta2: self.beta2, epsilon: self.epsilon }
    }
}

impl UpdateRule for NAdamW {
    fn name(&self) -> &'static str {
        "nadamw"
    }

    fn summary(&self) -> &'static str {
        "AdamW with Nesterov momentum, optax's defaults and AdamW's decay"
    }

    fn with_momentum(&self, _: f32) -> Rule {
        Rule::NAdamW(*self)
    }

    fn usual_weight_decay(&self) -> WeightDecay {
        self.moments().usual_weight_decay()
    }

    fn kind(&self) -> RuleKind {
        RuleKind::NAdamW
    }

    fn first_step(&self, averaging: &Averaging) -> f32 {
        self.moments().first_step(averaging)
    }

    fn numbers(&self) -> RuleNumbers {
        self.moments().numbers()
    }

    fn validate(&self) -> Result<(), Error> {
        require_share(self, "beta1", self.beta1)?;
        let expected = "above 0 (with 0 it is AdamW without momentum)";
        require(self.beta1 > 0.0, || owner(self), "beta1", self.beta1, expected)?;
        self.moments().validate_as(self)
    }

    fn reference(&self, step: &mut RuleStep) -> Vec<f64> {
        let (beta1, beta2) = (f64::from(self.beta1), f64::from(self.beta2));
        let g: Vec<f64> = step.g.iter().map(|g| g.clamp(-1.8e19, 1.8e19)).collect();
        let step = &mut RuleStep { g: &g, moments: step.moments, ..*step };
        let (_, m) = step.next_momentum(beta1, 1.0 - beta1);
        let v = step.next_squares(beta2, 1.0 - beta2);
        let (now, next) = (1.0 - beta1.powf(step.k), 1.0 - beta1.powf(step.k + 1.0));
        let second = 1.0 - beta2.powf(step.k);
        let ahead = m.iter().zip(&g).map(|(m, g)| beta1 * m / next + (1.0 - beta1) * g / now);
        ahead.zip(&v).map(|(ahead, v)| ahead / ((v / second).sqrt() + f64::from(self.epsilon))).collect()
    }
}

/// Direction from the preconditioned momentum of the next step.
pub(crate) struct Ahead;

/// Computes β₁ m/(1-β₁ᵏ⁺¹) + (1-β₁) g/(1-β₁ᵏ). With `correction` c = 1/(1-β₁ᵏ), 1-β₁ᵏ⁺¹ is (1-β₁) + β₁/c.
#[inline(always)]
fn ahead(beta1: f32, correction: f32, m: f32, g: f32) -> f32 {
    let g = g.clamp(-LARGEST_SQUARED, LARGEST_SQUARED);
    let rest = 1.0 - beta1;
    (beta1 / (rest + beta1 / correction)) * m + (rest * correction) * g
}

impl HostRule for Ahead {
    const TRAITS: Traits = Traits { features: &["nadamw"], momentum: true, squares: true, ..Traits::PLAIN };

    #[inline(always)]
    fn direction(update: &Update, g: f32, _: f32, m: f32, v: f32) -> f32 {
        let ahead = ahead(update.momentum, update.first_correction, m, g);
        preconditioned(ahead, v, 1.0, update.second_correction, update.epsilon)
    }

    #[inline(always)]
    fn last_direction(step: &LastStep) -> f32 {
        let ahead = ahead(step.numbers.momentum, step.first_correction, step.m, step.clipped);
        preconditioned(ahead, step.v, 1.0, step.second_correction, step.numbers.epsilon)
    }
}
