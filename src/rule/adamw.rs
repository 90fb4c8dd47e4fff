//! AdamW. Its device code is `shaders/rule/adamw.wgsl`.

use super::{
    HostRule, LARGEST_SQUARED, LastStep, Rule, RuleKind, Traits, UpdateRule, WeightDecay, decay_of, preconditioned, require_epsilon, require_share,
};
use crate::averaging::Averaging;
use crate::error::Error;
use crate::layout::{RuleNumbers, Update};
use crate::reference::RuleStep;

/// Adam (Kingma & Ba, arXiv:1412.6980, algorithm 1). With a [`WeightDecay::Decoupled`](crate::WeightDecay::Decoupled)
/// it is AdamW (Loshchilov & Hutter, arXiv:1711.05101, algorithm 2), as in `torch.optim.AdamW`: `m ← β₁ m + (1-β₁) g`,
/// `v ← β₂ v + (1-β₂) g²`, and at the k-th step that was not skipped `u = m/(1-β₁ᵏ) / (√v/√(1-β₂ᵏ) + ε)`. It keeps m
/// and v, 8 bytes per parameter.
///
/// If neither the group nor the builder sets a weight decay, the group has PyTorch's default, a decoupled decay of
/// 0.01. For Adam without decay call [`decoupled_weight_decay(0.0)`](crate::OptimizerBuilder::decoupled_weight_decay).
///
/// - The bias corrections are computed on the device from the group's exact count of steps.
/// - The direction's elements are about 1 and do not shrink with the gradient, so that regimes treat it like a
///   direction of signs ([`Rule::is_scale_free`]). The secant regimes, the distances of DoG and DoWG, and the telemetry
///   use the actual step.
/// - Because of ε the rule is not scale-invariant: rescaling the loss by a power of two changes the direction where
///   `√v` is not far above ε. The norm, the alignment and the regime's decisions keep their bits. A
///   [`LossScaler`](crate::LossScaler) is divided out before.
/// - g² underflows to 0 in f32 for |g| below about 1e-22, as in PyTorch. That does not matter if ε is above 1e-18. An
///   element above 1.8e19 counts as 1.8e19, whose square fits f32. (In PyTorch its v becomes infinite and the parameter
///   never moves again.) No finite gradient makes a step that is not finite.
/// - With `β₁ = 0` the rule keeps no m: `u = g / (√v/√(1-β₂ᵏ) + ε)`, with 4 bytes per parameter for v. It then counts
///   as a rule without momentum, and Seesaw measures its alignment against direction counters, as for
///   [`Sgd`](crate::Sgd).
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct AdamW {
    /// β₁ in `[0, 1)`. PyTorch uses 0.9. With 0 no momentum is kept.
    pub beta1: f32,
    /// β₂ in `[0, 1)`. PyTorch uses 0.999.
    pub beta2: f32,
    /// ε, finite, above 0 and not denormal. PyTorch uses 1e-8. (PyTorch also accepts 0, which turns a gradient of 0
    /// into NaN.)
    pub epsilon: f32,
}

impl Default for AdamW {
    /// Returns AdamW with PyTorch's β₁ = 0.9, β₂ = 0.999, ε = 1e-8.
    fn default() -> Self {
        AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }
}

impl Rule {
    /// Returns AdamW with PyTorch's β₁ = 0.9, β₂ = 0.999 and ε = 1e-8. The weight decay is 0.01 unless the group sets
    /// another.
    pub fn adamw() -> Self {
        Rule::AdamW(AdamW::default())
    }

    /// Returns AdamW with `β₁ = 0`, which keeps a mean of squares and no momentum. β₂ is 0.999 and ε is 1e-8, as in
    /// [`Rule::adamw`]. With [`Averaging::ScheduleFree`](crate::Averaging::ScheduleFree) it is schedule-free AdamW.
    pub fn adamw_without_momentum() -> Self {
        Rule::AdamW(AdamW { beta1: 0.0, ..AdamW::default() })
    }
}

