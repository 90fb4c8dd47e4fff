//! Update rules: what direction a step takes. How long the step is, is the [regime](crate::Regime)'s business.

use crate::error::{Error, require};

/// How a gradient `g` becomes a direction `u`; the step is `w ← w - η u`.
///
/// Semantics are those of `torch.optim` where it has the rule. State is per parameter (4 bytes for the momentum rules, 8 for AdamW, 4 with `β₁ = 0`) and
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
    /// Adam (Kingma & Ba, arXiv:1412.6980, algorithm 1), which with a [`WeightDecay::Decoupled`] is AdamW (Loshchilov & Hutter,
    /// arXiv:1711.05101, algorithm 2), as `torch.optim.AdamW` has it: `m ← β₁ m + (1-β₁) g`, `v ← β₂ v + (1-β₂) g²`, and at the k-th
    /// step that was not skipped `u = m/(1-β₁ᵏ) / (√v/√(1-β₂ᵏ) + ε)`.
    ///
    /// The decay is the group's own: PyTorch's default is 0.01
    /// ([`decoupled_weight_decay(0.01)`](crate::OptimizerBuilder::decoupled_weight_decay)), here it is none.
    ///
    /// - The bias corrections follow on the device from the group's exact count of steps, however long the run.
    /// - The direction's elements are about 1 and no longer shrink with the gradient, so that the regimes treat it as one of signs
    ///   ([`Rule::is_scale_free`]); the secant regimes, the distances of DoG and DoWG and the telemetry see the step that was really
    ///   taken.
    /// - ε is an absolute size: a loss rescaled by a power of two changes the direction where `√v` is not far above ε. The norm, the
    ///   alignment and all that a regime makes of them stay as they were, bit for bit. A [`LossScaler`](crate::LossScaler) is divided
    ///   out before.
    /// - v is a square: of |g| below about 1e-22 f32 makes a zero, as in PyTorch, which does not matter beside an ε above 1e-18. An
    ///   element above 1.8e19 counts as 1.8e19, whose square f32 can hold; in PyTorch its v would be infinite, and it would never move
    ///   again. So no finite gradient makes a step that is not finite.
    /// - With `β₁ = 0` no m is kept: `u = g / (√v/√(1-β₂ᵏ) + ε)`, with 4 bytes per parameter for v alone. The rule then counts as one
    ///   without momentum: Seesaw measures its alignment by direction counters, as for [`Rule::Sgd`].
    AdamW {
        /// β₁ in `[0, 1)`; 0.9 in PyTorch. 0 keeps no momentum.
        beta1: f32,
        /// β₂ in `[0, 1)`; 0.999 in PyTorch.
        beta2: f32,
        /// ε, finite, above 0 and not denormal; 1e-8 in PyTorch. (PyTorch takes 0 too, and makes NaN of a gradient of 0 with it.)
        epsilon: f32,
    },
    /// Lion (Chen et al. 2023, arXiv:2302.06675, program 1): `u = sign(β₁ m + (1-β₁) g)`, then `m ← β₂ m + (1-β₂) g`. Its decay, too, is
    /// a decoupled one, and is the group's.
    Lion {
        /// β₁ in `[0, 1)`; 0.9 in the paper.
        beta1: f32,
        /// β₂ in `(0, 1)`; 0.99 in the paper.
        beta2: f32,
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

    /// Adam with PyTorch's β₁ = 0.9, β₂ = 0.999, ε = 1e-8. It is AdamW with a decoupled weight decay.
    pub fn adamw() -> Self {
        Rule::AdamW {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
        }
    }

    /// Adam with `β₁ = 0`, which keeps no momentum, only a mean of squares; β₂ = 0.999 and ε = 1e-8 as in [`Rule::adamw`]. It is what
    /// [`Averaging::ScheduleFree`](crate::Averaging::ScheduleFree) makes schedule-free AdamW of.
    pub fn adamw_without_momentum() -> Self {
        Rule::AdamW {
            beta1: 0.0,
            beta2: 0.999,
            epsilon: 1e-8,
        }
    }

    /// Lion with the paper's β₁ = 0.9, β₂ = 0.99.
    pub fn lion() -> Self {
        Rule::Lion {
            beta1: 0.9,
            beta2: 0.99,
        }
    }

    /// Every kind of rule with its usual numbers, for those who go over them all; μ and β are 0.9.
    pub fn all() -> Vec<Self> {
        vec![
            Rule::sgd(),
            Rule::sgdm(0.9),
            Rule::nesterov(0.9),
            Rule::sign_sgd(),
            Rule::signum(0.9),
            Rule::adamw(),
            Rule::lion(),
        ]
    }

    /// The rule's name as records, tables and the command line write it: `sgd`, `sgdm`, `nesterov`, `signsgd`,
    /// `signum`, `adamw`, `lion`.
    pub fn name(&self) -> &'static str {
        match self {
            Rule::Sgd => "sgd",
            Rule::Sgdm {
                nesterov: false, ..
            } => "sgdm",
            Rule::Sgdm { nesterov: true, .. } => "nesterov",
            Rule::SignSgd => "signsgd",
            Rule::Signum { .. } => "signum",
            Rule::AdamW { .. } => "adamw",
            Rule::Lion { .. } => "lion",
        }
    }

    /// Whether the rule keeps a momentum `m` (4 bytes per parameter). AdamW with `β₁ = 0` does not.
    pub fn has_momentum(&self) -> bool {
        match *self {
            Rule::Sgd | Rule::SignSgd => false,
            Rule::Sgdm { .. } | Rule::Signum { .. } | Rule::Lion { .. } => true,
            Rule::AdamW { beta1, .. } => beta1 != 0.0,
        }
    }

    /// Whether the rule keeps a mean of squares `v` (4 bytes more).
    pub fn has_second_moment(&self) -> bool {
        matches!(self, Rule::AdamW { .. })
    }

    /// Whether the direction is a vector of signs, so that its length is √d whatever the gradient.
    pub fn is_sign(&self) -> bool {
        matches!(
            self,
            Rule::SignSgd | Rule::Signum { .. } | Rule::Lion { .. }
        )
    }

    /// Whether the direction does not shrink with the gradient: the rules of signs, and AdamW. To the regimes its length is √d; AdamW's
    /// first direction has that length, and later ones are no longer but for a short while after the gradient grew.
    pub fn is_scale_free(&self) -> bool {
        self.is_sign() || self.has_second_moment()
    }

    /// The share of the old momentum in the new one: μ, β, β₁ of AdamW, β₂ of Lion; 0 for the rules without momentum.
    pub fn momentum(&self) -> f32 {
        match *self {
            Rule::Sgdm { momentum, .. }
            | Rule::Signum { momentum }
            | Rule::AdamW {
                beta1: momentum, ..
            }
            | Rule::Lion {
                beta2: momentum, ..
            } => momentum,
            Rule::Sgd | Rule::SignSgd => 0.0,
        }
    }

    /// Refuses numbers outside their ranges.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let owner = || format!("rule {}", self.name());
        let share = |field, share: f32| {
            require(
                (0.0..1.0).contains(&share),
                owner,
                field,
                share,
                "at least 0 and below 1",
            )
        };
        match *self {
            Rule::Sgd | Rule::SignSgd => {}
            Rule::Sgdm { momentum, .. } | Rule::Signum { momentum } => share("momentum", momentum)?,
            Rule::AdamW {
                beta1,
                beta2,
                epsilon,
            } => {
                share("beta1", beta1)?;
                share("beta2", beta2)?;
                require(
                    epsilon.is_finite() && epsilon >= f32::MIN_POSITIVE,
                    owner,
                    "epsilon",
                    epsilon,
                    "finite, above 0 and not denormal (1e-8 in PyTorch)",
                )?;
            }
            Rule::Lion { beta1, beta2 } => {
                share("beta1", beta1)?;
                require(
                    beta2 > 0.0 && beta2 < 1.0,
                    owner,
                    "beta2",
                    beta2,
                    "above 0 and below 1",
                )?;
            }
        }
        if let Rule::Sgdm {
            momentum,
            dampening,
            nesterov,
        } = *self
        {
            share("dampening", dampening)?;
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

/// The largest element of a gradient that AdamW takes as it is: its square is within f32, with some room.
pub(crate) const LARGEST_SQUARED: f32 = 1.8e19;

/// -ln β, as large as it ever matters where β is 0.
pub(crate) fn decay_of(beta: f32) -> f32 {
    (-f64::from(beta).ln()).min(128.0) as f32
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
