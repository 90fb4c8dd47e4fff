//! SGD with momentum. Its device code is `shaders/rule/sgdm.wgsl`.

use super::{HostRule, LastStep, Rule, RuleKind, Traits, UpdateRule, owner, require_share};
use crate::averaging::Averaging;
use crate::error::{Error, require};
use crate::layout::{RuleNumbers, Update};
use crate::reference::RuleStep;

/// SGD with momentum (heavy ball, Polyak 1964): `m ← μ m + (1-δ) g`, and `u = m`, or `u = g + μ m` with Nesterov. It
/// keeps m, 4 bytes per parameter.
///
/// As in PyTorch, the first step sets `m = g` without dampening.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct Sgdm {
    /// μ in `[0, 1)`.
    pub momentum: f32,
    /// δ in `[0, 1)`. The default is 0, as in PyTorch.
    pub dampening: f32,
    /// True for Nesterov momentum, which needs `momentum > 0` and `dampening = 0`.
    pub nesterov: bool,
}

impl Rule {
    /// Returns SGD with heavy-ball momentum `μ` and no dampening.
    pub fn sgdm(momentum: f32) -> Self {
        Rule::Sgdm(Sgdm { momentum, dampening: 0.0, nesterov: false })
    }

    /// Returns SGD with Nesterov momentum `μ`.
    pub fn nesterov(momentum: f32) -> Self {
        Rule::Sgdm(Sgdm { momentum, dampening: 0.0, nesterov: true })
    }
}

pub(super) fn examples() -> [Sgdm; 2] {
    [false, true].map(|nesterov| Sgdm { momentum: 0.9, dampening: 0.0, nesterov })
}

impl UpdateRule for Sgdm {
    fn name(&self) -> &'static str {
        if self.nesterov { "nesterov" } else { "sgdm" }
    }

    fn summary(&self) -> &'static str {
        if self.nesterov { "SGD with Nesterov momentum" } else { "SGD with heavy-ball momentum" }
    }

    fn with_momentum(&self, momentum: f32) -> Rule {
        Rule::Sgdm(Self { momentum, ..*self })
    }

    fn kind(&self) -> RuleKind {
        if self.nesterov { RuleKind::Nesterov } else { RuleKind::Sgdm }
    }

    /// Returns ε. With momentum, a gradient moves the parameters (1 - δ)/(1 - μ) times as far as its first step does.
    fn first_step(&self, _: &Averaging) -> f32 {
        (0.105 * (1.0 - self.momentum) / (1.0 - self.dampening)).min(0.05)
    }

    fn numbers(&self) -> RuleNumbers {
        RuleNumbers {
            momentum: self.momentum,
            // Without momentum, dampening has no effect, as in PyTorch.
            gradient_share: if self.momentum == 0.0 { 1.0 } else { 1.0 - self.dampening },
            direction_momentum: self.momentum,
            ..RuleNumbers::default()
        }
    }

    fn validate(&self) -> Result<(), Error> {
        require_share(self, "momentum", self.momentum)?;
        require_share(self, "dampening", self.dampening)?;
        let owner = || owner(self);
        require(
            !self.nesterov || self.momentum > 0.0,
            owner,
            "momentum",
            self.momentum,
            "above 0 for Nesterov momentum",
        )?;
        require(
            !self.nesterov || self.dampening == 0.0,
            owner,
            "dampening",
            self.dampening,
            "0 for Nesterov momentum",
        )
    }

    fn reference(&self, step: &mut RuleStep) -> Vec<f64> {
        let (mu, share) = (f64::from(self.momentum), 1.0 - f64::from(self.dampening));
        let m = match step.moments.m.take() {
            None => step.g.to_vec(),
            Some(m) => m.iter().zip(step.g).map(|(&m, &g)| step.mix(mu, m, share, g)).collect(),
        };
        step.moments.m = Some(m.clone());
        if self.nesterov { step.g.iter().zip(&m).map(|(g, m)| g + mu * m).collect() } else { m }
    }
}

const TRAITS: Traits = Traits { momentum: true, momentum_from_gradient: true, ..Traits::PLAIN };

/// Direction that is the momentum.
pub(crate) struct HeavyBall;

impl HostRule for HeavyBall {
    const TRAITS: Traits = Traits { features: &["sgdm"], ..TRAITS };

    #[inline(always)]
    fn direction(_: &Update, _: f32, _: f32, m: f32, _: f32) -> f32 {
        m
    }

    #[inline(always)]
    fn last_direction(step: &LastStep) -> f32 {
        step.momentum_scale * step.m
    }
}

/// Direction from the gradient and the momentum.
pub(crate) struct Nesterov;

impl HostRule for Nesterov {
    const TRAITS: Traits = Traits { features: &["sgdm", "nesterov"], ..TRAITS };

    #[inline(always)]
    fn direction(update: &Update, g: f32, _: f32, m: f32, _: f32) -> f32 {
        g + update.momentum * m
    }

    #[inline(always)]
    fn last_direction(step: &LastStep) -> f32 {
        step.momentum_scale * step.clipped + step.numbers.momentum * (step.momentum_scale * step.m)
    }
}
