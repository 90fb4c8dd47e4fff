//! `wgpu-optim train`: the main job. Forward, backward and optimizer on the device (or all on the host), a learning rate that
//! nobody sets, and a table that says what moved it.

mod compare;
mod engine;
mod page;
mod report;
mod saving;
mod verdict;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use wgpu_optim::{
    AdGd, AutoSgd, Averaging, BarzilaiBorwein, DoG, DoWG, Hypergradient, NormRatio, Record, Regime, Rule, Schedule,
    SecantForm, Seesaw, TensorRecord, Term, WeightDecay,
};

use crate::CliError;
use crate::data::{self, Dataset};
use crate::model::{Evaluation, Model, ModelKind, Part};
use crate::table::say;
use crate::target::{Target, TargetArgs, TuningSource};
use engine::{Engine, Injection, OptimizerSettings};
use page::{History, Page};
use report::{Run, TensorFigures};
use saving::{Resumed, Saving, Sofar};
use verdict::Ending;

/// The foot of `train --help`.
pub const AFTER_HELP: &str = "\
Examples:
  wgpu-optim train                                        handwritten digits, nothing to set
  wgpu-optim train --data spirals --rule adamw            a set that is made, schedule-free AdamW
  wgpu-optim train --data my.csv --report run.html        your data, the label last; a page of curves
  wgpu-optim train --compare --data digits,spirals --regimes seesaw
                                                          against the best of a grid of fixed rates, and of peaks with a cosine

Exit code:
  0  the run ended, whatever it has learned
  1  it diverged: a loss that is not finite, above ten times that at the start, or above three times with no more right answers than
     by chance; or every step was skipped; or the device failed. --json has a verdict: ok, diverged or skipped
  2  the command is wrong";

/// The rule of a run that names none: the one that the tables of benches/evidence favour.
const DEFAULT_RULE: RuleName = RuleName::Sgd;

/// `--rule`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RuleName {
    /// Plain SGD.
    Sgd,
    /// SGD with heavy-ball momentum.
    Sgdm,
    /// SGD with Nesterov momentum.
    Nesterov,
    /// The sign of the gradient.
    #[value(name = "signsgd")]
    SignSgd,
    /// The sign of the momentum.
    Signum,
    /// Adam with PyTorch's defaults and its decoupled weight decay of 0.01; where it is schedule-free, with beta1 = 0.
    #[value(name = "adamw")]
    AdamW,
    /// The sign of momentum and gradient.
    Lion,
}

/// `--regime`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RegimeName {
    /// Norm and alignment, nothing to tune.
    Seesaw,
    /// The norm alone.
    NormRatio,
    /// The alignment alone.
    Hypergradient,
    /// The rate given with --lr.
    Fixed,
    /// The sum of squared norms, scale 1.
    #[value(name = "adagrad-norm")]
    AdaGradNorm,
    /// Barzilai-Borwein, s·s/s·y.
    BbLong,
    /// Barzilai-Borwein, s·y/y·y.
    BbShort,
    /// Barzilai-Borwein, the geometric mean.
    BbGeometric,
    /// Malitsky and Mishchenko's secant with bounded growth.
    #[value(name = "adgd")]
    AdGd,
    /// Distance over gradients.
    #[value(name = "dog")]
    DoG,
    /// Distance over weighted gradients.
    #[value(name = "dowg")]
    DoWG,
    /// Loss over squared norm.
    Polyak,
    /// Loss and squared norm, bounded by 1.
    Ngn,
    /// Three streams at three rates, of which the loss picks one; sgd and signsgd only.
    AutoSgd,
}

impl RegimeName {
    /// The regime with its constants; `rate` is that of the fixed one.
    pub fn with_defaults(self, rate: f32) -> Regime {
        match self {
            RegimeName::Seesaw => Regime::seesaw(),
            RegimeName::NormRatio => Regime::norm_ratio(),
            RegimeName::Hypergradient => Regime::hypergradient(),
            RegimeName::Fixed => Regime::fixed(rate),
            RegimeName::AdaGradNorm => Regime::adagrad_norm(),
            RegimeName::BbLong => Regime::barzilai_borwein(SecantForm::Long),
            RegimeName::BbShort => Regime::barzilai_borwein(SecantForm::Short),
            RegimeName::BbGeometric => Regime::barzilai_borwein(SecantForm::Geometric),
            RegimeName::AdGd => Regime::adgd(),
            RegimeName::DoG => Regime::dog(),
            RegimeName::DoWG => Regime::dowg(),
            RegimeName::Polyak => Regime::polyak(),
            RegimeName::Ngn => Regime::ngn(),
            RegimeName::AutoSgd => Regime::auto_sgd(),
        }
    }
}

