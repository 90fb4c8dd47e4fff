//! Update rules: they turn a gradient into the direction of a step. The [regime](crate::Regime) chooses the learning rate.

use crate::error::{Error, require};

/// Update rule: turns a gradient `g` into a direction `u`. The step is `w ← w - η u`.
///
/// Rules that `torch.optim` has take the same steps. The optimizer keeps their memory in buffers of its own: 4 bytes per parameter for
/// rules with momentum, 8 for AdamW, 4 for AdamW with `β₁ = 0`.
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
    /// - The bias corrections are computed on the device from the group's exact count of steps.
    /// - The direction's elements are about 1 and do not shrink with the gradient, so that the regimes treat it like a direction of signs
    ///   ([`Rule::is_scale_free`]). The secant regimes, the distances of DoG and DoWG and the telemetry use the actual step.
    /// - Because of ε the rule is not scale-invariant: a loss rescaled by a power of two changes the direction where `√v` is not far above ε.
    ///   The norm, the alignment and the regime's decisions keep their bits. A [`LossScaler`](crate::LossScaler) is divided out before.
    /// - g² underflows to 0 in f32 for |g| below about 1e-22, as in PyTorch. That does not matter beside an ε above 1e-18. An element above
    ///   1.8e19 counts as 1.8e19, whose square f32 can hold. (In PyTorch its v becomes infinite and the parameter never moves again.) No
    ///   finite gradient makes a step that is not finite.
    /// - With `β₁ = 0` no m is kept: `u = g / (√v/√(1-β₂ᵏ) + ε)`, with 4 bytes per parameter for v. The rule then counts as one without
    ///   momentum, so that Seesaw measures its alignment against direction counters, as for [`Rule::Sgd`].
    AdamW {
        /// β₁ in `[0, 1)`; 0.9 in PyTorch. 0 keeps no momentum.
        beta1: f32,
        /// β₂ in `[0, 1)`; 0.999 in PyTorch.
        beta2: f32,
        /// ε, finite, above 0 and not denormal; 1e-8 in PyTorch. (PyTorch takes 0 too, and makes NaN of a gradient of 0 with it.)
        epsilon: f32,
    },
    /// Lion (Chen et al. 2023, arXiv:2302.06675, program 1): `u = sign(β₁ m + (1-β₁) g)`, then `m ← β₂ m + (1-β₂) g`. The paper's decay is the
    /// decoupled one; set it on the group.
    Lion {
        /// β₁ in `[0, 1)`; 0.9 in the paper.
        beta1: f32,
        /// β₂ in `(0, 1)`; 0.99 in the paper.
        beta2: f32,
    },
}

impl Rule {
    /// Returns plain SGD.
    pub fn sgd() -> Self {
        Rule::Sgd
    }

    /// Returns SGD with heavy-ball momentum `μ` and no dampening.
    pub fn sgdm(momentum: f32) -> Self {
        Rule::Sgdm { momentum, dampening: 0.0, nesterov: false }
    }

    /// Returns SGD with Nesterov momentum `μ`.
    pub fn nesterov(momentum: f32) -> Self {
        Rule::Sgdm { momentum, dampening: 0.0, nesterov: true }
    }

    /// Returns signSGD.
    pub fn sign_sgd() -> Self {
        Rule::SignSgd
    }

    /// Returns Signum with momentum `β`.
    pub fn signum(momentum: f32) -> Self {
        Rule::Signum { momentum }
    }

    /// Returns Adam with PyTorch's β₁ = 0.9, β₂ = 0.999, ε = 1e-8. With a decoupled weight decay it is AdamW; it has none of its own.
    pub fn adamw() -> Self {
        Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }

    /// Returns Adam with `β₁ = 0`, which keeps a mean of squares and no momentum; β₂ = 0.999 and ε = 1e-8 as in [`Rule::adamw`]. With
    /// [`Averaging::ScheduleFree`](crate::Averaging::ScheduleFree) it is schedule-free AdamW.
    pub fn adamw_without_momentum() -> Self {
        Rule::AdamW { beta1: 0.0, beta2: 0.999, epsilon: 1e-8 }
    }

    /// Returns Lion with the paper's β₁ = 0.9, β₂ = 0.99.
    pub fn lion() -> Self {
        Rule::Lion { beta1: 0.9, beta2: 0.99 }
    }

    /// Returns one rule of every kind with its usual constants, to iterate over. μ and β are 0.9.
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

