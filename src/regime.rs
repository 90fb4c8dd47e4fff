//! Learning-rate regimes, which set the learning rate on the device from the gradients.
//!
//! To add a regime, write a file in `src/regime/`, a file of the same name in `shaders/regime/`, a row in the table
//! below and a row in `shaders/learning_rate.wgsl`. The remaining files of both folders hold code that several regimes
//! share.

mod distance;
mod first_rate;
mod formula;
pub(crate) mod gradient;
mod secant;

use std::sync::LazyLock;

pub use auto_sgd::{Outcome, Stream};
pub use barzilai_borwein::SecantForm;
#[cfg(feature = "checkpoint")]
pub(crate) use curvature::is_look_due;
pub use curvature::{CurvatureForm, Look};

use crate::averaging::Averaging;
use crate::error::{Error, require};
use crate::layout::numbers;
use crate::layout::{Declared, GroupConstants, GroupState, RawRecord, RegimeConstants, RegimeState, ScopeSums, Update};
use crate::reference::RegimeReference;
use crate::rule::Rule;
use gradient::{Gradient, Turn};

/// Host side of a regime.
pub(crate) trait LearningRateRegime {
    /// Returns the name that records, tables and the command line use.
    fn name(&self) -> &'static str;

    /// Returns a one-line description of what the regime uses.
    fn summary(&self) -> &'static str;

    /// Returns the regime's formula, on the host and on the device.
    fn kernel(&self) -> &'static Kernel;

    /// Returns the quantities that the regime needs.
    fn needs(&self) -> Needs {
        Needs::NOTHING
    }

    /// Returns false for rules that the regime cannot be built with. The last direction of rules with passes of their
    /// own cannot be recovered from memory.
    fn fits(&self, rule: &Rule) -> bool {
        !(self.needs().last_gradient && rule.owns_passes())
    }

    /// Returns false for rules with which the regime is known to fail.
    fn suits(&self, _: &Rule) -> bool {
        true
    }

    /// Returns false if the rate does not depend on the gradients, so that they need not be measured.
    fn goes_by_gradients(&self) -> bool {
        true
    }

    /// Returns η of the first step, if the caller gave it.
    fn initial_rate(&self) -> Option<f32> {
        None
    }

    /// Returns ε of the first step's length `ε (1 + ‖w₀‖)`, or 0 if the regime does not use it.
    fn first_step(&self, rule: &Rule, averaging: &Averaging) -> f32;

    /// Returns β, the weight of the past in the moving average of n².
    fn smoothing(&self) -> f32 {
        0.9
    }

    /// Returns φ. The smoothed norm n̂ never falls below this fraction of the mean norm.
    fn norm_floor(&self) -> f32 {
        Seesaw::default().norm_floor
    }

    /// Returns the constants that the formula reads.
    fn constants(&self, _: &Rule) -> RegimeConstants {
        RegimeConstants::default()
    }

    /// Returns the state before the first step.
    fn first_state(&self) -> RegimeState {
        RegimeState::default()
    }

    /// Returns an error if a number is outside its range.
    fn validate(&self) -> Result<(), Error>;

    /// Returns the paper's formula in f64, independent of the kernel.
    fn reference(&self, rule: &Rule) -> Box<dyn RegimeReference>;

    /// Returns the regime's name for error messages.
    fn owner(&self) -> String {
        format!("regime {}", self.name())
    }
}

/// Quantities that a regime needs to be measured, kept or provided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs {
    /// The alignment of the gradient with past directions.
    pub(crate) alignment: bool,
    /// The last gradient.
    pub(crate) last_gradient: bool,
    /// A second gradient of every batch, taken after the step. It is compared with the last gradient in place of the
    /// next step's gradient.
    pub(crate) looks: bool,
    /// The first parameters.
    pub(crate) first_parameters: bool,
    /// The loss of every step.
    pub(crate) loss: bool,
    /// Schedule-free training, with ⟨g, y - z⟩ and Σ|g| measured.
    pub(crate) schedule_free: bool,
    /// The first parameters and a weighted sum of gradients, with which Prodigy estimates a distance.
    pub(crate) estimate: bool,
    /// Displacement of the parameters, which Mechanic multiplies.
    pub(crate) displacement: bool,
    /// Three streams of parameters.
    pub(crate) streams: bool,
    /// ‖w₀‖.
    pub(crate) initial_norm: bool,
}