/// `--schedule`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScheduleName {
    /// None.
    Constant,
    /// Warm-up over a twentieth of the steps, then half a cosine down to 0.
    WarmupCosine,
    /// Warm-up over a twentieth of the steps, then the inverse square root.
    InverseSqrt,
    /// A tenth after each third of the steps.
    Step,
    /// From a twenty-fifth up over three tenths of the steps, then down to 4e-6, each half a cosine: PyTorch's defaults.
    OneCycle,
}

impl ScheduleName {
    /// The schedule of a run of so many steps.
    fn over(self, steps: u64) -> Schedule {
        // A schedule of more steps than its counter can have has not begun to fall by then.
        let steps = u32::try_from(steps).unwrap_or(u32::MAX).max(1);
        let warmup = steps / 20;
        match self {
            ScheduleName::Constant => Schedule::Constant,
            ScheduleName::WarmupCosine => Schedule::WarmupCosine { warmup, steps, last: 0.0 },
            ScheduleName::InverseSqrt => Schedule::InverseSqrt { warmup: warmup.max(1) },
            ScheduleName::Step => Schedule::Step { every: steps.div_ceil(3), factor: 0.1 },
            ScheduleName::OneCycle => {
                Schedule::OneCycle { rise: (u64::from(steps) * 3 / 10) as u32, steps, first: 0.04, last: 4e-6 }
            }
        }
    }
}

/// `--average`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AverageName {
    /// Schedule-free training: gradients are taken between the average and the iterate; for rules without momentum.
    ScheduleFree,
    /// The mean of all of them.
    Running,
    /// An exponential average that looks back over about an epoch: 1 - decay is one over the steps of an epoch.
    Exponential,
    /// A mean whose weights grow as the eighth power of the step: over about the last ninth of the steps so far.
    Polynomial,
}

/// What a run looks at when its steps are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// The average and the last iterate, training rows and test rows.
    Everything,
    /// Only what the run is judged by: the average, or the last iterate where there is none.
    Judged,
    /// Whichever of the average and the last iterate is better on the test rows, which flatters what is chosen by them.
    Better,
}

impl AverageName {
    /// The average for a run of so many steps. Those that remember their start for long begin after the first epoch, or half way where
    /// that comes first.
    fn over(self, steps_per_epoch: usize, steps: u64) -> Averaging {
        // A run of more steps than the counter can have averages none of them.
        let start = u32::try_from((steps / 2).min(steps_per_epoch as u64)).unwrap_or(u32::MAX);
        match self {
            AverageName::ScheduleFree => Averaging::ScheduleFree,
            AverageName::Running => Averaging::Running { start },
            AverageName::Exponential => {
                Averaging::Exponential { decay: 1.0 - (1.0 / steps_per_epoch.max(1) as f32).max(f32::EPSILON), start }
            }
            // It forgets the first steps by itself, and does not depend on how many there will be.
            AverageName::Polynomial => Averaging::polynomial_decay(),
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            AverageName::ScheduleFree => "schedule-free average",
            AverageName::Running => "running average",
            AverageName::Exponential => "exponential average",
            AverageName::Polynomial => "polynomial average",
        }
    }
}

