//! AMSGrad. Its device code is `shaders/rule/amsgrad.wgsl`.

use super::{AdamW, HostRule, LastStep, Rule, RuleKind, Traits, UpdateRule, WeightDecay, preconditioned};
use crate::averaging::Averaging;
use crate::error::Error;
use crate::layout::{RuleNumbers, Update};
use crate::reference::RuleStep;

/// AMSGrad (Reddi, Kale & Kumar, ICLR 2018, arXiv:1904.09237, algorithm 2), as in `torch.optim.AdamW(amsgrad=True)`:
/// the moments of [`AdamW`], `v̂ ← max(v̂, v)` from 0, and `u = m/(1-β₁ᵏ) / (√v̂/√(1-β₂ᵏ) + ε)` at the k-th step that
/// was not skipped. It keeps m, v and v̂, 12 bytes per parameter.
///
/// - The maximum is taken before the bias correction, as in PyTorch. (optax takes it afterwards.)
/// - A large gradient shortens all later steps of its element. AdamW forgets it after about 1/(1-β₂) steps.
/// - The default weight decay, the range of gradients and the treatment by regimes are those of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct AmsGrad {
    /// β₁ in `[0, 1)`. PyTorch uses 0.9. With 0 the momentum is the last gradient and still takes memory.
    pub beta1: f32,
    /// β₂ in `[0, 1)`. PyTorch uses 0.999.
    pub beta2: f32,
    /// ε, finite, above 0 and not denormal. PyTorch uses 1e-8.
    pub epsilon: f32,
}

impl Default for AmsGrad {
    /// Returns AMSGrad with PyTorch's β₁ = 0.9, β₂ = 0.999, ε = 1e-8.
    fn default() -> Self {
        AmsGrad { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }
}

impl Rule {
    /// Returns AMSGrad with PyTorch's β₁ = 0.9, β₂ = 0.999 and ε = 1e-8. The weight decay is AdamW's 0.01 unless the
    /// group sets another.
    pub fn amsgrad() -> Self {
        Rule::AmsGrad(AmsGrad::default())
    }
}

pub(super) fn examples() -> [AmsGrad; 1] {
    [AmsGrad::default()]
}

impl AmsGrad {
    /// Returns AdamW with the same numbers.
    fn moments(&self) -> AdamW {
        AdamW { beta1: self.beta1, beta2: self.beta2, epsilon: self.epsilon }
    }
}

impl UpdateRule for AmsGrad {
    fn name(&self) -> &'static str {
        "amsgrad"
    }

    fn summary(&self) -> &'static str {
        "AdamW that divides by the largest second moment so far (AMSGrad), PyTorch's defaults"
    }

    fn with_momentum(&self, _: f32) -> Rule {
        Rule::AmsGrad(*self)
    }

    fn usual_weight_decay(&self) -> WeightDecay {
        self.moments().usual_weight_decay()
    }

    fn kind(&self) -> RuleKind {
        RuleKind::AmsGrad
    }

    fn first_step(&self, averaging: &Averaging) -> f32 {
        self.moments().first_step(averaging)
    }

    fn numbers(&self) -> RuleNumbers {
        self.moments().numbers()
    }

    fn validate(&self) -> Result<(), Error> {
        self.moments().validate_as(self)
    }

    fn reference(&self, step: &mut RuleStep) -> Vec<f64> {
        let (beta1, beta2) = (f64::from(self.beta1), f64::from(self.beta2));
        let g: Vec<f64> = step.g.iter().map(|g| g.clamp(-1.8e19, 1.8e19)).collect();
        let step = &mut RuleStep { g: &g, moments: step.moments, ..*step };
        let (_, m) = step.next_momentum(beta1, 1.0 - beta1);
        let v = step.next_squares(beta2, 1.0 - beta2);
        let last = step.moments.largest_v.take().unwrap_or_else(|| vec![0.0; v.len()]);
        let largest: Vec<f64> = last.iter().zip(&v).map(|(last, v)| last.max(*v)).collect();
        let (first, second) = (1.0 - beta1.powf(step.k), 1.0 - beta2.powf(step.k));
        let u = m.iter().zip(&largest).map(|(m, v)| m / first / ((v / second).sqrt() + f64::from(self.epsilon)));
        let u = u.collect();
        step.moments.largest_v = Some(largest);
        u
    }
}

/// Direction from the momentum, preconditioned by the largest v.
pub(crate) struct LargestSecondMoment;

impl HostRule for LargestSecondMoment {
    const TRAITS: Traits =
        Traits { features: &["amsgrad"], momentum: true, squares: true, largest_squares: true, ..Traits::PLAIN };

    #[inline(always)]
    fn direction(update: &Update, _: f32, _: f32, m: f32, v: f32) -> f32 {
        preconditioned(m, v, update.first_correction, update.second_correction, update.epsilon)
    }

    #[inline(always)]
    fn last_direction(step: &LastStep) -> f32 {
        preconditioned(step.m, step.v, step.first_correction, step.second_correction, step.numbers.epsilon)
    }
}
