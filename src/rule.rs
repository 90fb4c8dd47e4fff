//! Update rules: what direction a step takes. How long the step is, is the [regime](crate::Regime)'s business.

use crate::error::{Error, require};

/// How a gradient `g` becomes a direction `u`; the step is `w ← w - η u`.
///
/// Semantics are those of `torch.optim` where it has the rule. State is per parameter (4 bytes for the momentum rules) and
/// lives beside the optimizer, not in the caller's buffers.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Rule {
    /// Stochastic gradient descent: `u = g`.
    Sgd,
    /// SGD with momentum (heavy ball, Polyak 1964): `m ← μ m + (1-δ) g`, `u = m`; with Nesterov `u = g + μ m`.
    ///
    /// As in PyTorch, the very first step sets `m = g` without dampening.
    Sgdm {
        /// μ in `[0, 1)`.
        momentum: f32,
        /// δ in `[0, 1)`; 0 in PyTorch and here by default.
        dampening: f32,
        /// Look ahead along the momentum; needs `momentum > 0` and `dampening = 0`.
        nesterov: bool,
    },
    /// signSGD: `u = sign(g)`, `sign(0) = 0` (Bernstein et al. 2018, arXiv:1802.04434, algorithm 1).
    SignSgd,
    /// Signum: `m ← β m + (1-β) g`, `u = sign(m)` (arXiv:1802.04434, algorithm 2).
    Signum {
        /// β in `[0, 1)`.
        momentum: f32,
    },
}

impl Rule {
    /// Plain SGD.
    pub fn sgd() -> Self {
        Rule::Sgd
    }

    /// SGD with heavy-ball momentum `μ`, no dampening.
    pub fn sgdm(momentum: f32) -> Self {
        Rule::Sgdm {
            momentum,
            dampening: 0.0,
            nesterov: false,
        }
    }

    /// SGD with Nesterov momentum `μ`.
    pub fn nesterov(momentum: f32) -> Self {
        Rule::Sgdm {
            momentum,
            dampening: 0.0,
            nesterov: true,
        }
    }

    /// signSGD.
    pub fn sign_sgd() -> Self {
        Rule::SignSgd
    }

    /// Signum with momentum `β`.
    pub fn signum(momentum: f32) -> Self {
        Rule::Signum { momentum }
    }

    /// The rule's name as records, tables and the command line write it: `sgd`, `sgdm`, `nesterov`, `signsgd`,
    /// `signum`.
    pub fn name(&self) -> &'static str {
        match self {
            Rule::Sgd => "sgd",
            Rule::Sgdm {
                nesterov: false, ..
            } => "sgdm",
            Rule::Sgdm { nesterov: true, .. } => "nesterov",
            Rule::SignSgd => "signsgd",
            Rule::Signum { .. } => "signum",
        }
    }

    /// Whether the rule keeps a momentum `m` (4 bytes per parameter).
    pub fn has_momentum(&self) -> bool {
        matches!(self, Rule::Sgdm { .. } | Rule::Signum { .. })
    }

    /// Whether the direction is a vector of signs, so that its length is √d whatever the gradient.
    pub fn is_sign(&self) -> bool {
        matches!(self, Rule::SignSgd | Rule::Signum { .. })
    }

    /// μ or β of the momentum rules, 0 for the others.
    pub fn momentum(&self) -> f32 {
        match *self {
            Rule::Sgdm { momentum, .. } | Rule::Signum { momentum } => momentum,
            Rule::Sgd | Rule::SignSgd => 0.0,
        }
    }

    /// Refuses numbers outside their ranges.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let owner = || format!("rule {}", self.name());
        if self.has_momentum() {
            let momentum = self.momentum();
            require(
                (0.0..1.0).contains(&momentum),
                owner,
                "momentum",
                momentum,
                "at least 0 and below 1",
            )?;
        }
        if let Rule::Sgdm {
            momentum,
            dampening,
            nesterov,
        } = *self
        {
            require(
                (0.0..1.0).contains(&dampening),
                owner,
                "dampening",
                dampening,
                "at least 0 and below 1",
            )?;
            if nesterov {
                require(
                    momentum > 0.0,
                    owner,
                    "momentum",
                    momentum,
                    "above 0 for Nesterov momentum",
                )?;
                require(
                    dampening == 0.0,
                    owner,
                    "dampening",
                    dampening,
                    "0 for Nesterov momentum",
                )?;
            }
        }
        Ok(())
    }
}

/// Pulling parameters towards zero by `λ` per unit of learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub enum WeightDecay {
    /// `g ← g + λ w` before everything else, as `torch.optim.SGD(weight_decay=λ)`: the regime sees the gradient of the
    /// regularised loss. Pass 1 then reads the parameters too (4 more bytes per parameter).
    Coupled(f32),
    /// `w ← w (1 - η λ)` before the step, as in AdamW (Loshchilov & Hutter, arXiv:1711.05101). The regime does not see it.
    Decoupled(f32),
}

impl WeightDecay {
    /// λ of the coupled form, 0 otherwise.
    pub fn coupled(&self) -> f32 {
        match *self {
            WeightDecay::Coupled(lambda) => lambda,
            WeightDecay::Decoupled(_) => 0.0,
        }
    }

    /// λ of the decoupled form, 0 otherwise.
    pub fn decoupled(&self) -> f32 {
        match *self {
            WeightDecay::Decoupled(lambda) => lambda,
            WeightDecay::Coupled(_) => 0.0,
        }
    }
}