/// Options of `train`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// digits or mushrooms; spirals, parity, sine or board, which are made from a seed and are not nearly linear; or a path: CSV with
    /// the label last, LIBSVM, or a folder of IDX files, gzipped or not. With --compare a comma-separated list
    #[arg(long, default_value = "digits")]
    data: String,
    /// What to train
    #[arg(long, value_enum, default_value = "mlp")]
    model: ModelKind,
    /// Hidden units of the MLP
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    hidden: u32,
    /// Update rule
    #[arg(long, value_enum, default_value_t = DEFAULT_RULE)]
    rule: RuleName,
    /// Momentum of sgdm, nesterov and signum (adamw has 0.9 and 0.999, or 0 and 0.999 where it is schedule-free; lion 0.9 and 0.99)
    #[arg(long, default_value_t = 0.9, allow_negative_numbers = true)]
    momentum: f32,
    /// Learning-rate regime
    #[arg(long, value_enum, default_value = "seesaw")]
    regime: RegimeName,
    /// Learning rate of --regime fixed; first learning rate of --regime norm-ratio
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    lr: Option<f32>,
    /// Factor of the learning rate over the run, whatever the regime
    #[arg(long, value_enum, default_value = "constant")]
    schedule: ScheduleName,
    /// Which average of the weights is kept and evaluated, beside the last ones [default: schedule-free for sgd, signsgd and adamw, where
    /// no --schedule is given; otherwise polynomial; none with --regime auto-sgd]
    #[arg(long, value_enum)]
    average: Option<AverageName>,
    /// Keep no average, and evaluate the weights of the last step. adamw then has its momentum of 0.9
    #[arg(long, conflicts_with = "average")]
    last: bool,
    /// Weight decay, decoupled for adamw and lion and coupled for the others [default: 0.01 for adamw, as in PyTorch, otherwise 0]
    #[arg(long, value_name = "LAMBDA", allow_negative_numbers = true)]
    weight_decay: Option<f32>,
    /// Clip the gradient to this norm
    #[arg(long, value_name = "NORM", allow_negative_numbers = true)]
    clip_norm: Option<f32>,
    /// Passes over the training data [default: 40 for spirals, parity, sine and board, otherwise 10]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: Option<u32>,
    /// Rows per step
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Seed of the initial weights and the order of the rows
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    target: TargetArgs,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Write one row per step: the loss, the rate, and every term that moved it
    #[arg(long, value_name = "FILE.csv")]
    trace: Option<PathBuf>,
    /// Write a page with curves and the largest moves of the learning rate, explained
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Record the norm of every tensor and of its steps: columns of --trace, charts of --report, and in --json the last of them
    #[arg(long)]
    telemetry: bool,
    /// Save the run to this file when it ends, from where --resume goes on
    #[arg(long, value_name = "FILE.safetensors")]
    checkpoint: Option<PathBuf>,
    /// Save it every so many steps, too
    #[arg(long, value_name = "STEPS", requires = "checkpoint", value_parser = clap::value_parser!(u64).range(1..))]
    every: Option<u64>,
    /// Go on from the file of --checkpoint, if it is there, bit for bit as if the run had not been interrupted
    #[arg(long, requires = "checkpoint")]
    resume: bool,
    /// Make the gradients of this step NaN, to see what the optimizer does
    #[arg(long, value_name = "STEP")]
    inject_nan: Option<u64>,
    /// Multiply the gradients of this step by 100, to see what the optimizer does
    #[arg(long, value_name = "STEP")]
    inject_spike: Option<u64>,
    /// Destroy the device before this step, to see the run go on without it: from its last checkpoint, or from the start
    #[arg(long, value_name = "STEP")]
    lose_device: Option<u64>,
    #[command(flatten)]
    compare: compare::CompareArgs,
}

impl Args {
    fn epochs(&self) -> u32 {
        self.epochs.unwrap_or_else(|| data::default_epochs(&self.data))
    }

    /// The average that is kept and evaluated; none where the last iterate is.
    fn averaged(&self) -> Option<AverageName> {
        if self.last {
            return None;
        }
        if self.average.is_some() {
            return self.average;
        }
        // Streams of parameters take turns: there is nothing to average.
        if self.regime == RegimeName::AutoSgd {
            return None;
        }
        // Who gives a schedule wants it instead of what makes do without one.
        let has_schedule = self.schedule != ScheduleName::Constant;
        let schedule_free = AverageName::ScheduleFree;
        let fits = Averaging::ScheduleFree.fits(&self.rule_for(Some(schedule_free)));
        if fits && !has_schedule { Some(schedule_free) } else { Some(AverageName::Polynomial) }
    }

    fn rule(&self) -> Rule {
        self.rule_for(self.averaged())
    }

    fn rule_for(&self, average: Option<AverageName>) -> Rule {
        match self.rule {
            RuleName::Sgd => Rule::sgd(),
            RuleName::Sgdm => Rule::sgdm(self.momentum),
            RuleName::Nesterov => Rule::nesterov(self.momentum),
            RuleName::SignSgd => Rule::sign_sgd(),
            RuleName::Signum => Rule::signum(self.momentum),
            RuleName::AdamW if average == Some(AverageName::ScheduleFree) => Rule::adamw_without_momentum(),
            RuleName::AdamW => Rule::adamw(),
            RuleName::Lion => Rule::lion(),
        }
    }

    /// λ of [`Args::weight_decay`].
    fn decay(&self) -> f32 {
        let (WeightDecay::Coupled(decay) | WeightDecay::Decoupled(decay)) = self.weight_decay();
        decay
    }

    /// Decoupled for the rules that are published with it; AdamW without a word takes PyTorch's.
    fn weight_decay(&self) -> WeightDecay {
        match (self.rule, self.weight_decay) {
            (RuleName::AdamW, None) => WeightDecay::Decoupled(0.01),
            (RuleName::AdamW | RuleName::Lion, Some(decay)) => WeightDecay::Decoupled(decay),
            (_, decay) => WeightDecay::Coupled(decay.unwrap_or(0.0)),
        }
    }

