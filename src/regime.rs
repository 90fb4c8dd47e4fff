//! Learning-rate regimes: how long a step is, decided on the device from the gradients.

use crate::error::{Error, require};

/// The regime that sets a group's learning rate η, once per step, from that step's reductions.
///
/// Notation: `n` is the norm of the gradient, `n̂ = max(√EMA_β(n²), n)` the smoothed norm (bias-corrected), `a` the alignment
/// of the gradient with where the optimizer has been going. Every regime except [`Regime::Fixed`] starts with a step of
/// length `ε (1 + ‖w₀‖)` in parameter space unless told otherwise, clamps each change of `ln η` to ±ln 10 and η to
/// `[1e-30, 1e30]`, and carries η over when the gradient is zero or not finite.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Regime {
    /// The default: norm and alignment, nothing to tune. See [`Seesaw`].
    Seesaw(Seesaw),
    /// The norm alone. See [`NormRatio`].
    NormRatio(NormRatio),
    /// The alignment alone. See [`Hypergradient`].
    Hypergradient(Hypergradient),
    /// The learning rate the caller gives, step after step.
    Fixed {
        /// η, above 0.
        learning_rate: f32,
    },
}

impl Default for Regime {
    fn default() -> Self {
        Regime::seesaw()
    }
}

impl Regime {
    /// [`Seesaw`] with its constants.
    pub fn seesaw() -> Self {
        Regime::Seesaw(Seesaw::default())
    }

    /// [`NormRatio`] with exponent 1 and smoothing 0.9, starting from the automatic first step.
    pub fn norm_ratio() -> Self {
        Regime::NormRatio(NormRatio::default())
    }

    /// [`Hypergradient`] with gain 0.1.
    pub fn hypergradient() -> Self {
        Regime::Hypergradient(Hypergradient::default())
    }

    /// A fixed learning rate η.
    pub fn fixed(learning_rate: f32) -> Self {
        Regime::Fixed { learning_rate }
    }

    /// The regime's name as records, tables and the command line write it.
    pub fn name(&self) -> &'static str {
        match self {
            Regime::Seesaw(_) => "seesaw",
            Regime::NormRatio(_) => "norm-ratio",
            Regime::Hypergradient(_) => "hypergradient",
            Regime::Fixed { .. } => "fixed",
        }
    }

    /// Whether pass 1 must measure the alignment of the gradient with past directions (one byte per parameter of direction
    /// memory for rules without momentum).
    pub fn needs_alignment(&self) -> bool {
        self.gain() > 0.0
    }

    /// Whether the first rate comes from the length of the first step, so that pass 1 must measure `‖w₀‖` once.
    pub fn needs_initial_norm(&self) -> bool {
        self.initial_rate().is_none()
    }

    /// η of the first step, where the caller gave it.
    pub fn initial_rate(&self) -> Option<f32> {
        match *self {
            Regime::Fixed { learning_rate } => Some(learning_rate),
            Regime::NormRatio(NormRatio {
                initial_rate: rate, ..
            }) => rate,
            Regime::Seesaw(_) | Regime::Hypergradient(_) => None,
        }
    }

    /// `p` of the norm term `p ln(n̂_{t-1}/n̂_t)`.
    pub fn exponent(&self) -> f32 {
        match *self {
            Regime::Seesaw(Seesaw { exponent, .. })
            | Regime::NormRatio(NormRatio { exponent, .. }) => exponent,
            Regime::Hypergradient(_) | Regime::Fixed { .. } => 0.0,
        }
    }

    /// `κ` of the alignment term `κ (n/n̂) a`.
    pub fn gain(&self) -> f32 {
        match *self {
            Regime::Seesaw(Seesaw { gain, .. })
            | Regime::Hypergradient(Hypergradient { gain, .. }) => gain,
            Regime::NormRatio(_) | Regime::Fixed { .. } => 0.0,
        }
    }

    /// `β` of the moving average of `n²`.
    pub fn smoothing(&self) -> f32 {
        match *self {
            Regime::Seesaw(Seesaw { smoothing, .. })
            | Regime::NormRatio(NormRatio { smoothing, .. })
            | Regime::Hypergradient(Hypergradient { smoothing, .. }) => smoothing,
            Regime::Fixed { .. } => 0.9,
        }
    }

    /// How far two successive steps may contradict each other before the brake acts: `min(0, a_fast + slack)`.
    pub fn brake_slack(&self) -> f32 {
        match *self {
            Regime::Seesaw(Seesaw { brake_slack, .. }) => brake_slack,
            _ => Seesaw::default().brake_slack,
        }
    }

    /// `ε` of the first step's length `ε (1 + ‖w₀‖)`.
    pub fn first_step(&self) -> f32 {
        match *self {
            Regime::Seesaw(Seesaw { first_step, .. })
            | Regime::NormRatio(NormRatio { first_step, .. })
            | Regime::Hypergradient(Hypergradient { first_step, .. }) => first_step,
            Regime::Fixed { .. } => 0.0,
        }
    }

    /// Refuses numbers outside their ranges.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let owner = || format!("regime {}", self.name());
        let finite_at_least_0 = |x: f32| x.is_finite() && x >= 0.0;
        require(
            finite_at_least_0(self.exponent()),
            owner,
            "exponent",
            self.exponent(),
            "finite and at least 0",
        )?;
        require(
            finite_at_least_0(self.gain()),
            owner,
            "gain",
            self.gain(),
            "finite and at least 0",
        )?;
        require(
            (0.0..1.0).contains(&self.smoothing()),
            owner,
            "smoothing",
            self.smoothing(),
            "at least 0 and below 1",
        )?;
        require(
            finite_at_least_0(self.brake_slack()),
            owner,
            "brake_slack",
            self.brake_slack(),
            "finite and at least 0",
        )?;
        match self.initial_rate() {
            Some(rate) => require(
                rate.is_finite() && (RATE_MIN..=RATE_MAX).contains(&rate),
                owner,
                "learning rate",
                rate,
                "between 1e-30 and 1e30",
            ),
            None => require(
                self.first_step().is_finite() && self.first_step() > 0.0,
                owner,
                "first_step",
                self.first_step(),
                "finite and above 0",
            ),
        }
    }
}

