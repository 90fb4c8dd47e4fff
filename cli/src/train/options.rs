//! Options of `train`.

use std::ffi::OsString;
use std::path::PathBuf;

use std::sync::LazyLock;

use clap::ValueEnum;
use clap::builder::PossibleValue;
use wgpu_optim::{
    AdGd, AutoSgd, Averaging, BarzilaiBorwein, Curvature, DoG, DoWG, Hypergradient, NormRatio, PolicyScale, Regime,
    Rule, Schedule, SchedulePolicy, Seesaw, State, WatchdogConfig, WeightDecay,
};

use super::compare::CompareArgs;
use super::engine::OptimizerSettings;
use crate::CliError;
use crate::data::{self, Dataset};
use crate::model::ModelKind;
use crate::target::TargetArgs;
use crate::words::escaped;

/// Number of steps that take the same batch with streams of parameters.
const SHOWN: usize = AutoSgd::STREAMS as usize;

/// Value of `--rule`: one of [`Rule::all`] or [`Rule::of_matrices`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RuleName(pub Rule);

/// Value of `--regime`: one of [`Regime::all`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RegimeName(pub Regime);

macro_rules! names_of_a_table {
    ($Name:ident, $all:expr) => {
        impl ValueEnum for $Name {
            fn value_variants<'a>() -> &'a [Self] {
                static ALL: LazyLock<Vec<$Name>> = LazyLock::new(|| $all.into_iter().map($Name).collect());
                &ALL
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                Some(PossibleValue::new(self.0.name()).help(self.0.summary()))
            }
        }
    };
}

names_of_a_table!(RuleName, [Rule::all(), Rule::of_matrices()].concat());
names_of_a_table!(RegimeName, Regime::all());

/// Value of `--state`: one of [`State::all`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateName(pub State);

impl ValueEnum for StateName {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: LazyLock<Vec<StateName>> = LazyLock::new(|| State::all().map(StateName).into());
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self.0 {
            State::F32 => "4 bytes per weight for each of momentum and second moment",
            _ => "1 byte, and 4 bytes for every 32 weights; not for amsgrad, adagrad, adafactor and muon",
        };
        Some(PossibleValue::new(self.0.name()).help(help))
    }
}

impl RegimeName {
    pub fn fixed() -> Self {
        RegimeName(Regime::fixed(0.01))
    }

    pub fn is_fixed(self) -> bool {
        matches!(self.0, Regime::Fixed(_))
    }

    pub fn has_streams(self) -> bool {
        self.0.needs_streams()
    }

    /// Returns the number of gradients per step: two if the regime looks at each batch twice.
    pub fn gradients(self) -> u64 {
        1 + u64::from(self.0.needs_looks())
    }

    /// Returns the regime with the rate and the `ε` of the first step, if they are given.
    pub fn regime(self, lr: Option<f32>, first_step: Option<f32>) -> Result<Regime, CliError> {
        let mut regime = match (self.0, lr) {
            (Regime::Fixed(_), None) => {
                return CliError::usage(
                    "--regime fixed needs a learning rate: add --lr RATE, or leave --regime out and let it be found",
                );
            }
            (Regime::NormRatio(_), initial_rate) => Regime::NormRatio(NormRatio { initial_rate, ..Default::default() }),
            (Regime::Fixed(_), Some(rate)) => Regime::fixed(rate),
            (regime, None) => regime,
            (_, Some(_)) => {
                return CliError::usage(format!(
                    "--lr goes with --regime fixed or norm-ratio, {} finds its own: leave one of them out",
                    name_of(self)
                ));
            }
        };
        if let Some(given) = first_step {
            match &mut regime {
                Regime::Seesaw(Seesaw { first_step, .. })
                | Regime::NormRatio(NormRatio { first_step, .. })
                | Regime::Hypergradient(Hypergradient { first_step, .. }) => *first_step = Some(given),
                Regime::BarzilaiBorwein(BarzilaiBorwein { first_step, .. })
                | Regime::AdGd(AdGd { first_step, .. })
                | Regime::Curvature(Curvature { first_step, .. })
                | Regime::AutoSgd(AutoSgd { first_step, .. }) => *first_step = given,
                Regime::DoG(DoG { initial_distance }) | Regime::DoWG(DoWG { initial_distance }) => {
                    *initial_distance = given;
                }
                _ => {
                    return CliError::usage(format!(
                        "--first-steps: {} has no first step of its own length, name the others with --regimes",
                        name_of(self)
                    ));
                }
            }
        }
        Ok(regime)
    }
}