    fn steps_per_epoch(&self, dataset: &Dataset) -> usize {
        dataset.train.rows().div_ceil(self.batch as usize)
    }

    /// The average of a run over these data.
    fn averaging(&self, dataset: &Dataset) -> Averaging {
        self.averaged()
            .map_or(Averaging::Off, |average| average.over(self.steps_per_epoch(dataset), self.steps(dataset)))
    }

    /// Steps of the run. Streams of parameters take turns, and a run ends where the middle one, or the winner, is at hand.
    fn steps(&self, dataset: &Dataset) -> u64 {
        let steps = u64::from(self.epochs()) * self.steps_per_epoch(dataset) as u64;
        let round = match self.regime {
            RegimeName::AutoSgd => u64::from(AutoSgd::STREAMS),
            _ => 1,
        };
        if steps < round { steps } else { steps - steps % round }
    }

    fn injection(&self) -> Injection {
        Injection { nan: self.inject_nan, spike: self.inject_spike, loss_of_device: None }
    }

    /// Refuses to change steps that the run does not have.
    fn check_injection(&self, steps: u64) -> Result<(), CliError> {
        for (option, step) in [
            ("--inject-nan", self.inject_nan),
            ("--inject-spike", self.inject_spike),
            ("--lose-device", self.lose_device),
        ] {
            if let Some(step) = step.filter(|&step| step >= steps) {
                return Err(CliError::Usage(format!("{option} {step}: the run has {steps} steps, counted from 0")));
            }
        }
        Ok(())
    }
}

impl RegimeName {
    /// The regime, with the rate and the `ε` of the first step's length where they are given: every regime the command line knows is
    /// made here or in `with_defaults`.
    fn regime(self, lr: Option<f32>, first_step: Option<f32>) -> Result<Regime, CliError> {
        let mut regime = match (self, lr) {
            (RegimeName::Fixed, None) => {
                return Err(CliError::Usage(
                    "--regime fixed needs a learning rate: add --lr RATE, or leave --regime out and let it be found"
                        .to_owned(),
                ));
            }
            (RegimeName::NormRatio, initial_rate) => {
                Regime::NormRatio(NormRatio { initial_rate, ..NormRatio::default() })
            }
            (RegimeName::Fixed, Some(rate)) => self.with_defaults(rate),
            (_, None) => self.with_defaults(0.0),
            (_, Some(_)) => {
                return Err(CliError::Usage(format!(
                    "--lr goes with --regime fixed or norm-ratio, {} finds its own: leave one of them out",
                    name_of(self)
                )));
            }
        };
        if let Some(given) = first_step {
            match &mut regime {
                Regime::Seesaw(Seesaw { first_step, .. })
                | Regime::NormRatio(NormRatio { first_step, .. })
                | Regime::Hypergradient(Hypergradient { first_step, .. }) => {
                    *first_step = Some(given);
                }
                Regime::BarzilaiBorwein(BarzilaiBorwein { first_step, .. })
                | Regime::AdGd(AdGd { first_step, .. })
                | Regime::AutoSgd(AutoSgd { first_step, .. }) => *first_step = given,
                Regime::DoG(DoG { initial_distance }) | Regime::DoWG(DoWG { initial_distance }) => {
                    *initial_distance = given;
                }
                _ => {
                    return Err(CliError::Usage(format!(
                        "--first-steps: {} has no first step of its own length, name the others with --regimes",
                        name_of(self)
                    )));
                }
            }
        }
        Ok(regime)
    }
}

/// A share from 0 to 1.
fn in_percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

