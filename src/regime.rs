//! Learning-rate regimes: they choose the learning rate on the device, from the gradients.
//!
//! A regime is a file in `src/regime/`, a file of the same name in `shaders/regime/`, a row of the table below and a row of
//! `shaders/learning_rate.wgsl`. The other files beside them hold what several regimes share.

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

/// What a regime consists of on the host.
pub(crate) trait LearningRateRegime {
    /// The name in records, tables and on the command line.
    fn name(&self) -> &'static str;

    /// A line that says what it uses.
    fn summary(&self) -> &'static str;

    /// Its formula, on the host and on the device.
    fn kernel(&self) -> &'static Kernel;

    /// What it needs to be measured, kept or given.
    fn needs(&self) -> Needs {
        Needs::NOTHING
    }

    /// False for rules that it cannot be built with. What is remembered of a step does not tell the last direction of rules that own passes.
    fn fits(&self, rule: &Rule) -> bool {
        !(self.needs().last_gradient && rule.owns_passes())
    }

    /// False for rules with which it is known to fail.
    fn suits(&self, _: &Rule) -> bool {
        true
    }

    /// False if the rate is the same whatever the gradients are, so that they need not be measured.
    fn goes_by_gradients(&self) -> bool {
        true
    }

    /// η of the first step, if the caller gave it.
    fn initial_rate(&self) -> Option<f32> {
        None
    }

    /// ε of the first step's length `ε (1 + ‖w₀‖)`; 0 where it is not used.
    fn first_step(&self, rule: &Rule, averaging: &Averaging) -> f32;

    /// The weight β of the past in the moving average of n².
    fn smoothing(&self) -> f32 {
        0.9
    }

    /// φ: n̂ never falls below this share of the mean norm.
    fn norm_floor(&self) -> f32 {
        Seesaw::default().norm_floor
    }

    /// The constants that its formula reads.
    fn constants(&self, _: &Rule) -> RegimeConstants {
        RegimeConstants::default()
    }

    /// Its state before the first step.
    fn first_state(&self) -> RegimeState {
        RegimeState::default()
    }

    /// Refuses numbers outside their ranges.
    fn validate(&self) -> Result<(), Error>;

    /// The formula in f64, from the paper. It is independent of the kernel's.
    fn reference(&self, rule: &Rule) -> Box<dyn RegimeReference>;

    /// The regime as errors name it.
    fn owner(&self) -> String {
        format!("regime {}", self.name())
    }
}

/// What a regime needs to be measured, kept or given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs {
    /// The alignment of the gradient with past directions.
    pub(crate) alignment: bool,
    /// The last gradient.
    pub(crate) last_gradient: bool,
    /// A second gradient of every batch, after the step. The last gradient is then compared with it, and not with that of the next step.
    pub(crate) looks: bool,
    /// The first parameters.
    pub(crate) first_parameters: bool,
    /// The loss of every step.
    pub(crate) loss: bool,
    /// Schedule-free training, of which ⟨g, y - z⟩ is measured, and Σ|g|.
    pub(crate) schedule_free: bool,
    /// The first parameters and a weighted sum of gradients, with which Prodigy estimates a distance.
    pub(crate) estimate: bool,
    /// How far the parameters have moved, as Mechanic multiplies it.
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