pub(super) fn examples() -> [AdamW; 1] {
    [AdamW::default()]
}

impl AdamW {
    /// Returns an error, in the name of `rule`, if a number is outside its range.
    pub(super) fn validate_as(&self, rule: &dyn UpdateRule) -> Result<(), Error> {
        require_share(rule, "beta1", self.beta1)?;
        require_share(rule, "beta2", self.beta2)?;
        require_epsilon(rule, self.epsilon, "finite, above 0 and not denormal (1e-8 in PyTorch)")
    }
}

impl UpdateRule for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn summary(&self) -> &'static str {
        "AdamW with PyTorch's defaults, including a decoupled weight decay of 0.01; with beta1 = 0 if it is schedule-free"
    }

    fn with_momentum(&self, _: f32) -> Rule {
        Rule::AdamW(*self)
    }

    fn usual_weight_decay(&self) -> WeightDecay {
        WeightDecay::Decoupled(0.01)
    }

    fn kind(&self) -> RuleKind {
        if self.beta1 == 0.0 { RuleKind::AdamWWithoutMomentum } else { RuleKind::AdamW }
    }

    fn first_step(&self, _: &Averaging) -> f32 {
        0.05
    }

    fn numbers(&self) -> RuleNumbers {
        RuleNumbers {
            momentum: self.beta1,
            gradient_share: 1.0 - self.beta1,
            direction_momentum: self.beta1,
            square_keep: self.beta2,
            square_share: 1.0 - self.beta2,
            first_decay: decay_of(self.beta1),
            second_decay: decay_of(self.beta2),
            epsilon: self.epsilon,
            square_fall: 0.0,
        }
    }

    fn validate(&self) -> Result<(), Error> {
        self.validate_as(self)
    }

    fn reference(&self, step: &mut RuleStep) -> Vec<f64> {
        let (beta1, beta2) = (f64::from(self.beta1), f64::from(self.beta2));
        let g: Vec<f64> = step.g.iter().map(|g| g.clamp(-1.8e19, 1.8e19)).collect();
        let step = &mut RuleStep { g: &g, moments: step.moments, ..*step };
        let (_, m) = step.next_momentum(beta1, 1.0 - beta1);
        let v = step.next_squares(beta2, 1.0 - beta2);
        let (first, second) = (1.0 - beta1.powf(step.k), 1.0 - beta2.powf(step.k));
        m.iter().zip(&v).map(|(m, v)| m / first / ((v / second).sqrt() + f64::from(self.epsilon))).collect()
    }
}

/// Direction from the preconditioned momentum.
pub(crate) struct TwoMoments;

impl HostRule for TwoMoments {
    const TRAITS: Traits = Traits { features: &["adamw"], momentum: true, squares: true, ..Traits::PLAIN };

    #[inline(always)]
    fn direction(update: &Update, _: f32, _: f32, m: f32, v: f32) -> f32 {
        preconditioned(m, v, update.first_correction, update.second_correction, update.epsilon)
    }

    #[inline(always)]
    fn last_direction(step: &LastStep) -> f32 {
        preconditioned(step.m, step.v, step.first_correction, step.second_correction, step.numbers.epsilon)
    }
}

/// Direction from the preconditioned gradient.
pub(crate) struct SecondMoment;

impl HostRule for SecondMoment {
    const TRAITS: Traits = Traits { features: &["adamw"], squares: true, ..Traits::PLAIN };

    #[inline(always)]
    fn direction(update: &Update, g: f32, _: f32, _: f32, v: f32) -> f32 {
        let g = g.clamp(-LARGEST_SQUARED, LARGEST_SQUARED);
        preconditioned(g, v, update.first_correction, update.second_correction, update.epsilon)
    }

    #[inline(always)]
    fn last_direction(step: &LastStep) -> f32 {
        let g = step.clipped.clamp(-LARGEST_SQUARED, LARGEST_SQUARED);
        preconditioned(g, step.v, step.first_correction, step.second_correction, step.numbers.epsilon)
    }
}