fn name_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Trains, and reports.
pub fn run(args: &Args) -> Result<(), CliError> {
    if args.compare.compare {
        return compare::run(args);
    }
    let mut settings = OptimizerSettings {
        rule: args.rule(),
        regime: args.regime.regime(args.lr, None)?,
        schedule: Schedule::Constant,
        // With any numbers: whether the rule can have it.
        averaging: args.averaged().map_or(Averaging::Off, |average| average.over(1, 1)),
        weight_decay: args.weight_decay(),
        clip_norm: args.clip_norm,
        telemetry: args.telemetry,
        gradient_scale: 1.0,
    };
    settings.check()?;
    let dataset = data::load(&args.data)?;
    args.check_injection(args.steps(&dataset))?;
    settings.schedule = args.schedule.over(args.steps(&dataset));
    settings.averaging = args.averaging(&dataset);
    let model = Model::new(args.model, dataset.features, dataset.classes, args.hidden as usize);
    let target = args.target.find()?;
    if args.lose_device.is_some() && matches!(target, Target::Cpu { .. }) {
        return Err(CliError::Usage(
            "--lose-device: the CPU path has no device to lose, name one with --backend".to_owned(),
        ));
    }
    // Before training, which a path that cannot be written should not cost; and not before the data is read, which may be the
    // same file by mistake.
    let saving = Saving::new(args, &dataset)?;
    let mut resumed = match &saving {
        Some(saving) => saving.resumed(args, args.steps(&dataset))?,
        None => None,
    };
    let step = resumed.as_ref().map_or(0, |run| run.checkpoint.step());
    let trace = args.trace.as_deref().map(|path| Trace::from_step(path, args, &model, step)).transpose()?;
    let page = args.report.as_deref().map(|path| Page::create(path, &args.data, args.trace.as_deref())).transpose()?;
    target.explain();
    for warning in settings.warnings() {
        eprintln!("warning: {warning}");
    }
    if let Some(saving) = saving.as_ref().filter(|_| args.resume) {
        saving.explain(resumed.as_ref());
    }
    let (mut target, mut tuning) = target.tuned_for(model.padded_len());
    let progress = progress_bar(args.steps(&dataset));
    progress.set_position(step);
    let mut watch = Watch {
        history: page.as_ref().map(|_| History::new(args.steps(&dataset))),
        saved_history: None,
        progress: &progress,
        trace,
        saving: saving.as_ref(),
        lose_device: args.lose_device,
    };
    let mut lost = Vec::new();
    let run = loop {
        let trained = train(args, &settings, &dataset, &target, &model, resumed, &mut watch, Look::Everything);
        let error = match trained {
            Ok(run) => break Run { tuning, ..run },
            Err(error) => error,
        };
        let (Target::Gpu(gpu), Some(reason)) = (&target, error.lost_device()) else {
            return Err(error);
        };
        lost.push(gpu.device().adapter_info());
        let from = gpu.describe();
        (target, tuning) = Target::instead_of(&lost).tuned_for(model.padded_len());
        resumed = watch.rewind(args, &dataset, &model)?;
        let step = resumed.as_ref().map_or(0, |run| run.checkpoint.step());
        eprintln!(
            "the device {from} is lost ({reason}): going on {} on {}",
            match step {
                0 => "from the start".to_owned(),
                step => format!("from the checkpoint of step {step}"),
            },
            target.in_words()
        );
    };
    progress.finish_and_clear();
    if let (Some(page), Some(history)) = (page, &watch.history) {
        page.write(args, &run, &model, history)?;
    }
    let failure = verdict::in_words(args, &run);
    if args.json {
        say(report::json(&[run]))?;
    } else {
        report::print(args, &run, &model)?;
    }
    failure.map_or(Ok(()), |words| Err(CliError::Failed(words)))
}

/// Who looks on while a model trains, and who interferes.
struct Watch<'a> {
    /// Of `--report`.
    history: Option<History>,
    /// The same when the run was last saved.
    saved_history: Option<History>,
    progress: &'a ProgressBar,
    trace: Option<Trace>,
    saving: Option<&'a Saving>,
    /// The step before which the device is to be lost.
    lose_device: Option<u64>,
}

impl Watch<'_> {
    /// Goes back to where the run was last saved, or to its start, and says from what it is to go on.
    fn rewind(&mut self, args: &Args, dataset: &Dataset, model: &Model) -> Result<Option<Resumed>, CliError> {
        let steps = args.steps(dataset);
        let resumed = match self.saving {
            Some(saving) => saving.last(args, steps)?,
            None => None,
        };
        let step = resumed.as_ref().map_or(0, |run| run.checkpoint.step());
        // What has not been written of the old one yet is of steps that are taken again.
        if let (Some(trace), Some(path)) = (self.trace.take(), &args.trace) {
            trace.finish()?;
            self.trace = Some(Trace::from_step(path, args, model, step)?);
        }
        if self.history.is_some() {
            let saved = self.saved_history.clone();
            self.history = Some(saved.unwrap_or_else(|| History::new(steps)));
        }
        self.progress.set_position(step);
        Ok(resumed)
    }
}