impl Needs {
    pub(crate) const NOTHING: Needs = Needs {
        alignment: false,
        last_gradient: false,
        looks: false,
        first_parameters: false,
        loss: false,
        schedule_free: false,
        estimate: false,
        displacement: false,
        streams: false,
        initial_norm: false,
    };
}

/// Formula of one regime or of several. The functions are twins of those in its WGSL file.
pub(crate) struct Kernel {
    /// Name of the WGSL file, and of the feature that links it.
    pub(crate) name: &'static str,
    /// Text of the WGSL file.
    pub(crate) source: &'static str,
    /// Struct that [`RegimeConstants`] holds, if the regime has one.
    pub(crate) constants: Option<Declared>,
    /// Struct that [`RegimeState`] holds, if the regime has one.
    pub(crate) state: Option<Declared>,
    /// Struct that [`RegimeRecord`](crate::layout::RegimeRecord) holds, if the regime has one.
    pub(crate) record: Option<Declared>,
    /// Returns the WGSL of the constants that only this regime has.
    pub(crate) own_constants: fn() -> String,
    /// Sets or changes the rate. The gradient is finite and not zero.
    pub(crate) follow: fn(&GroupConstants, &Gradient, &mut GroupState, &mut RawRecord),
    /// Measures the last step with a second gradient of its batch. The arguments are its sums and whether they are
    /// finite.
    pub(crate) look: fn(&GroupConstants, &ScopeSums, bool, &mut GroupState),
    /// Chooses the stream of parameters that the step belongs to. The arguments are the loss, whether the step is
    /// skipped, and whether training has halted.
    pub(crate) begin_step: fn(&GroupConstants, f32, bool, bool, &mut GroupState, &mut RawRecord) -> Turn,
    /// Uses the rate of a step with a gradient after schedule and controls, with the rule's bias corrections.
    pub(crate) settle: Option<Settle>,
    /// Changes the update of a step that moves the group.
    pub(crate) amend: fn(&GroupConstants, &mut GroupState, &mut Update),
    /// Returns the rate that weights a step in the average of schedule-free training.
    pub(crate) averaged_rate: fn(&mut GroupState) -> f32,
    /// Reads the regime's part of a record.
    pub(crate) explain: fn(&RawRecord) -> Details,
}

type Settle = fn(&GroupConstants, &Gradient, (f32, f32), &mut GroupState);

impl Kernel {
    /// Returns a kernel without structs of its own.
    const fn new(name: &'static str, source: &'static str) -> Self {
        Kernel {
            name,
            source,
            constants: None,
            state: None,
            record: None,
            own_constants: String::new,
            follow: |_, _, _, _| {},
            look: |_, _, _, _| {},
            begin_step: one_stream,
            settle: None,
            amend: |_, _, _| {},
            averaged_rate: |s| s.learning_rate,
            explain: |_| Details::EMPTY,
        }
    }

    /// Returns all kernels. Their order gives [`GroupConstants::regime`] its values.
    pub(crate) fn all() -> &'static [&'static Kernel] {
        static ALL: LazyLock<Vec<&'static Kernel>> = LazyLock::new(|| {
            let mut all: Vec<&'static Kernel> = Vec::new();
            for regime in Regime::all() {
                let kernel = regime.regime().kernel();
                if all.iter().all(|other| other.name != kernel.name) {
                    all.push(kernel);
                }
            }
            all
        });
        &ALL
    }

    /// Returns the kernel's index among all kernels.
    pub(crate) fn number(&self) -> u32 {
        Kernel::all().iter().position(|kernel| kernel.name == self.name).map_or(u32::MAX, |index| index as u32)
    }

    /// Returns the kernel of a group.
    pub(crate) fn of(constants: &GroupConstants) -> &'static Kernel {
        Kernel::all()[constants.regime as usize]
    }
}

/// Implements `begin_step` for regimes with one stream of parameters: every step belongs to it, and no parameters are
/// stored.
fn one_stream(_: &GroupConstants, _: f32, _: bool, _: bool, s: &mut GroupState, _: &mut RawRecord) -> Turn {
    Turn { begins: 1 - s.momentum_started, ..Turn::NONE }
}

/// Values that only some regimes record. [`Record`](crate::Record) explains the fields.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Details {
    pub(crate) slow_alignment: f32,
    pub(crate) fast_alignment: f32,
    pub(crate) episode: u32,
    pub(crate) stream: Option<Stream>,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) look: Option<Look>,
    pub(crate) estimate: Option<Estimate>,
}