    /// Returns the name that records, tables and the command line use: `sgd`, `sgdm`, `nesterov`, `signsgd`,
    /// `signum`, `adamw`, `lion`.
    pub fn name(&self) -> &'static str {
        match self {
            Rule::Sgd => "sgd",
            Rule::Sgdm { nesterov: false, .. } => "sgdm",
            Rule::Sgdm { nesterov: true, .. } => "nesterov",
            Rule::SignSgd => "signsgd",
            Rule::Signum { .. } => "signum",
            Rule::AdamW { .. } => "adamw",
            Rule::Lion { .. } => "lion",
        }
    }

    /// Returns true if the rule keeps a momentum `m` (4 bytes per parameter). AdamW with `β₁ = 0` does not.
    pub fn has_momentum(&self) -> bool {
        match *self {
            Rule::Sgd | Rule::SignSgd => false,
            Rule::Sgdm { .. } | Rule::Signum { .. } | Rule::Lion { .. } => true,
            Rule::AdamW { beta1, .. } => beta1 != 0.0,
        }
    }

    /// Returns true if the rule keeps a mean of squares `v` (4 bytes per parameter).
    pub fn has_second_moment(&self) -> bool {
        matches!(self, Rule::AdamW { .. })
    }

    /// Returns true if the direction is a vector of signs, whose length is √d for every gradient.
    pub fn is_sign(&self) -> bool {
        matches!(self, Rule::SignSgd | Rule::Signum { .. } | Rule::Lion { .. })
    }

    /// Returns true if the direction does not shrink with the gradient: sign rules and AdamW. Regimes take its length to be √d. AdamW's first
    /// direction has that length, and later ones are longer only for a short while after the gradient has grown.
    pub fn is_scale_free(&self) -> bool {
        self.is_sign() || self.has_second_moment()
    }

    /// Returns the share of the old momentum in the new one: μ, β, β₁ of AdamW, β₂ of Lion; 0 for rules without momentum.
    pub fn momentum(&self) -> f32 {
        match *self {
            Rule::Sgdm { momentum, .. }
            | Rule::Signum { momentum }
            | Rule::AdamW { beta1: momentum, .. }
            | Rule::Lion { beta2: momentum, .. } => momentum,
            Rule::Sgd | Rule::SignSgd => 0.0,
        }
    }

    /// Refuses numbers outside their ranges.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let owner = || format!("rule {}", self.name());
        let share =
            |field, share: f32| require((0.0..1.0).contains(&share), owner, field, share, "at least 0 and below 1");
        match *self {
            Rule::Sgd | Rule::SignSgd => {}
            Rule::Sgdm { momentum, .. } | Rule::Signum { momentum } => share("momentum", momentum)?,
            Rule::AdamW { beta1, beta2, epsilon } => {
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
                require(beta2 > 0.0 && beta2 < 1.0, owner, "beta2", beta2, "above 0 and below 1")?;
            }
        }
        if let Rule::Sgdm { momentum, dampening, nesterov } = *self {
            share("dampening", dampening)?;
            if nesterov {
                require(momentum > 0.0, owner, "momentum", momentum, "above 0 for Nesterov momentum")?;
                require(dampening == 0.0, owner, "dampening", dampening, "0 for Nesterov momentum")?;
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

/// Weight decay: pulls parameters towards zero by `λ` per unit of learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub enum WeightDecay {
    /// Coupled: `g ← g + λ w` before everything else, as `torch.optim.SGD(weight_decay=λ)`. The regime sees the gradient of the regularised
    /// loss. The first pass then reads the parameters too (4 more bytes per parameter).
    Coupled(f32),
    /// Decoupled: `w ← w (1 - η λ)` before the step, as in AdamW (Loshchilov & Hutter, arXiv:1711.05101). The regime does not see it.
    Decoupled(f32),
}

impl WeightDecay {
    /// Returns λ of the coupled form, 0 otherwise.
    pub fn coupled(&self) -> f32 {
        match *self {
            WeightDecay::Coupled(lambda) => lambda,
            WeightDecay::Decoupled(_) => 0.0,
        }
    }

    /// Returns λ of the decoupled form, 0 otherwise.
    pub fn decoupled(&self) -> f32 {
        match *self {
            WeightDecay::Decoupled(lambda) => lambda,
            WeightDecay::Coupled(_) => 0.0,
        }
    }
}