/// One run, or the rest of one; `progress` hears of each step and of each epoch.
#[expect(clippy::too_many_arguments)]
fn train(
    args: &Args,
    settings: &OptimizerSettings,
    dataset: &Dataset,
    target: &Target,
    model: &Model,
    resumed: Option<Resumed>,
    watch: &mut Watch,
    look: Look,
) -> Result<Run, CliError> {
    let rows = dataset.train.rows();
    let batch = (args.batch as usize).min(rows);
    let steps = args.steps(dataset);
    let per_epoch = args.steps_per_epoch(dataset);
    let mut engine = Engine::new(
        target,
        model,
        dataset,
        batch,
        settings,
        Injection {
            // Once is enough.
            loss_of_device: watch.lose_device.take(),
            ..args.injection()
        },
        args.seed,
    )?;
    let progress = watch.progress;
    let mut sofar = Sofar::default();
    let mut done = 0;
    if let Some(resumed) = resumed {
        engine.restore(&resumed.checkpoint)?;
        done = resumed.checkpoint.step();
        sofar = resumed.sofar;
    }
    let timed_steps = steps - done;
    let mut last_loss = None;

    let started = Instant::now();
    // What the report costs is not the training's time.
    let mut looking_on = Duration::ZERO;
    let mut order: Vec<u32> = (0..rows as u32).collect();
    // A stream of its own, so that the order of the rows does not depend on how many weights there are.
    let mut shuffle = ChaCha8Rng::seed_from_u64(args.seed);
    shuffle.set_stream(1);
    for epoch in 0..args.epochs() {
        // Each order is made of the one before, those of an earlier process too.
        order.shuffle(&mut shuffle);
        let start = u64::from(epoch) * per_epoch as u64;
        // An optimizer of streams may end its last round early.
        let end = (start + per_epoch as u64).min(steps);
        // A run that goes on from its last step before an epoch's end was looked at still has to do that.
        let is_over = done > end || start >= end;
        if is_over || done == end && watch.history.is_none() {
            continue;
        }
        if done < end {
            engine.begin_epoch(&order, (done - start) as usize);
        }
        while done < end {
            let saved = watch.saving.and_then(|saving| saving.next_after(done));
            let until = saved.map_or(end, |saved| saved.min(end));
            let stretch = (done - start) as usize..(until - start) as usize;
            let (losses, records) = engine.train(&order, stretch, |steps| progress.inc(steps as u64))?;
            done = until;
            // As many of each step, or none.
            let per_step = records.tensors.len() / records.records.len().max(1);
            let mut tensors = records.tensors.chunks(per_step.max(1));
            let records = &records.records;
            last_loss = losses.last().copied().or(last_loss);
            for (loss, record) in losses.iter().zip(records) {
                let tensors = tensors.next().unwrap_or_default();
                sofar.add(*loss, record, tensors);
                if let Some(trace) = &mut watch.trace {
                    trace.write(*loss, record, tensors)?;
                }
                if let Some(history) = &mut watch.history {
                    history.add(*loss, record, tensors);
                }
            }
            if let (Some(loss), Some(record)) = (losses.last(), records.last()) {
                progress.set_message(format!("epoch {}, loss {loss:.4}, lr {:.3e}", epoch + 1, record.learning_rate));
            }
            if let Some(saving) = watch.saving.filter(|saving| saving.is_due(done, done == steps)) {
                // First the rows up to here, so that whoever goes on from here finds them.
                if let Some(trace) = &mut watch.trace {
                    trace.sync()?;
                }
                saving.save(&engine.checkpoint(&saving.notes(&sofar))?)?;
                watch.saved_history.clone_from(&watch.history);
            }
        }
        if let Some(history) = &mut watch.history {
            let before = Instant::now();
            let test = match args.averaged() {
                Some(_) => engine.with_averages(|engine| engine.evaluate(Part::Test))?,
                None => engine.evaluate(Part::Test)?,
            };
            history.end_epoch(test.accuracy);
            looking_on += before.elapsed();
        }
    }
    let seconds = (started.elapsed() - looking_on).as_secs_f64();
    if let Some(trace) = watch.trace.take() {
        trace.finish()?;
    }
    let Sofar { first_loss, rates, causes, tensors } = sofar;
    let Figures { evaluated, train, test, last, averaged_accuracy } = figures(&mut engine, args.averaged(), look)?;
    let start_loss = verdict::start_loss(model, first_loss);
    let verdict = Ending {
        loss: train.loss,
        others: [last_loss.map(f64::from), last.and_then(|(loss, _)| loss)],
        start: start_loss,
        accuracy: test.accuracy,
        chance: dataset.chance(),
        every_step_skipped: causes.skipped == steps,
    }
    .verdict();
    Ok(Run {
        tuning: TuningSource::Preset,
        data: dataset.name.clone(),
        model: name_of(args.model),
        rule: name_of(args.rule),
        regime: name_of(args.regime),
        schedule: name_of(args.schedule),
        backend: target.backend(),
        adapter: target.adapter(),
        epochs: args.epochs(),
        batch,
        seed: args.seed,
        steps,
        momentum: settings.rule.momentum(),
        verdict,
        evaluated: evaluated.map_or_else(|| "last".to_owned(), name_of),
        evaluated_in_words: evaluated.map_or("last iterate", AverageName::in_words),
        start_loss,
        train_loss: train.loss,
        test_accuracy: test.accuracy,
        last_train_loss: last.and_then(|(loss, _)| loss),
        last_test_accuracy: last.map(|(_, accuracy)| accuracy),
        averaged_test_accuracy: averaged_accuracy,
        nonfinite_test_rows: test.nonfinite_rows,
        lr_first: rates.first,
        lr_last: rates.last,
        lr_min: rates.min,
        lr_max: rates.max,
        skipped_steps: causes.skipped,
        seconds,
        timed_steps,
        causes,
        tensors: tensors.iter().map(|record| TensorFigures::new(record, model)).collect(),
    })
}