/// Estimate that [`Prodigy`] or [`Mechanic`] used in a step. See [`Record::estimate`](crate::Record::estimate).
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Estimate {
    /// Prodigy's estimate. The distance d is the largest quotient `c r/Σ|s|` so far.
    Distance {
        /// r of the previous steps, divided by the d² of the last of them.
        numerator: f32,
        /// Σ|s| of the previous steps, divided by the same d². It is 0 where it is not known.
        denominator: f32,
        /// d that the step used.
        distance: f32,
    },
    /// Mechanic's estimate.
    Scale {
        /// h, the inner product of Δ with the gradient and its decay. It is above 0 if the gradient asks for a larger
        /// scale.
        product: f32,
        /// S that the step used.
        scale: f32,
    },
}

impl Details {
    const EMPTY: Details = Details {
        slow_alignment: 0.0,
        fast_alignment: 0.0,
        episode: 0,
        stream: None,
        outcome: None,
        look: None,
        estimate: None,
    };
}

/// Table of the regimes. A row has the regime's name, the struct with its constants and the name of its files.
macro_rules! regimes {
    ($($(#[$meta:meta])* $Regime:ident($Struct:ident) in $module:ident,)*) => {
        $(mod $module; pub use $module::$Struct;)*

        /// The regimes, re-exported at the root of the crate.
        pub(crate) mod table {
            pub use super::{$($Struct),*};
        }

        /// Regime, which sets a group's learning rate η once per step from the sums of that step's gradient.
        ///
        /// Notation: `n` is the norm of the gradient. `n̂ = max(√EMA_β(n²), n, φ mean(n))` is the smoothed norm with
        /// bias correction. Its mean is over all steps, at most the last 65,536, and n counts in it as at most 10 times
        /// the previous n̂. `a` is the alignment of the gradient with the past steps, `u` the direction of the step,
        /// and `s = -η u` the step itself.
        ///
        /// Every regime except [`Regime::Fixed`], [`Prodigy`] and [`Mechanic`] limits each rise of `ln η` to ln 10.
        /// Those except [`Seesaw`], [`NormRatio`] and [`Hypergradient`] limit each fall as well. Every regime clamps η
        /// to `[1e-30, 1e30]`, and carries it over if the gradient is zero or not finite. A
        /// [`Schedule`](crate::Schedule) multiplies the regime's rate.
        #[derive(Debug, Clone, Copy, PartialEq)]
        #[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
        #[non_exhaustive]
        pub enum Regime {
            $($(#[$meta])* $Regime($Struct),)*
        }

        impl Regime {
            /// Returns every kind of regime with its default constants. The fixed rate is 0.01.
            pub fn all() -> Vec<Self> {
                [$($module::examples().map(Regime::$Regime).as_slice()),*].concat()
            }

            pub(crate) fn regime(&self) -> &dyn LearningRateRegime {
                match self {
                    $(Regime::$Regime(regime) => regime,)*
                }
            }
        }
    };
}

regimes! {
    /// Uses the gradient norm and the alignment, with nothing to tune. This is the default.
    Seesaw(Seesaw) in seesaw,
    /// Uses only the gradient norm.
    NormRatio(NormRatio) in norm_ratio,
    /// Uses only the alignment.
    Hypergradient(Hypergradient) in hypergradient,
    /// Uses the learning rate that the caller gives.
    Fixed(FixedRate) in fixed,
    /// Divides by the root of the sum of squared norms.
    AdaGradNorm(AdaGradNorm) in adagrad_norm,
    /// Divides by a sum of squared norms, each divided by the sum before it.
    WnGrad(WnGrad) in wngrad,
    /// Estimates the curvature from the last step.
    BarzilaiBorwein(BarzilaiBorwein) in barzilai_borwein,
    /// Estimates the curvature from the last step, with bounded growth.
    AdGd(AdGd) in adgd,
    /// Measures the curvature along the step with a second gradient of the same batch.
    Curvature(Curvature) in curvature,
    /// Divides the distance from the start by the gradients.
    DoG(DoG) in dog,
    /// Divides the distance from the start by weighted gradients.
    DoWG(DoWG) in dowg,
    /// Divides the loss by the squared norm.
    Polyak(Polyak) in polyak,
    /// Uses the loss and the squared norm, with a largest rate.
    Ngn(Ngn) in ngn,
    /// Divides the loss by the gradient, with the loss estimated for the steps of schedule-free training.
    ScheduleFreePlus(ScheduleFreePlus) in schedule_free_plus,
    /// Estimates the distance to the solution. It needs rules whose steps are about equally long in every element.
    Prodigy(Prodigy) in prodigy,
    /// Learns a scale for the sum of all steps so far.
    Mechanic(Mechanic) in mechanic,
    /// Compares the losses of three parameter streams at three rates.
    AutoSgd(AutoSgd) in auto_sgd,
}

impl Default for Regime {
    fn default() -> Self {
        Regime::seesaw()
    }
}

impl Regime {
    /// Returns the name that records, tables and the command line use.
    pub fn name(&self) -> &'static str {
        self.regime().name()
    }

    /// Returns a one-line description of what the regime uses. The command line's help shows it.
    #[doc(hidden)]
    pub fn summary(&self) -> &'static str {
        self.regime().summary()
    }

    /// Returns true if the rate depends on the gradients.
    pub(crate) fn goes_by_gradients(&self) -> bool {
        self.regime().goes_by_gradients()
    }

    /// Returns true if the regime uses the alignment of the gradient with past directions. Rules without momentum then
    /// keep a direction memory of 1 byte per parameter.
    #[doc(hidden)]
    pub fn needs_alignment(&self) -> bool {
        self.regime().needs().alignment
    }

    /// Returns true if the regime keeps the last gradient, 4 bytes per parameter.
    #[doc(hidden)]
    pub fn needs_last_gradient(&self) -> bool {
        self.regime().needs().last_gradient
    }

    /// Returns true if the regime keeps the first parameters, 4 bytes per parameter.
    #[doc(hidden)]
    pub fn needs_first_parameters(&self) -> bool {
        self.regime().needs().first_parameters
    }

    /// Returns true if the caller must provide the loss of every step.
    pub fn needs_loss(&self) -> bool {
        self.regime().needs().loss
    }

    /// Returns true if the regime only works with [`Averaging::ScheduleFree`].
    #[doc(hidden)]
    pub fn needs_schedule_free(&self) -> bool {
        self.regime().needs().schedule_free
    }

    /// Returns true if the caller must provide the gradient of every batch a second time, after the step
    /// ([`encode_look`](crate::Optimizer::encode_look), [`look`](crate::CpuOptimizer::look)).
    pub fn needs_looks(&self) -> bool {
        self.regime().needs().looks
    }

    /// Returns true if the regime keeps the first parameters and a weighted sum of gradients, 8 bytes per parameter.
    #[doc(hidden)]
    pub fn needs_estimate(&self) -> bool {
        self.regime().needs().estimate
    }

    /// Returns true if the regime keeps and multiplies the displacement of the parameters, 4 bytes per parameter.
    #[doc(hidden)]
    pub fn needs_displacement(&self) -> bool {
        self.regime().needs().displacement
    }

    /// Returns true if three streams of parameters take turns, which takes 12 bytes per parameter.
    #[doc(hidden)]
    pub fn needs_streams(&self) -> bool {
        self.regime().needs().streams
    }

    /// Returns true if the regime supports this rule.
    ///
    /// - [`AutoSgd`] needs three copies of the rule's memory and rejects rules with momentum or a second moment.
    /// - [`BarzilaiBorwein`], [`AdGd`] and [`Curvature`] need the last direction and reject Muon and Adafactor.
    /// - [`ScheduleFreePlus`] rejects rules with momentum, as schedule-free training does.
    /// - [`Prodigy`] needs a mean of squares or signs, and rejects rules along the gradient, AMSGrad, Muon and
    ///   Adafactor.
    ///
    /// All other combinations can be built.
    #[doc(hidden)]
    pub fn fits(&self, rule: &Rule) -> bool {
        self.regime().fits(rule)
    }

    /// Returns true if the regime supports this average. [`AutoSgd`] rejects all averages, and [`ScheduleFreePlus`] all
    /// except schedule-free training. [`Curvature`], [`Prodigy`] and [`Mechanic`] reject schedule-free training,
    /// because they assume that the step is along the direction and starts where the gradient was taken.
    #[doc(hidden)]
    pub fn fits_averaging(&self, averaging: &Averaging) -> bool {
        let needs = self.regime().needs();
        match averaging {
            Averaging::ScheduleFree => !(needs.looks || needs.estimate || needs.displacement || needs.streams),
            other => !(needs.schedule_free || needs.streams && other.is_on()),
        }
    }

    /// Returns false for combinations that are known to fail. They can be built, but diverged or nearly so on every
    /// problem they were tried on. [`OptimizerBuilder::warnings`](crate::OptimizerBuilder::warnings) reports them.
    ///
    /// - DoG and DoWG assume that the direction is as long as the gradient. Momentum makes it many times longer, so
    ///   that the distance and the rate grow without bound. AdamW's direction does not grow, and works.
    /// - Polyak fails with [`Rule::Sgdm`] for the same reason. Rules whose direction does not grow with the momentum work.
    /// - BarzilaiBorwein assumes that the step is along the gradient, which is not the case with momentum.
    ///
    /// Regimes that compare gradients of different mini-batches may fail because of that. It depends on the data and is
    /// not reported.
    #[doc(hidden)]
    pub fn suits(&self, rule: &Rule) -> bool {
        self.regime().suits(rule)
    }

    /// Returns true if the first rate is derived from the length of the first step. `‖w₀‖` is then measured once.
    #[doc(hidden)]
    pub fn needs_initial_norm(&self) -> bool {
        self.regime().needs().initial_norm
    }

    /// Returns η of the first step, if the caller gave it.
    #[doc(hidden)]
    pub fn initial_rate(&self) -> Option<f32> {
        self.regime().initial_rate()
    }

    /// Returns `ε` of the first step's length `ε (1 + ‖w₀‖)` for this rule and average, or 0 if the regime does not use
    /// it.
    #[doc(hidden)]
    pub fn first_step(&self, rule: &Rule, averaging: &Averaging) -> f32 {
        self.regime().first_step(rule, averaging)
    }

    /// Returns the weight of the past in the smoothed norm, and the fraction of the mean norm below which the smoothed
    /// norm never falls.
    #[doc(hidden)]
    pub fn smoothing(&self) -> (f32, f32) {
        (self.regime().smoothing(), self.regime().norm_floor())
    }

    /// Returns the regime in f64, for the conformance suite.
    #[doc(hidden)]
    pub fn reference(&self, rule: &Rule) -> Box<dyn RegimeReference> {
        self.regime().reference(rule)
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        self.regime().validate()
    }
}

/// Returns an error if an exponent or gain is so large that its products with logarithms overflow fixed point.
fn require_factor(regime: &dyn LearningRateRegime, field: &'static str, value: f32) -> Result<(), Error> {
    require((0.0..=1e6).contains(&value), || regime.owner(), field, value, "between 0 and 1e6")
}

fn require_slow(regime: &dyn LearningRateRegime, smoothing: f32, norm_floor: f32) -> Result<(), Error> {
    let owner = || regime.owner();
    require((0.0..1.0).contains(&smoothing), owner, "smoothing", smoothing, "at least 0 and below 1")?;
    require((0.0..=1.0).contains(&norm_floor), owner, "norm_floor", norm_floor, "between 0 and 1")
}

fn require_above_0(regime: &dyn LearningRateRegime, field: &'static str, value: f32) -> Result<(), Error> {
    let in_range = value.is_finite() && value >= f32::MIN_POSITIVE;
    require(in_range, || regime.owner(), field, value, "finite, above 0 and not denormal")
}

fn require_within(
    regime: &dyn LearningRateRegime,
    field: &'static str,
    value: f32,
    range: std::ops::RangeInclusive<f32>,
    expected: &'static str,
) -> Result<(), Error> {
    require(range.contains(&value), || regime.owner(), field, value, expected)
}

fn require_at_least_0(regime: &dyn LearningRateRegime, field: &'static str, value: f32) -> Result<(), Error> {
    require(value.is_finite() && value >= 0.0, || regime.owner(), field, value, "finite and at least 0")
}

/// Returns an error if the first rate or, if there is none, the first step is out of range.
fn require_first_step(
    regime: &dyn LearningRateRegime,
    first_step: Option<f32>,
    initial_rate: Option<f32>,
) -> Result<(), Error> {
    let owner = || regime.owner();
    match (initial_rate, first_step) {
        (Some(rate), _) => {
            let in_range = (RATE_MIN..=RATE_MAX).contains(&rate);
            require(in_range, owner, "learning rate", rate, "between 1e-30 and 1e30")
        }
        (None, Some(step)) => require(step.is_finite() && step > 0.0, owner, "first_step", step, "finite and above 0"),
        (None, None) => Ok(()),
    }
}

/// Smallest learning rate that a regime may set.
pub const RATE_MIN: f32 = numbers::RATE_MIN;
/// Largest learning rate that a regime may set.
pub const RATE_MAX: f32 = numbers::RATE_MAX;
/// Largest rise of `ln η` in one step, a factor of ten. Regimes whose formula gives η itself are also limited to this
/// fall.
pub const MAX_CHANGE: f32 = numbers::MAX_CHANGE;