/// Value of `--schedule`: one of [`Schedule::all`] by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduleName(&'static str);

impl ScheduleName {
    pub const CONSTANT: Self = ScheduleName("constant");
    pub const WARMUP_COSINE: Self = ScheduleName("warmup-cosine");

    /// Returns the schedule for a run of this many steps.
    fn over(self, steps: u64) -> Schedule {
        // A schedule with more steps than its counter can hold has not begun to fall by then.
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        Schedule::all(steps).into_iter().find(|schedule| schedule.name() == self.0).unwrap_or_default()
    }
}

impl ValueEnum for ScheduleName {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: LazyLock<Vec<ScheduleName>> =
            LazyLock::new(|| Schedule::all(1).iter().map(|schedule| ScheduleName(schedule.name())).collect());
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0).help(self.over(1).summary()))
    }
}

/// Value of `--average`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AverageName {
    /// Schedule-free training, with gradients between the average and the iterate; for rules without momentum.
    ScheduleFree,
    /// The mean of all iterates.
    Running,
    /// An exponential average over about an epoch: 1 - decay is one over the steps of an epoch.
    Exponential,
    /// A mean whose weights grow as the eighth power of the step, over about the last ninth of the steps so far.
    Polynomial,
}

impl AverageName {
    /// Returns the average for a run of this many steps. Averages that remember their start for long begin after the
    /// first epoch, or half way through the run if that is earlier.
    fn over(self, steps_per_epoch: usize, steps: u64) -> Averaging {
        // A run with more steps than the counter can hold averages none of them.
        let start = u32::try_from((steps / 2).min(steps_per_epoch as u64)).unwrap_or(u32::MAX);
        match self {
            AverageName::ScheduleFree => Averaging::ScheduleFree,
            AverageName::Running => Averaging::Running { start },
            AverageName::Exponential => {
                Averaging::Exponential { decay: 1.0 - (1.0 / steps_per_epoch.max(1) as f32).max(f32::EPSILON), start }
            }
            // This average forgets the first steps by itself, and does not depend on the number of steps.
            AverageName::Polynomial => Averaging::polynomial_decay(),
        }
    }
}

/// Value of `--watchdog`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WatchdogName {
    /// CMA Light: the loss has to fall below every loss so far; an epoch is taken back if its loss is above that at the start.
    Light,
    /// NMCMA: the loss has to fall below the largest of the last 5; other epochs are taken back.
    Nonmonotone,
}

impl WatchdogName {
    pub fn config(self) -> WatchdogConfig {
        match self {
            WatchdogName::Light => WatchdogConfig::light(),
            WatchdogName::Nonmonotone => WatchdogConfig::nonmonotone(5),
        }
    }
}