/// What a run comes to.
struct Figures {
    /// The average that the figures are of; none where they are of the last iterate.
    evaluated: Option<AverageName>,
    train: Evaluation,
    test: Evaluation,
    /// Of the last iterate, where it was looked at beside an average: training loss and test accuracy.
    last: Option<(Option<f64>, f64)>,
    /// Test accuracy of the average, where it was looked at.
    averaged_accuracy: Option<f64>,
}

/// Looks at what was trained, no more than once at anything.
fn figures(engine: &mut Engine, average: Option<AverageName>, look: Look) -> Result<Figures, CliError> {
    let Some(average) = average else {
        return Ok(Figures {
            evaluated: None,
            train: engine.evaluate(Part::Train)?,
            test: engine.evaluate(Part::Test)?,
            last: None,
            averaged_accuracy: None,
        });
    };
    let last = match look {
        Look::Judged => None,
        Look::Better => Some((None, engine.evaluate(Part::Test)?)),
        Look::Everything => {
            let train = engine.evaluate(Part::Train)?;
            Some((Some(train.loss), engine.evaluate(Part::Test)?))
        }
    };
    let (train, test) = engine.with_averages(|engine| {
        let test = engine.evaluate(Part::Test)?;
        let worse = last.is_some_and(|(_, last)| last.accuracy > test.accuracy);
        // The training rows are many: only those of what is chosen.
        let train = if look == Look::Better && worse { None } else { Some(engine.evaluate(Part::Train)?) };
        Ok((train, test))
    })?;
    let (evaluated, train, judged) = match train {
        Some(train) => (Some(average), train, test),
        None => {
            let last = last.map_or(test, |(_, last)| last);
            (None, engine.evaluate(Part::Train)?, last)
        }
    };
    Ok(Figures {
        evaluated,
        train,
        test: judged,
        last: last.map(|(loss, test)| (loss, test.accuracy)),
        averaged_accuracy: Some(test.accuracy),
    })
}