/// The formula of one regime or of several. The functions are twins of those of its WGSL file.
pub(crate) struct Kernel {
    /// The name of its WGSL file, and the feature that the file is linked by.
    pub(crate) name: &'static str,
    /// The WGSL file.
    pub(crate) source: &'static str,
    /// The struct that [`RegimeConstants`] holds, if there is one.
    pub(crate) constants: Option<Declared>,
    /// The struct that [`RegimeState`] holds, if there is one.
    pub(crate) state: Option<Declared>,
    /// The struct that [`RegimeRecord`](crate::layout::RegimeRecord) holds, if there is one.
    pub(crate) record: Option<Declared>,
    /// The constants that only this regime has, in WGSL.
    pub(crate) own_constants: fn() -> String,
    /// Sets or changes the rate at a finite gradient that is not zero.
    pub(crate) follow: fn(&GroupConstants, &Gradient, &mut GroupState, &mut RawRecord),
    /// Measures the last step by a second gradient of its batch: of the sums of that, and whether they are finite.
    pub(crate) look: fn(&GroupConstants, &ScopeSums, bool, &mut GroupState),
    /// Chooses the stream of parameters that the step belongs to: of the loss, whether the step is skipped, and whether there was a halt.
    pub(crate) begin_step: fn(&GroupConstants, f32, bool, bool, &mut GroupState, &mut RawRecord) -> Turn,
    /// Uses the rate of a step with a gradient, once it is known with schedule and controls: with the rule's bias corrections.
    pub(crate) settle: Option<Settle>,
    /// Changes what the update is told of a step that moves the group.
    pub(crate) amend: fn(&GroupConstants, &mut GroupState, &mut Update),
    /// The rate by which a step counts in the average of schedule-free training.
    pub(crate) averaged_rate: fn(&mut GroupState) -> f32,
    /// Reads what is in the record.
    pub(crate) explain: fn(&RawRecord) -> Details,
}

type Settle = fn(&GroupConstants, &Gradient, (f32, f32), &mut GroupState);

impl Kernel {
    /// A kernel without structs of its own.
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

    /// All kernels. Their order gives [`GroupConstants::regime`] its values.
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

    /// Its place among all kernels.
    pub(crate) fn number(&self) -> u32 {
        Kernel::all().iter().position(|kernel| kernel.name == self.name).map_or(u32::MAX, |index| index as u32)
    }

    /// The kernel of a group.
    pub(crate) fn of(constants: &GroupConstants) -> &'static Kernel {
        Kernel::all()[constants.regime as usize]
    }
}

/// For regimes with one stream of parameters: every step belongs to it, and no parameters are put aside.
fn one_stream(_: &GroupConstants, _: f32, _: bool, _: bool, s: &mut GroupState, _: &mut RawRecord) -> Turn {
    Turn { begins: 1 - s.momentum_started, ..Turn::NONE }
}

/// What some regimes record and others do not. [`Record`](crate::Record) explains the fields.
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