/// Options of `train`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// digits, mushrooms, spirals, parity, sine, board, or the path of a data set
    ///
    /// spirals, parity, sine and board are generated from a seed and are far from linear. A path is a CSV or LIBSVM
    /// file or a folder of IDX files, gzipped or not. With --compare it is a comma-separated list.
    #[arg(long, default_value = "digits", help_heading = "Data and model")]
    pub data: OsString,
    /// Column of a CSV file with the class: its name, its number counted from 1, first or last [default: last]
    #[arg(long, value_name = "COLUMN", help_heading = "Data and model")]
    pub label: Option<String>,
    /// What to train
    #[arg(long, value_enum, default_value = "mlp", help_heading = "Data and model")]
    pub model: ModelKind,
    /// Hidden units of the MLP [default: 128]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65536), help_heading = "Data and model")]
    pub hidden: Option<u32>,
    /// Update rule
    // This is the best rule in the tables of benches/evidence.
    #[arg(long, value_enum, default_value = "sgd", help_heading = "Optimizer")]
    pub rule: RuleName,
    /// Momentum of sgdm, nesterov and signum [default: 0.9], and of muon [default: 0.95]
    ///
    /// The momentum of adamw is 0.9 with 0.999, or 0 with 0.999 if it is schedule-free. lion has 0.9 and 0.99.
    #[arg(long, allow_negative_numbers = true, help_heading = "Optimizer")]
    pub momentum: Option<f32>,
    /// Learning-rate regime
    #[arg(long, value_enum, default_value = "seesaw", help_heading = "Optimizer")]
    pub regime: RegimeName,
    /// Learning rate of --regime fixed, or first learning rate of --regime norm-ratio
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = "Optimizer")]
    pub lr: Option<f32>,
    /// Factor of the learning rate over the run, for any regime
    #[arg(long, value_enum, default_value = "constant", help_heading = "Optimizer")]
    pub schedule: ScheduleName,
    /// Learned schedule whose output multiplies the learning rate
    ///
    /// It is a small network that reads the loss of every batch. With --regime fixed --lr 1 its output is the learning
    /// rate. The example meta_train of this package trains one and writes the file. With --compare it has a row of its
    /// own.
    #[arg(long, value_name = "FILE.safetensors", conflicts_with_all = ["checkpoint", "watchdog"], help_heading = "Optimizer")]
    pub schedule_policy: Option<PathBuf>,
    /// Average of the weights to keep and evaluate, beside the last weights [default: by --rule]
    ///
    /// The default is schedule-free with --regime schedule-free-plus, and for sgd, signsgd and adamw without a
    /// --schedule. It is none with --regime auto-sgd, and polynomial otherwise and with curvature, prodigy and
    /// mechanic.
    #[arg(long, value_enum, help_heading = "Optimizer")]
    pub average: Option<AverageName>,
    /// Keep no average, and evaluate the weights of the last step
    ///
    /// The momentum of adamw is then 0.9.
    #[arg(long, conflicts_with = "average", help_heading = "Optimizer")]
    pub last: bool,
    /// Weight decay [default: 0.01 for adamw, amsgrad and nadamw, otherwise 0]
    ///
    /// It is decoupled for adamw, amsgrad, nadamw and lion, and coupled for the others. The default is PyTorch's.
    #[arg(long, value_name = "LAMBDA", allow_negative_numbers = true, help_heading = "Optimizer")]
    pub weight_decay: Option<f32>,
    /// Clip the gradient to this norm
    #[arg(long, value_name = "NORM", allow_negative_numbers = true, help_heading = "Optimizer")]
    pub clip_norm: Option<f32>,
    /// Give every weight matrix and every bias its own learning rate
    ///
    /// Outputs about the learning rate refer to the first tensor.
    #[arg(long, help_heading = "Optimizer")]
    pub per_tensor: bool,
    /// Storage of momentum and second moment
    #[arg(long, value_enum, default_value = "f32", help_heading = "Optimizer")]
    pub state: StateName,
    /// Judge every epoch by its mean loss, and lower the learning rate where it is too high [default of TEST: light]
    ///
    /// An epoch whose loss has not fallen halves the learning rate, and may be taken back with all that the optimizer
    /// remembers of it.
    #[arg(long, value_enum, value_name = "TEST", num_args = 0..=1, default_missing_value = "light", help_heading = "Optimizer")]
    pub watchdog: Option<WatchdogName>,
    /// Passes over the training data [default: 10, or 40 for generated sets]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Run")]
    pub epochs: Option<u32>,
    /// Rows per step
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Run")]
    pub batch: u32,
    /// Seed of the initial weights and the order of the rows
    #[arg(long, default_value_t = 0, help_heading = "Run")]
    pub seed: u64,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Print one JSON object instead of a table
    #[arg(long, help_heading = "Outputs")]
    pub json: bool,
    /// Write a row for each step: loss, learning rate and its causes
    #[arg(long, value_name = "FILE.csv", help_heading = "Outputs")]
    pub trace: Option<PathBuf>,
    /// Write a page that explains the run, with curves
    #[arg(long, value_name = "FILE.html", help_heading = "Outputs")]
    pub report: Option<PathBuf>,
    /// Record the norm of every tensor and of its steps
    ///
    /// They are columns of --trace and charts of --report. --json has those of the last step.
    #[arg(long, help_heading = "Outputs")]
    pub telemetry: bool,
    /// Save the run to this file when it ends
    #[arg(long, value_name = "FILE.safetensors", help_heading = "Outputs")]
    pub checkpoint: Option<PathBuf>,
    /// Also save the run every STEPS steps
    #[arg(long, value_name = "STEPS", requires = "checkpoint", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Outputs")]
    pub every: Option<u64>,
    /// Continue from the file of --checkpoint, if it exists
    ///
    /// The result has the same bits as that of a run without interruption.
    #[arg(long, requires = "checkpoint", help_heading = "Outputs")]
    pub resume: bool,
    /// Continue with settings other than those of the file
    ///
    /// The rule, the regime, --lr, --schedule, --average, --momentum, --weight-decay, --clip-norm, --state, --batch,
    /// --epochs and --telemetry may then differ. Every difference and its consequences are printed. The step count
    /// continues. The number of steps of an epoch follows from the new --batch.
    #[arg(long, requires = "resume", help_heading = "Outputs")]
    pub change: bool,
    /// Replace files of other programs and of other runs
    ///
    /// Without it --trace, --report and --checkpoint only replace files of their own kind, and --checkpoint only those
    /// with the same settings. Files that are read are never replaced.
    #[arg(long, help_heading = "Outputs")]
    pub force: bool,
    /// Make the gradients of this step NaN
    #[arg(long, value_name = "STEP", help_heading = "Faults, to see what the optimizer does")]
    pub inject_nan: Option<u64>,
    /// Multiply the gradients of this step by 100
    #[arg(long, value_name = "STEP", help_heading = "Faults, to see what the optimizer does")]
    pub inject_spike: Option<u64>,
    /// Destroy the device before this step
    ///
    /// The run continues without it, from its last checkpoint or from the start.
    #[arg(long, value_name = "STEP", help_heading = "Faults, to see what the optimizer does")]
    pub lose_device: Option<u64>,
    #[command(flatten)]
    pub compare: CompareArgs,
}