fn progress_bar(steps: u64) -> ProgressBar {
    // Draws on standard error, and only where that is a terminal.
    let bar = ProgressBar::new(steps);
    if let Ok(style) = ProgressStyle::with_template("{bar:32} {pos}/{len} steps, {eta} left  {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Creates the file that an option names, unless that would overwrite the data.
fn create_beside(option: &str, path: &Path, data: &str) -> Result<File, CliError> {
    refuse_data(option, path, data)?;
    create_file(option, path)
}

/// Refuses an option that would overwrite the data.
fn refuse_data(option: &str, path: &Path, data: &str) -> Result<(), CliError> {
    if let (Ok(file), Ok(data)) = (path.canonicalize(), Path::new(data).canonicalize())
        && file == data
    {
        return Err(CliError::Usage(format!(
            "{option} {} would overwrite the data: give it another name",
            path.display()
        )));
    }
    Ok(())
}

/// Creates the file that an option names.
fn create_file(option: &str, path: &Path) -> Result<File, CliError> {
    File::create(path).map_err(|error| CliError::Write {
        path: path.display().to_string(),
        message: format!("{error}; give {option} a file in a folder that exists"),
    })
}

/// The file of `--trace`.
struct Trace {
    path: String,
    writer: csv::Writer<BufWriter<File>>,
}

/// The columns before those of the terms, which the flags follow.
const TRACE_HEADER: [&str; 5] = ["step", "loss", "norm", "smoothed_norm", "ln_lr"];

/// Of every tensor with --telemetry, after everything else, named `tensor.column`.
const TENSOR_COLUMNS: [&str; 4] = ["parameter_norm", "step_norm", "relative_step", "effective_lr"];

/// The names of all columns.
fn trace_columns(args: &Args, model: &Model) -> impl Iterator<Item = String> {
    let terms = Term::ALL.map(|term| format!("{}_term", term.name()));
    let flags = ["flags".to_owned()];
    let recorded = args.telemetry.then(|| model.tensors()).into_iter().flatten();
    let tensors = recorded.flat_map(|tensor| TENSOR_COLUMNS.map(|column| format!("{}.{column}", tensor.name)));
    let header = TRACE_HEADER.map(str::to_owned).into_iter();
    header.chain(terms).chain(flags).chain(tensors)
}

impl Trace {
    /// The trace of a run, or of the rest of one from this step on: after the rows that an earlier process left in the file, if there
    /// is one.
    fn from_step(path: &Path, args: &Args, model: &Model, step: u64) -> Result<Self, CliError> {
        refuse_data("--trace", path, &args.data)?;
        let columns: Vec<String> = trace_columns(args, model).collect();
        let kept = if step > 0 && path.exists() { Some(Self::keep(path, &columns.join(","), step)?) } else { None };
        let is_new = kept.is_none();
        let file = match kept {
            Some(file) => file,
            None => create_file("--trace", path)?,
        };
        let mut trace =
            Trace { path: path.display().to_string(), writer: csv::Writer::from_writer(BufWriter::new(file)) };
        if is_new {
            trace.row(columns.into_iter())?;
        }
        Ok(trace)
    }

    /// The file of an earlier process, cut off after the rows of the steps before this one.
    fn keep(path: &Path, header: &str, step: u64) -> Result<File, CliError> {
        let shown = path.display();
        let words = |error: std::io::Error| CliError::Write { path: shown.to_string(), message: error.to_string() };
        let refused = |what: String| {
            CliError::Usage(format!(
                "--resume: {what} in {shown}, so that the rows from step {step} on cannot follow: give --trace another file"
            ))
        };
        let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(words)?;
        let mut reader = BufReader::new(&file);
        let mut kept = 0;
        let mut line = String::new();
        for row in 0..=step {
            line.clear();
            kept += reader.read_line(&mut line).map_err(words)? as u64;
            let first = line.split(',').next().unwrap_or_default();
            match row.checked_sub(1) {
                None if line.trim_end() != header => {
                    return Err(refused("the header is not that of this run's trace".to_owned()));
                }
                Some(row) if !line.ends_with('\n') || first != row.to_string() => {
                    return Err(refused(format!("there is no row of step {row}")));
                }
                _ => {}
            }
        }
        file.set_len(kept).map_err(words)?;
        file.seek(SeekFrom::End(0)).map_err(words)?;
        Ok(file)
    }

    /// Brings every row so far to the disk.
    fn sync(&mut self) -> Result<(), CliError> {
        let flushed = self.writer.flush();
        flushed
            .and_then(|()| self.writer.get_ref().get_ref().sync_data())
            .map_err(|error| self.failed(&error.to_string()))
    }

    fn write(&mut self, loss: f32, record: &Record, tensors: &[TensorRecord]) -> Result<(), CliError> {
        let fields = [
            record.step.to_string(),
            loss.to_string(),
            record.norm.to_string(),
            record.smoothed_norm.to_string(),
            record.ln_rate.to_string(),
        ];
        let terms = record.terms().map(|(_, value)| value.to_string());
        let flags = [record.flags.to_string()];
        let tensors = tensors.iter().flat_map(|tensor| {
            [
                tensor.parameter_norm.to_string(),
                tensor.step_norm.to_string(),
                tensor.relative_step().to_string(),
                tensor.effective_rate().to_string(),
            ]
        });
        self.row(fields.into_iter().chain(terms).chain(flags).chain(tensors))
    }

    fn row(&mut self, fields: impl Iterator<Item = String>) -> Result<(), CliError> {
        self.writer.write_record(fields).map_err(|error| self.failed(&error.to_string()))
    }

    fn finish(mut self) -> Result<(), CliError> {
        self.writer.flush().map_err(|error| self.failed(&error.to_string()))?;
        match self.writer.into_inner() {
            Ok(mut file) => {
                file.flush().map_err(|error| CliError::Write { path: self.path, message: error.to_string() })
            }
            Err(error) => Err(CliError::Write { path: self.path, message: error.to_string() }),
        }
    }

    fn failed(&self, message: &str) -> CliError {
        CliError::Write { path: self.path.clone(), message: message.to_owned() }
    }
}
