//! Learning-rate regimes: they choose the learning rate on the device, from the gradients.

mod alignment;
mod distance;
mod loss;
mod norm;
mod secant;
mod streams;

pub use alignment::{Hypergradient, Seesaw};
pub use distance::{DoG, DoWG};
pub use loss::{Ngn, Polyak};
pub use norm::{AdaGradNorm, NormRatio};
pub use secant::{AdGd, BarzilaiBorwein, SecantForm};
pub use streams::AutoSgd;

use crate::averaging::Averaging;
use crate::error::{Error, require};
use crate::layout::regime_kinds;
use crate::rule::Rule;
use crate::schedule::Schedule;

/// The regime that sets a group's learning rate η, once per step, from that step's reductions.
///
/// Notation: `n` is the norm of the gradient, `n̂ = max(√EMA_β(n²), n, φ mean(n))` the smoothed norm (bias-corrected; the
/// mean is over all steps, the last 65,536 at most, and n counts in it as no more than 10 n̂ of the step before), `a` the alignment
/// of the gradient with where the optimizer has been going, `u` the direction of the step, `s = -η u` the step itself. Every
/// regime but [`Regime::Fixed`] clamps each rise of `ln η` to ln 10, and those but [`Seesaw`], [`NormRatio`] and [`Hypergradient`] each
/// fall as well; all clamp η to `[1e-30, 1e30]`, and carry it over when the gradient is zero or not finite. A
/// [`Schedule`](crate::Schedule) multiplies what the regime says.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Regime {
    /// The default: uses the gradient norm and the alignment, with nothing to tune. See [`Seesaw`].
    Seesaw(Seesaw),
    /// Uses the gradient norm alone. See [`NormRatio`].
    NormRatio(NormRatio),
    /// Uses the alignment alone. See [`Hypergradient`].
    Hypergradient(Hypergradient),
    /// Uses the learning rate that the caller gives, in every step.
    Fixed {
        /// η, above 0.
        learning_rate: f32,
    },
    /// Divides by the root of the sum of squared norms. See [`AdaGradNorm`].
    AdaGradNorm(AdaGradNorm),
    /// Estimates the curvature from the last step. See [`BarzilaiBorwein`].
    BarzilaiBorwein(BarzilaiBorwein),
    /// Estimates the curvature from the last step, with bounded growth. See [`AdGd`].
    AdGd(AdGd),
    /// Divides the distance from the start by the gradients. See [`DoG`].
    DoG(DoG),
    /// Divides the distance from the start by weighted gradients. See [`DoWG`].
    DoWG(DoWG),
    /// Divides the loss by the squared norm. See [`Polyak`].
    Polyak(Polyak),
    /// Uses the loss and the squared norm, with a largest rate. See [`Ngn`].
    Ngn(Ngn),
    /// Compares the losses of three parameter streams at three rates. See [`AutoSgd`].
    AutoSgd(AutoSgd),
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

    /// [`AdaGradNorm`] with scale 1 and offset 0.
    pub fn adagrad_norm() -> Self {
        Regime::AdaGradNorm(AdaGradNorm::default())
    }

    /// [`BarzilaiBorwein`] in this form.
    pub fn barzilai_borwein(form: SecantForm) -> Self {
        Regime::BarzilaiBorwein(BarzilaiBorwein::new(form))
    }

    /// [`AdGd`], starting from the automatic first step.
    pub fn adgd() -> Self {
        Regime::AdGd(AdGd::default())
    }

    /// [`DoG`] with `ε = 1e-6`.
    pub fn dog() -> Self {
        Regime::DoG(DoG::default())
    }

    /// [`DoWG`] with `ε = 1e-6`.
    pub fn dowg() -> Self {
        Regime::DoWG(DoWG::default())
    }

    /// [`Polyak`] with `f* = 0` and `c = 1/2`.
    pub fn polyak() -> Self {
        Regime::Polyak(Polyak::default())
    }

    /// [`Ngn`] with `σ = 1`.
    pub fn ngn() -> Self {
        Regime::Ngn(Ngn::default())
    }

    /// [`AutoSgd`], starting from the automatic first step.
    pub fn auto_sgd() -> Self {
        Regime::AutoSgd(AutoSgd::default())
    }

    /// Returns the name that records, tables and the command line use.
    pub fn name(&self) -> &'static str {
        match self {
            Regime::Seesaw(_) => "seesaw",
            Regime::NormRatio(_) => "norm-ratio",
            Regime::Hypergradient(_) => "hypergradient",
            Regime::Fixed { .. } => "fixed",
            Regime::AdaGradNorm(_) => "adagrad-norm",
            Regime::BarzilaiBorwein(BarzilaiBorwein { form, .. }) => match form {
                SecantForm::Long => "bb-long",
                SecantForm::Short => "bb-short",
                SecantForm::Geometric => "bb-geometric",
            },
            Regime::AdGd(_) => "adgd",
            Regime::DoG(_) => "dog",
            Regime::DoWG(_) => "dowg",
            Regime::Polyak(_) => "polyak",
            Regime::Ngn(_) => "ngn",
            Regime::AutoSgd(_) => "auto-sgd",
        }
    }

    /// Returns true if the regime uses the alignment of the gradient with past directions. Rules without momentum then keep one byte of
    /// direction memory per parameter.
    pub fn needs_alignment(&self) -> bool {
        self.gain() > 0.0
    }

    /// Returns true if the last gradient is kept: 4 bytes per parameter.
    pub fn needs_last_gradient(&self) -> bool {
        matches!(self, Regime::BarzilaiBorwein(_) | Regime::AdGd(_))
    }

    /// Returns true if the first parameters are kept: 4 bytes per parameter.
    pub fn needs_first_parameters(&self) -> bool {
        matches!(self, Regime::DoG(_) | Regime::DoWG(_))
    }

    /// Returns true if the caller must provide the loss of every step.
    pub fn needs_loss(&self) -> bool {
        matches!(self, Regime::Polyak(_) | Regime::Ngn(_) | Regime::AutoSgd(_))
    }

    /// Returns true if three streams of parameters take turns, which takes 12 bytes per parameter.
    pub fn needs_streams(&self) -> bool {
        matches!(self, Regime::AutoSgd(_))
    }

    /// Returns true if the regime supports this rule. [`AutoSgd`] needs three copies of the rule's memory and rejects rules with momentum or a
    /// second moment. All other combinations can be built.
    pub fn fits(&self, rule: &Rule) -> bool {
        !self.needs_streams() || !(rule.has_momentum() || rule.has_second_moment())
    }

    /// Returns false for combinations that are known to fail: they can be built, but diverged or nearly so on every problem they were tried
    /// on. [`OptimizerBuilder::warnings`](crate::OptimizerBuilder::warnings) reports them.
    ///
    /// - DoG and DoWG assume that the direction is as long as the gradient. Momentum makes it many times longer, so that the distance and
    ///   with it the rate grow without bound. AdamW's direction does not grow, and works.
    /// - Polyak fails with [`Rule::Sgdm`] for the same reason. Rules whose direction does not grow with the momentum work.
    /// - BarzilaiBorwein assumes that the step is along the gradient; with momentum it is not.
    ///
    /// Regimes that compare gradients of different mini-batches may fail for that reason too. That depends on the data and is not reported.
    pub fn suits(&self, rule: &Rule) -> bool {
        let momentum = rule.momentum() > 0.0;
        match self {
            Regime::DoG(_) | Regime::DoWG(_) => !momentum || rule.has_second_moment(),
            Regime::Polyak(_) => !momentum || rule.is_scale_free(),
            Regime::BarzilaiBorwein(_) => !momentum,
            _ => true,
        }
    }

    /// Returns false for schedules that are known to fail: regimes that use the alignment fail under a schedule that rises over more than a
    /// tenth of the steps. [`Schedule::InverseSqrt`] has no number of steps and always returns true.
    pub fn suits_schedule(&self, schedule: &Schedule) -> bool {
        let rises = match *schedule {
            Schedule::WarmupCosine { .. } => true,
            Schedule::OneCycle { first, .. } => first < 1.0,
            _ => false,
        };
        let rise = 10 * u64::from(schedule.rise());
        !(self.needs_alignment() && rises && rise > u64::from(schedule.steps()))
    }

    /// Returns true if the first rate is derived from the length of the first step, which needs `‖w₀‖` once.
    pub fn needs_initial_norm(&self) -> bool {
        match self {
            Regime::AdaGradNorm(_) | Regime::Polyak(_) | Regime::Ngn(_) => false,
            _ => self.initial_rate().is_none(),
        }
    }

    /// Returns η of the first step if the caller gave it.
    pub fn initial_rate(&self) -> Option<f32> {
        match *self {
            Regime::Fixed { learning_rate } => Some(learning_rate),
            Regime::NormRatio(NormRatio { initial_rate: rate, .. })
            | Regime::BarzilaiBorwein(BarzilaiBorwein { initial_rate: rate, .. })
            | Regime::AdGd(AdGd { initial_rate: rate, .. })
            | Regime::AutoSgd(AutoSgd { initial_rate: rate, .. }) => rate,
            _ => None,
        }
    }

    /// Returns the exponent `p` of the norm term `p ln(n̂_{t-1}/n̂_t)`.
    pub fn exponent(&self) -> f32 {
        match *self {
            Regime::Seesaw(Seesaw { exponent, .. }) | Regime::NormRatio(NormRatio { exponent, .. }) => exponent,
            _ => 0.0,
        }
    }

    /// Returns the exponent `p` of the norm term while the smoothed norm is above its first value, see [`Seesaw`].
    pub fn exponent_above(&self, rule: &Rule) -> f32 {
        match *self {
            Regime::Seesaw(Seesaw { exponent_above, .. }) if !rule.is_scale_free() => exponent_above,
            _ => self.exponent(),
        }
    }

    /// Returns the gain `κ` of the alignment term `κ_t (n/n̂) a`, see [`Seesaw`].
    pub fn gain(&self) -> f32 {
        match *self {
            Regime::Seesaw(Seesaw { gain, .. }) | Regime::Hypergradient(Hypergradient { gain, .. }) => gain,
            _ => 0.0,
        }
    }

    /// Returns `h`, which sets how slowly the alignment's gain falls in the first steps, see [`Seesaw`].
    pub fn early_steps(&self) -> f32 {
        match *self {
            Regime::Seesaw(Seesaw { early_steps, .. }) | Regime::Hypergradient(Hypergradient { early_steps, .. }) => {
                early_steps
            }
            _ => 0.0,
        }
    }

    /// Returns the weight `β` of the past in the moving average of `n²`.
    pub fn smoothing(&self) -> f32 {
        match *self {
            Regime::Seesaw(Seesaw { smoothing, .. })
            | Regime::NormRatio(NormRatio { smoothing, .. })
            | Regime::Hypergradient(Hypergradient { smoothing, .. }) => smoothing,
            _ => 0.9,
        }
    }

    /// Returns `φ`: n̂ never falls below this share of the mean norm.
    pub fn norm_floor(&self) -> f32 {
        match *self {
            Regime::Seesaw(Seesaw { norm_floor, .. })
            | Regime::NormRatio(NormRatio { norm_floor, .. })
            | Regime::Hypergradient(Hypergradient { norm_floor, .. }) => norm_floor,
            _ => Seesaw::default().norm_floor,
        }
    }

    /// Returns how far two successive steps may contradict each other before the brake acts: `min(0, a_fast + slack)`.
    pub fn brake_slack(&self) -> f32 {
        match *self {
            Regime::Seesaw(Seesaw { brake_slack, .. }) => brake_slack,
            _ => Seesaw::default().brake_slack,
        }
    }

    /// Returns `ε` of the first step's length `ε (1 + ‖w₀‖)` for this rule and average; 0 if the regime does not use it.
    pub fn first_step(&self, rule: &Rule, averaging: &Averaging) -> f32 {
        match *self {
            Regime::Seesaw(Seesaw { first_step, .. })
            | Regime::NormRatio(NormRatio { first_step, .. })
            | Regime::Hypergradient(Hypergradient { first_step, .. }) => {
                first_step.unwrap_or_else(|| rule.first_step(averaging))
            }
            Regime::BarzilaiBorwein(BarzilaiBorwein { first_step, .. })
            | Regime::AdGd(AdGd { first_step, .. })
            | Regime::AutoSgd(AutoSgd { first_step, .. }) => first_step,
            Regime::DoG(DoG { initial_distance }) | Regime::DoWG(DoWG { initial_distance }) => initial_distance,
            Regime::Fixed { .. } | Regime::AdaGradNorm(_) | Regime::Polyak(_) | Regime::Ngn(_) => 0.0,
        }
    }

    /// Returns the number by which the learning-rate pass selects the formula: one of [`regime_kinds`].
    pub(crate) fn kind(&self) -> u32 {
        match self {
            Regime::Seesaw(_) | Regime::NormRatio(_) | Regime::Hypergradient(_) | Regime::Fixed { .. } => {
                regime_kinds::SEESAW
            }
            Regime::AdaGradNorm(_) => regime_kinds::ADAGRAD_NORM,
            Regime::BarzilaiBorwein(BarzilaiBorwein { form, .. }) => match form {
                SecantForm::Long => regime_kinds::SECANT_LONG,
                SecantForm::Short => regime_kinds::SECANT_SHORT,
                SecantForm::Geometric => regime_kinds::SECANT_GEOMETRIC,
            },
            Regime::AdGd(_) => regime_kinds::ADGD,
            Regime::DoG(_) => regime_kinds::DOG,
            Regime::DoWG(_) => regime_kinds::DOWG,
            Regime::Polyak(_) => regime_kinds::POLYAK,
            Regime::Ngn(_) => regime_kinds::NGN,
            Regime::AutoSgd(_) => regime_kinds::AUTO_SGD,
        }
    }

    /// c of AdaGradNorm and Polyak, σ of Ngn: what the formula is multiplied or divided by; C of AutoSgd.
    pub(crate) fn scale(&self) -> f32 {
        match *self {
            Regime::AdaGradNorm(AdaGradNorm { scale, .. }) => scale,
            Regime::Polyak(Polyak { factor, .. }) => factor,
            Regime::Ngn(Ngn { rate }) => rate,
            Regime::AutoSgd(AutoSgd { factor, .. }) => factor,
            _ => 1.0,
        }
    }

    /// b₀ of AdaGradNorm, f* of Polyak, the least t of AutoSgd.
    pub(crate) fn offset(&self) -> f32 {
        match *self {
            Regime::AdaGradNorm(AdaGradNorm { offset, .. }) => offset,
            Regime::Polyak(Polyak { optimum, .. }) => optimum,
            Regime::AutoSgd(AutoSgd { certainty, .. }) => certainty,
            _ => 0.0,
        }
    }

    /// The most rounds that an episode of AutoSgd compares.
    pub(crate) fn rounds(&self) -> u32 {
        match *self {
            Regime::AutoSgd(AutoSgd { rounds, .. }) => rounds,
            _ => 0,
        }
    }

    /// The largest factor by which one step changes η.
    pub(crate) fn max_change(&self) -> f32 {
        match *self {
            Regime::BarzilaiBorwein(BarzilaiBorwein { max_change, .. }) => max_change.min(MAX_FACTOR),
            _ => MAX_FACTOR,
        }
    }

    /// The largest η.
    pub(crate) fn max_rate(&self) -> f32 {
        match *self {
            Regime::Polyak(Polyak { max_rate, .. }) => max_rate.min(RATE_MAX),
            _ => RATE_MAX,
        }
    }

    /// Refuses numbers outside their ranges.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let owner = || format!("regime {}", self.name());
        let finite_at_least_0 = |x: f32| x.is_finite() && x >= 0.0;
        // Above, their products with logarithms leave the fixed point that the device adds them up in.
        let factor = |x: f32| (0.0..=LARGEST_FACTOR).contains(&x);
        let above_0 = |field, value: f32| {
            require(
                value.is_finite() && value >= f32::MIN_POSITIVE,
                owner,
                field,
                value,
                "finite, above 0 and not denormal",
            )
        };
        require(factor(self.exponent()), owner, "exponent", self.exponent(), "between 0 and 1e6")?;
        // The rule is one to which the exponent matters.
        let exponent_above = self.exponent_above(&Rule::Sgd);
        require(factor(exponent_above), owner, "exponent_above", exponent_above, "between 0 and 1e6")?;
        require(factor(self.gain()), owner, "gain", self.gain(), "between 0 and 1e6")?;
        require(
            finite_at_least_0(self.early_steps()),
            owner,
            "early_steps",
            self.early_steps(),
            "finite and at least 0",
        )?;
        require(
            (0.0..1.0).contains(&self.smoothing()),
            owner,
            "smoothing",
            self.smoothing(),
            "at least 0 and below 1",
        )?;
        require((0.0..=1.0).contains(&self.norm_floor()), owner, "norm_floor", self.norm_floor(), "between 0 and 1")?;
        require(
            finite_at_least_0(self.brake_slack()),
            owner,
            "brake_slack",
            self.brake_slack(),
            "finite and at least 0",
        )?;
        match *self {
            Regime::AdaGradNorm(AdaGradNorm { scale, offset }) => {
                above_0("scale", scale)?;
                require(finite_at_least_0(offset), owner, "offset", offset, "finite and at least 0")
            }
            Regime::Polyak(Polyak { optimum, factor, max_rate }) => {
                require(optimum.is_finite(), owner, "optimum", optimum, "finite")?;
                above_0("factor", factor)?;
                require(max_rate >= RATE_MIN, owner, "max_rate", max_rate, "at least 1e-30 (f32::INFINITY for none)")
            }
            Regime::Ngn(Ngn { rate }) => {
                require((RATE_MIN..=RATE_MAX).contains(&rate), owner, "rate", rate, "between 1e-30 and 1e30")
            }
            Regime::BarzilaiBorwein(BarzilaiBorwein { max_change, .. }) => {
                require(
                    max_change.is_finite() && max_change > 1.0,
                    owner,
                    "max_change",
                    max_change,
                    "finite and above 1",
                )?;
                self.validate_first_step()
            }
            Regime::AutoSgd(AutoSgd { factor, certainty, rounds, .. }) => {
                require(factor > 1.0 && factor <= MAX_FACTOR, owner, "factor", factor, "above 1 and at most 10")?;
                require(finite_at_least_0(certainty), owner, "certainty", certainty, "finite and at least 0")?;
                require(
                    (AutoSgd::FIRST_LOOK..=AutoSgd::MOST_ROUNDS).contains(&rounds),
                    owner,
                    "rounds",
                    rounds,
                    "between 4 and 65536",
                )?;
                self.validate_first_step()
            }
            _ => self.validate_first_step(),
        }
    }

    fn validate_first_step(&self) -> Result<(), Error> {
        let owner = || format!("regime {}", self.name());
        let field = match self {
            Regime::DoG(_) | Regime::DoWG(_) => "initial_distance",
            _ => "first_step",
        };
        match self.initial_rate() {
            Some(rate) => require(
                rate.is_finite() && (RATE_MIN..=RATE_MAX).contains(&rate),
                owner,
                "learning rate",
                rate,
                "between 1e-30 and 1e30",
            ),
            None => {
                // What a rule says is in range.
                let first_step = self.first_step(&Rule::Sgd, &Averaging::Off);
                require(first_step.is_finite() && first_step > 0.0, owner, field, first_step, "finite and above 0")
            }
        }
    }
}

/// The smallest learning rate a regime may set.
pub const RATE_MIN: f32 = 1e-30;
/// The largest learning rate a regime may set.
pub const RATE_MAX: f32 = 1e30;
/// The largest exponent and gain.
const LARGEST_FACTOR: f32 = 1e6;
/// The largest factor by which one step changes η.
const MAX_FACTOR: f32 = 10.0;
/// The largest rise of `ln η` in one step, and the largest fall of the regimes that say what η is: a factor of ten.
pub const MAX_CHANGE: f32 = std::f32::consts::LN_10;