impl Args {
    pub fn epochs(&self) -> u32 {
        self.epochs.unwrap_or_else(|| data::default_epochs(&self.data))
    }

    /// Returns the average that is kept and evaluated, or `None` if the last iterate is.
    pub fn averaged(&self) -> Option<AverageName> {
        if self.last || self.average.is_some() {
            return self.average;
        }
        // Streams of parameters take turns, so that there is nothing to average.
        if self.regime.has_streams() {
            return None;
        }
        // A given schedule is used with another average than the one that replaces schedules.
        let fits = Averaging::ScheduleFree.fits(&self.rule_for(Some(AverageName::ScheduleFree)));
        let is_free = match self.regime {
            regime if regime.0.needs_schedule_free() => fits,
            regime => {
                let is_constant = self.schedule == ScheduleName::CONSTANT && self.schedule_policy.is_none();
                fits && is_constant && regime.0.fits_averaging(&Averaging::ScheduleFree)
            }
        };
        Some(if is_free { AverageName::ScheduleFree } else { AverageName::Polynomial })
    }

    pub fn rule(&self) -> Rule {
        self.rule_for(self.averaged())
    }

    fn rule_for(&self, average: Option<AverageName>) -> Rule {
        match (self.rule.0, average) {
            (Rule::AdamW(_), Some(AverageName::ScheduleFree)) => Rule::adamw_without_momentum(),
            (rule, _) => self.momentum.map_or(rule, |momentum| rule.with_momentum(momentum)),
        }
    }

    /// Returns λ of [`Args::weight_decay`].
    pub fn decay(&self) -> f32 {
        let (WeightDecay::Coupled(decay) | WeightDecay::Decoupled(decay)) = self.weight_decay();
        decay
    }

    /// Returns a decoupled decay for rules that are published with it. Without the option it is PyTorch's default.
    fn weight_decay(&self) -> WeightDecay {
        match (self.rule.0.usual_weight_decay(), self.weight_decay) {
            (usual, None) => usual,
            (WeightDecay::Decoupled(_), Some(decay)) => WeightDecay::Decoupled(decay),
            (WeightDecay::Coupled(_), Some(decay)) => WeightDecay::Coupled(decay),
        }
    }

    /// Returns the number of training rows of a step, which is at most all of them.
    pub fn batch(&self, dataset: &Dataset) -> usize {
        (self.batch as usize).min(dataset.train.rows())
    }

    /// Returns the number of steps of an epoch. Three streams of parameters take a step each for every batch, which the
    /// source calls shared noise, and the rows after the last full batch are left out.
    pub fn steps_per_epoch(&self, dataset: &Dataset) -> usize {
        self.order_rows(dataset).div_ceil(self.batch(dataset).max(1))
    }

    /// Returns the number of rows that an epoch shows.
    pub fn order_rows(&self, dataset: &Dataset) -> usize {
        let (rows, batch) = (dataset.train.rows(), self.batch(dataset).max(1));
        if self.regime.has_streams() { SHOWN * (rows - rows % batch) } else { rows }
    }

    /// Returns the rows of an epoch in the order in which steps take them.
    pub fn in_steps(&self, dataset: &Dataset, order: &[u32]) -> Vec<u32> {
        if !self.regime.has_streams() {
            return order.to_vec();
        }
        let batches = order.chunks_exact(self.batch(dataset).max(1));
        batches.flat_map(|rows| std::iter::repeat_n(rows, SHOWN)).flatten().copied().collect()
    }