/// The smallest learning rate a regime may set.
pub const RATE_MIN: f32 = 1e-30;
/// The largest learning rate a regime may set.
pub const RATE_MAX: f32 = 1e30;
/// The largest change of `ln η` in one step: a factor of ten.
pub const MAX_CHANGE: f32 = std::f32::consts::LN_10;

/// Norm and alignment: `ln η ← ln η + p ln(n̂_{t-1}/n̂_t) + κ (n/n̂) a`.
///
/// The learning rate rises as the gradient norm falls and falls as it rises (Z. Yang, arXiv:2508.13639, gives the idea; the
/// formula is this project's own derivation from the secant equation). `a = a_slow + min(0, a_fast + slack)`:
/// - rules with momentum: `a_slow = ⟨g, m⟩ / (‖g‖ ‖m‖)` and no brake;
/// - rules without: a direction memory of one byte per parameter, `q ← clamp(q + sign g, -7, 7)` and the sign of the last
///   step; `a_slow = ⟨g, q⟩ / (‖g‖ ‖q‖)`, `a_fast = ⟨g, sign u_{t-1}⟩ / ‖g‖₁`.
///
/// The defaults are constants of the method, chosen once; they are fields so that they can be studied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seesaw {
    /// `p = 1/2`, between a fixed rate (0) and a fixed step length (1).
    pub exponent: f32,
    /// `κ = 0.1`.
    pub gain: f32,
    /// `β = 0.9`.
    pub smoothing: f32,
    /// `slack = 0.4`.
    pub brake_slack: f32,
    /// `ε = 1e-2`: the first step has length `ε (1 + ‖w₀‖)`.
    pub first_step: f32,
}

impl Default for Seesaw {
    fn default() -> Self {
        Seesaw {
            exponent: 0.5,
            gain: 0.1,
            smoothing: 0.9,
            brake_slack: 0.4,
            first_step: 1e-2,
        }
    }
}

/// The norm alone: `ln η ← ln η + p ln(n̂_{t-1}/n̂_t)`, so that `η_t = η_0 (n̂_0/n̂_t)^p`; no memory per parameter.
///
/// The smoothed norm takes the larger of average and present value: the rate drops at once when the norm jumps and recovers
/// slowly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormRatio {
    /// η of the first step; `None` takes it from the first step's length.
    pub initial_rate: Option<f32>,
    /// `p = 1`.
    pub exponent: f32,
    /// `β = 0.9`.
    pub smoothing: f32,
    /// `ε = 1e-2`, used where `initial_rate` is `None`.
    pub first_step: f32,
}

impl Default for NormRatio {
    fn default() -> Self {
        NormRatio {
            initial_rate: None,
            exponent: 1.0,
            smoothing: 0.9,
            first_step: 1e-2,
        }
    }
}

/// The alignment alone: [`Seesaw`] with `p = 0`, in the spirit of hypergradient descent (Baydin et al. 2018,
/// arXiv:1703.04782), multiplicative and with the cosine weighted by `n/n̂`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hypergradient {
    /// `κ = 0.1`.
    pub gain: f32,
    /// `β = 0.9`, of the smoothed norm in the weight `n/n̂`.
    pub smoothing: f32,
    /// `ε = 1e-2`.
    pub first_step: f32,
}

impl Default for Hypergradient {
    fn default() -> Self {
        Hypergradient {
            gain: 0.1,
            smoothing: 0.9,
            first_step: 1e-2,
        }
    }
}