/// What [`Prodigy`] or [`Mechanic`] knew of its scale at a step, in [`Record::estimate`](crate::Record::estimate).
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Estimate {
    /// Of Prodigy: d is the largest quotient `c r/Σ|s|` so far.
    Distance {
        /// r of the steps before, over the d² of the last of them.
        numerator: f32,
        /// Σ|s| of the steps before, over the same d²; 0 where it is not known.
        denominator: f32,
        /// d, with which the step was taken.
        distance: f32,
    },
    /// Of Mechanic.
    Scale {
        /// h, the inner product of Δ with the gradient and its decay: above 0 where the gradient says to go further.
        product: f32,
        /// S, with which the step was taken.
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

/// The table of regimes. A row has the regime's name here, the struct with its constants and the name of its files.
macro_rules! regimes {
    ($($(#[$meta:meta])* $Regime:ident($Struct:ident) in $module:ident,)*) => {
        $(mod $module; pub use $module::$Struct;)*

        /// The regimes, for the root of the crate.
        pub(crate) mod table {
            pub use super::{$($Struct),*};
        }

        /// The regime that sets a group's learning rate η, once per step, from that step's reductions.
        ///
        /// Notation: `n` is the norm of the gradient, `n̂ = max(√EMA_β(n²), n, φ mean(n))` the smoothed norm (bias-corrected; the
        /// mean is over all steps, the last 65,536 at most, and n counts in it as no more than 10 n̂ of the step before), `a` the alignment
        /// of the gradient with where the optimizer has been going, `u` the direction of the step, `s = -η u` the step itself. Every
        /// regime but [`Regime::Fixed`], [`Prodigy`] and [`Mechanic`] clamps each rise of `ln η` to ln 10, and those but [`Seesaw`], [`NormRatio`] and [`Hypergradient`] each
        /// fall as well; all clamp η to `[1e-30, 1e30]`, and carry it over when the gradient is zero or not finite. A
        /// [`Schedule`](crate::Schedule) multiplies what the regime says.
        #[derive(Debug, Clone, Copy, PartialEq)]
        #[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
        #[non_exhaustive]
        pub enum Regime {
            $($(#[$meta])* $Regime($Struct),)*
        }

        impl Regime {
            /// Returns regimes of every kind with their default constants, to iterate over. The fixed rate is 0.01.
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
    /// The default: uses the gradient norm and the alignment, with nothing to tune.
    Seesaw(Seesaw) in seesaw,
    /// Uses the gradient norm alone.
    NormRatio(NormRatio) in norm_ratio,
    /// Uses the alignment alone.
    Hypergradient(Hypergradient) in hypergradient,
    /// Uses the learning rate that the caller gives, in every step.
    Fixed(FixedRate) in fixed,
    /// Divides by the root of the sum of squared norms.
    AdaGradNorm(AdaGradNorm) in adagrad_norm,
    /// Divides by a sum of squared norms over their own scale.
    WnGrad(WnGrad) in wngrad,
    /// Estimates the curvature from the last step.
    BarzilaiBorwein(BarzilaiBorwein) in barzilai_borwein,
    /// Estimates the curvature from the last step, with bounded growth.
    AdGd(AdGd) in adgd,
    /// Measures the curvature along the step by a second gradient of the same batch.
    Curvature(Curvature) in curvature,
    /// Divides the distance from the start by the gradients.
    DoG(DoG) in dog,
    /// Divides the distance from the start by weighted gradients.
    DoWG(DoWG) in dowg,
    /// Divides the loss by the squared norm.
    Polyak(Polyak) in polyak,
    /// Uses the loss and the squared norm, with a largest rate.
    Ngn(Ngn) in ngn,
    /// Divides the loss, as it is estimated for the steps of schedule-free training, by the gradient.
    ScheduleFreePlus(ScheduleFreePlus) in schedule_free_plus,
    /// Estimates the distance to the solution, for rules whose steps are about as long in every element.
    Prodigy(Prodigy) in prodigy,
    /// Learns a scale of everything the rule has done so far.
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

    /// Returns a line that says what the regime uses, as the command line's help has it.
    #[doc(hidden)]
    pub fn summary(&self) -> &'static str {
        self.regime().summary()
    }

    /// Returns true unless the rate is the same whatever the gradients are.
    pub(crate) fn goes_by_gradients(&self) -> bool {
        self.regime().goes_by_gradients()
    }

    /// Returns true if the regime uses the alignment of the gradient with past directions. Rules without momentum then keep one byte of
    /// direction memory per parameter.
    #[doc(hidden)]
    pub fn needs_alignment(&self) -> bool {
        self.regime().needs().alignment
    }

    /// Returns true if the last gradient is kept: 4 bytes per parameter.
    #[doc(hidden)]
    pub fn needs_last_gradient(&self) -> bool {
        self.regime().needs().last_gradient
    }

    /// Returns true if the first parameters are kept: 4 bytes per parameter.
    #[doc(hidden)]
    pub fn needs_first_parameters(&self) -> bool {
        self.regime().needs().first_parameters
    }

    /// Returns true if the caller must provide the loss of every step.
    pub fn needs_loss(&self) -> bool {
        self.regime().needs().loss
    }

    /// Returns true if the regime is for [`Averaging::ScheduleFree`] alone.
    #[doc(hidden)]
    pub fn needs_schedule_free(&self) -> bool {
        self.regime().needs().schedule_free
    }

    /// Returns true if the caller must show the gradient of every batch a second time, after the step
    /// ([`encode_look`](crate::Optimizer::encode_look), [`look`](crate::CpuOptimizer::look)).
    pub fn needs_looks(&self) -> bool {
        self.regime().needs().looks
    }

    /// Returns true if the first parameters and a weighted sum of gradients are kept: 8 bytes per parameter.
    #[doc(hidden)]
    pub fn needs_estimate(&self) -> bool {
        self.regime().needs().estimate
    }

    /// Returns true if it is kept how far the parameters have moved, which the regime multiplies: 4 bytes per parameter.
    #[doc(hidden)]
    pub fn needs_displacement(&self) -> bool {
        self.regime().needs().displacement
    }

    /// Returns true if three streams of parameters take turns, which takes 12 bytes per parameter.
    #[doc(hidden)]
    pub fn needs_streams(&self) -> bool {
        self.regime().needs().streams
    }

    /// Returns true if the regime supports this rule. [`AutoSgd`] needs three copies of the rule's memory and rejects rules with momentum or a
    /// second moment; [`BarzilaiBorwein`] and [`AdGd`] need the last direction and reject Muon; [`ScheduleFreePlus`] rejects rules with
    /// momentum, as schedule-free training does; [`Prodigy`] needs a mean of squares or signs, and rejects rules along the gradient, AMSGrad and
    /// Muon. All other combinations can be built.
    #[doc(hidden)]
    pub fn fits(&self, rule: &Rule) -> bool {
        self.regime().fits(rule)
    }

    /// Returns true if the regime supports this average. [`AutoSgd`] rejects all, [`ScheduleFreePlus`] all but schedule-free training, and
    /// [`Curvature`], [`Prodigy`] and [`Mechanic`] reject that: they take the step to be along the direction, from where the gradient was taken.
    #[doc(hidden)]
    pub fn fits_averaging(&self, averaging: &Averaging) -> bool {
        let needs = self.regime().needs();
        match averaging {
            Averaging::ScheduleFree => !(needs.looks || needs.estimate || needs.displacement || needs.streams),
            other => !(needs.schedule_free || needs.streams && other.is_on()),
        }
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
    #[doc(hidden)]
    pub fn suits(&self, rule: &Rule) -> bool {
        self.regime().suits(rule)
    }

    /// Returns true if the first rate is derived from the length of the first step, which needs `‖w₀‖` once.
    #[doc(hidden)]
    pub fn needs_initial_norm(&self) -> bool {
        self.regime().needs().initial_norm
    }

    /// Returns η of the first step if the caller gave it.
    #[doc(hidden)]
    pub fn initial_rate(&self) -> Option<f32> {
        self.regime().initial_rate()
    }

    /// Returns `ε` of the first step's length `ε (1 + ‖w₀‖)` for this rule and average; 0 if the regime does not use it.
    #[doc(hidden)]
    pub fn first_step(&self, rule: &Rule, averaging: &Averaging) -> f32 {
        self.regime().first_step(rule, averaging)
    }

    /// The weight of the past in the smoothed norm, and the share of the mean norm below which that never falls.
    #[doc(hidden)]
    pub fn smoothing(&self) -> (f32, f32) {
        (self.regime().smoothing(), self.regime().norm_floor())
    }

    /// The regime in f64, for the conformance suite.
    #[doc(hidden)]
    pub fn reference(&self, rule: &Rule) -> Box<dyn RegimeReference> {
        self.regime().reference(rule)
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        self.regime().validate()
    }
}

/// Refuses exponents and gains whose products with logarithms leave the fixed point that the device adds them up in.
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

/// Refuses a first rate or, where there is none, a first step that is out of range.
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

/// The smallest learning rate a regime may set.
pub const RATE_MIN: f32 = numbers::RATE_MIN;
/// The largest learning rate a regime may set.
pub const RATE_MAX: f32 = numbers::RATE_MAX;
/// The largest rise of `ln η` in one step, and the largest fall of the regimes that say what η is: a factor of ten.
pub const MAX_CHANGE: f32 = numbers::MAX_CHANGE;