    /// Returns the number of steps of the run.
    pub fn steps(&self, dataset: &Dataset) -> u64 {
        u64::from(self.epochs()) * self.steps_per_epoch(dataset) as u64
    }

    /// Returns the optimizer's configuration for a run of this many steps.
    pub fn settings(&self, steps_per_epoch: usize, steps: u64) -> Result<OptimizerSettings, CliError> {
        Ok(OptimizerSettings {
            rule: self.rule(),
            regime: self.regime.regime(self.lr, None)?,
            schedule: self.schedule.over(steps),
            averaging: self.averaged().map_or(Averaging::Off, |average| average.over(steps_per_epoch, steps)),
            weight_decay: self.weight_decay(),
            clip_norm: self.clip_norm,
            per_tensor: self.per_tensor,
            telemetry: self.telemetry,
            state: self.state.0,
            watchdog: self.watchdog.map(WatchdogName::config),
            policy: None,
            gradient_scale: 1.0,
        })
    }

    /// Reads the policy of the learned schedule, if there is one.
    pub fn policy(&self, dataset: &Dataset) -> Result<Option<SchedulePolicy>, CliError> {
        let Some(path) = &self.schedule_policy else {
            return Ok(None);
        };
        let name = escaped(&path.to_string_lossy());
        let refused = |error: &dyn std::fmt::Display| CliError::Usage(format!("--schedule-policy {name}: {error}"));
        let bytes = std::fs::read(path).map_err(|error| refused(&error))?;
        let scale = PolicyScale::FirstLoss { classes: dataset.classes as u32 };
        SchedulePolicy::from_safetensors(scale, &bytes).map(Some).map_err(|error| refused(&error))
    }

    pub fn hidden(&self) -> usize {
        self.hidden.unwrap_or(128) as usize
    }

    /// Returns an error for options that a run with one of these rules would ignore.
    pub fn check_heeded(&self, rules: &[RuleName]) -> Result<(), CliError> {
        // A rule without momentum is the same with both values.
        let heeds = |RuleName(rule): &RuleName| rule.with_momentum(0.25) != rule.with_momentum(0.75);
        if self.momentum.is_some() && !rules.iter().any(heeds) {
            let names: Vec<String> =
                RuleName::value_variants().iter().filter(|rule| heeds(rule)).map(|&rule| name_of(rule)).collect();
            let given: Vec<String> = rules.iter().map(|&rule| name_of(rule)).collect();
            return CliError::usage(format!(
                "--momentum goes with {}, {} would not heed it: leave it out",
                names.join(", "),
                given.join(", ")
            ));
        }
        let has_state = |RuleName(rule): &RuleName| rule.vectors() > 0;
        if self.state.0 != State::F32 && !rules.iter().any(has_state) {
            let given: Vec<String> = rules.iter().map(|&rule| name_of(rule)).collect();
            return CliError::usage(format!(
                "--state goes with rules that keep a momentum or a second moment, {} would not heed it: leave it out",
                given.join(", ")
            ));
        }
        if self.hidden.is_some() && self.model != ModelKind::Mlp {
            return CliError::usage(format!(
                "--hidden goes with --model mlp, {} has no hidden units: leave one of them out",
                name_of(self.model)
            ));
        }
        if self.watchdog.is_some() && self.checkpoint.is_some() {
            return CliError::usage(
                "--watchdog: a checkpoint does not have what the watchdog knows of the run: leave out --watchdog or --checkpoint",
            );
        }
        if self.force && self.trace.is_none() && self.report.is_none() && self.checkpoint.is_none() {
            return CliError::usage("--force replaces files, and the run is to write none: leave it out");
        }
        // A checkpoint keeps the records for a run that is resumed.
        if self.telemetry && !self.json && self.trace.is_none() && self.report.is_none() && self.checkpoint.is_none() {
            return CliError::usage(
                "--telemetry goes into --trace, --report and --json, and none is given: add one, or leave it out",
            );
        }
        Ok(())
    }

    /// Returns an error if a fault is requested for a step that the run does not have.
    pub fn check_injection(&self, steps: u64) -> Result<(), CliError> {
        for (option, step) in [
            ("--inject-nan", self.inject_nan),
            ("--inject-spike", self.inject_spike),
            ("--lose-device", self.lose_device),
        ] {
            if let Some(step) = step.filter(|&step| step >= steps) {
                return CliError::usage(format!("{option} {step}: the run has {steps} steps, counted from 0"));
            }
        }
        Ok(())
    }
}

/// Returns the name of an option's value on the command line.
pub fn name_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
