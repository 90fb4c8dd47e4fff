//! `--checkpoint`, `--every` and `--resume`: a run that was interrupted continues as if it had not been.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wgpu_optim::{Checkpoint, NonFinite, Notes, Record, State, TensorRecord, Term};

use super::options::{Args, AverageName, ScheduleName, name_of};
use super::report::{Cause, Causes, RateRange};
use crate::CliError;
use crate::data::{Dataset, Split};
use crate::files::{Check, Output, warn_of_failure};
use crate::model::ModelKind;
use crate::table::tell;

/// Key of the note with a run's [`Progress`] in a checkpoint.
const NOTE: &str = "train";

/// Settings that `--change` may change, because the problem stays the same.
const CHANGEABLE: [&str; 11] = [
    "--average",
    "--batch",
    "--clip-norm",
    "--lr",
    "--momentum",
    "--regime",
    "--rule",
    "--schedule",
    "--state",
    "--telemetry",
    "--weight-decay",
];

/// File and interval of the checkpoints of a run.
pub struct Saving {
    output: Output,
    every: Option<u64>,
    settings: BTreeMap<String, String>,
    /// True if the file belongs to this run.
    is_ours: Cell<bool>,
    /// Step of the file that existed, if it belongs to the same run. Checkpoints of earlier steps do not replace it.
    kept: Cell<u64>,
    /// Checkpoint that did not replace the file.
    in_memory: RefCell<Option<Checkpoint>>,
    /// Reason why the current state is not in the file.
    failure: RefCell<Option<String>>,
}

/// [`Sofar`] as stored in a checkpoint's notes. Floating-point numbers are stored as their bits.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    settings: BTreeMap<String, String>,
    /// Loss of the first batch. Older files do not have it.
    #[serde(default)]
    first_loss: Option<u32>,
    /// First, last, least and greatest learning rate.
    rates: [u32; 4],
    /// Sums that each term added to ln η and took away from it.
    terms: BTreeMap<String, [u64; 2]>,
    skipped: u64,
    /// Step, number of elements, tensor and element.
    first_skipped: Option<(u64, u32, usize, u64)>,
    clipped: u64,
    /// Step, tensor, whether it was skipped, and the norms of parameters and step and the rate.
    tensors: Vec<(u64, usize, bool, [u32; 3])>,
}

/// Statistics of the steps so far, for the report at the end of the run.
#[derive(Debug, Default)]
pub struct Sofar {
    pub first_loss: Option<f32>,
    pub rates: RateRange,
    pub causes: Causes,
    /// Tensor records of the last step, with `--telemetry`.
    pub tensors: Vec<TensorRecord>,
}

impl Sofar {
    pub fn add(&mut self, loss: f32, record: &Record, tensors: &[TensorRecord]) {
        self.first_loss.get_or_insert(loss);
        self.rates.add(record);
        self.causes.add(record);
        self.tensors.clear();
        self.tensors.extend_from_slice(tensors);
    }
}

/// Run to resume.
pub struct Resumed {
    pub checkpoint: Checkpoint,
    /// Settings that `--change` has changed, in words.
    pub changes: Vec<String>,
    pub sofar: Sofar,
}

impl Saving {
    /// Creates the saving that the options ask for, if the file may be written.
    pub fn new(args: &Args, dataset: &Dataset, check: &mut Check) -> Result<Option<Self>, CliError> {
        let Some(path) = &args.checkpoint else {
            return Ok(None);
        };
        // The contents of a checkpoint are checked below.
        let output = check.output("--checkpoint", path, |_| true)?;
        if !output.is_file {
            return CliError::usage(format!(
                "--checkpoint {}: it is a device, and a checkpoint is replaced as a whole: give a file",
                output.shown
            ));
        }
        let (settings, is_ours, kept) = (settings(args, dataset), Cell::new(false), Cell::new(0));
        let saving = Saving {
            output,
            every: args.every,
            settings,
            is_ours,
            kept,
            in_memory: RefCell::default(),
            failure: RefCell::default(),
        };
        if !args.resume && !args.force {
            saving.check_replaceable(args.steps(dataset))?;
        }
        Ok(Some(saving))
    }

    /// Locks other processes out of the file.
    pub fn claimed(self) -> Result<Self, CliError> {
        Ok(Saving { output: self.output.claimed()?, ..self })
    }

    /// Returns an error if the file is not a checkpoint, belongs to another run, or is at a later step than the end of
    /// this run.
    fn check_replaceable(&self, steps: u64) -> Result<(), CliError> {
        let Output { given: path, shown, .. } = &self.output;
        if self.output.about()?.is_none_or(|about| about.len() == 0) {
            return Ok(());
        }
        let refused = |what: String| {
            CliError::usage(format!("--checkpoint {shown}: {what}: give another name, or --force to replace it"))
        };
        let checkpoint = match Checkpoint::load(path) {
            Ok(checkpoint) => checkpoint,
            Err(error) => return refused(format!("this file is there, and cannot be read as a checkpoint ({error})")),
        };
        let Some(progress) = Progress::of(&checkpoint) else {
            return refused("this checkpoint was not saved by `wgpu-optim train`".to_owned());
        };
        match self.differences(&progress).first() {
            Some((name, then, now)) => {
                refused(format!("this checkpoint is of another run, {name} was {then} and is {now} now"))
            }
            None if checkpoint.step() > steps => refused(format!(
                "this checkpoint is at step {}, and this run ends at step {steps} (--resume goes on from it)",
                checkpoint.step()
            )),
            None => {
                self.kept.set(checkpoint.step());
                Ok(())
            }
        }
    }

    /// Returns the settings that differ: their names, their old and their new values.
    fn differences(&self, progress: &Progress) -> Vec<(String, String, String)> {
        let gone = progress.settings.keys().filter(|name| !self.settings.contains_key(*name));
        let differences = self.settings.keys().chain(gone).filter_map(|name| {
            let [then, now] = [&progress.settings, &self.settings]
                .map(|settings| settings.get(name).map_or("not given", String::as_str));
            (then != now).then(|| (name.clone(), then.to_owned(), now.to_owned()))
        });
        differences.collect()
    }

    /// Returns the run in the file, if the file exists and `--resume` is given.
    pub fn resumed(&self, args: &Args, steps: u64) -> Result<Option<Resumed>, CliError> {
        if !args.resume || self.output.about()?.is_none() {
            return Ok(None);
        }
        let run = self.load(args, steps)?;
        let done = run.checkpoint.step();
        if args.report.is_some() && done > 0 {
            return CliError::usage(format!(
                "--report would lack the first {done} steps, which an earlier process ran: leave it out, --trace goes on where it was"
            ));
        }
        self.is_ours.set(true);
        Ok(Some(run))
    }

    /// Returns the state that this process has saved last or was resumed from.
    pub fn last(&self, args: &Args, steps: u64) -> Result<Option<Resumed>, CliError> {
        let in_memory = self.in_memory.borrow().clone();
        if let Some(checkpoint) = in_memory.filter(|_| !self.is_ours.get()) {
            let sofar = Progress::of(&checkpoint).unwrap_or_default().sofar();
            return Ok(Some(Resumed { checkpoint, changes: Vec::new(), sofar }));
        }
        self.is_ours.get().then(|| self.load(args, steps)).transpose()
    }

    fn load(&self, args: &Args, steps: u64) -> Result<Resumed, CliError> {
        let shown = &self.output.shown;
        let checkpoint = Checkpoint::load(&self.output.given)?;
        let Some(progress) = Progress::of(&checkpoint) else {
            return CliError::usage(format!(
                "--resume: {shown} is a checkpoint, but was not saved by `wgpu-optim train`: name another with --checkpoint"
            ));
        };
        let differences = self.differences(&progress);
        let is_changed = |name: &str| CHANGEABLE.contains(&name);
        if let Some((name, then, now)) = differences.iter().find(|(name, ..)| !args.change || !is_changed(name)) {
            let or_change = if is_changed(name) { ", --change to go on with it" } else { "" };
            return CliError::usage(format!(
                "--resume: {name} was {then} when {shown} was saved, and is {now} now: give the same{or_change}, or start anew without --resume"
            ));
        }
        let changes =
            differences.into_iter().map(|(name, then, now)| format!("{name} was {then}, is {now} now")).collect();
        let done = checkpoint.step();
        if done > steps {
            return CliError::usage(format!(
                "--resume: {shown} is at step {done}, but --epochs {} end at step {steps}: give more epochs",
                args.epochs()
            ));
        }
        Ok(Resumed { sofar: progress.sofar(), changes, checkpoint })
    }

    /// Reports on standard error where a run that was to be resumed begins.
    pub fn explain(&self, resumed: Option<&Resumed>) {
        let shown = &self.output.shown;
        match resumed {
            Some(run) => tell(format!("going on at step {}, from {shown}", run.checkpoint.step())),
            None => tell(format!("{shown} is not there yet: beginning at step 0")),
        }
    }

    /// Returns the next step after `step` at which the run is saved, except the last step of the run.
    pub fn next_after(&self, step: u64) -> Option<u64> {
        self.every.map(|every| (step / every + 1) * every)
    }

    /// Returns true if the run is saved after this many steps.
    pub fn is_due(&self, step: u64, last: bool) -> bool {
        last || self.every.is_some_and(|every| step.is_multiple_of(every))
    }

    pub fn notes(&self, sofar: &Sofar) -> Notes {
        let progress = Progress::new(&self.settings, sofar);
        // Serializing maps of strings and integers cannot fail.
        let note = serde_json::to_string(&progress).unwrap_or_default();
        Notes::from([(NOTE.to_owned(), note)])
    }

    /// Saves the run, unless the file has a later step of the same run. A failure is a warning: the run goes on, and
    /// the next attempt may succeed.
    pub fn save(&self, checkpoint: Checkpoint) {
        let kept = self.kept.get();
        if checkpoint.step() < kept {
            let shown = &self.output.shown;
            if self.in_memory.replace(Some(checkpoint)).is_none() {
                tell(format!(
                    "{shown} is at step {kept} of this run already, and is not replaced before that: --resume goes on from it, --force replaces it"
                ));
            }
            return;
        }
        let failure = checkpoint.save(&self.output.given).err().map(|error| error.to_string());
        if failure.is_none() {
            self.is_ours.set(true);
        }
        // Only the first failure is reported.
        if let Some(message) = failure.as_ref().filter(|_| self.failure.borrow().is_none()) {
            warn_of_failure(message);
        }
        self.failure.replace(failure);
    }

    /// Returns the reason if the end of the run is not in the file.
    pub fn failure(&self) -> Option<String> {
        self.failure.take()
    }
}

/// Returns all settings that a run's steps depend on, by option. The number of epochs is included only if a schedule or
/// an average depends on it.
fn settings(args: &Args, dataset: &Dataset) -> BTreeMap<String, String> {
    let rule = args.rule();
    let over = |name| format!("{name} over {} epochs", args.epochs());
    let schedule = name_of(args.schedule);
    let average = args.averaged().map(|average| match average {
        AverageName::ScheduleFree | AverageName::Polynomial => name_of(average),
        // The start of these averages depends on the number of epochs.
        AverageName::Running | AverageName::Exponential => over(name_of(average)),
    });
    let settings = [
        ("the data of --data", Some(identity(dataset))),
        ("--model", Some(name_of(args.model))),
        ("--hidden", (args.model == ModelKind::Mlp).then(|| args.hidden().to_string())),
        ("--rule", Some(name_of(args.rule))),
        ("--momentum", rule.has_momentum().then(|| rule.momentum().to_string())),
        ("--regime", Some(name_of(args.regime))),
        ("--schedule", Some(if args.schedule == ScheduleName::CONSTANT { schedule } else { over(schedule) })),
        ("--telemetry", Some(if args.telemetry { "given" } else { "not given" }.to_owned())),
        ("--weight-decay", Some(args.decay().to_string())),
        ("--batch", Some(args.batch.to_string())),
        ("--seed", Some(args.seed.to_string())),
        ("--average", average),
        ("--lr", args.lr.map(|rate| rate.to_string())),
        ("--clip-norm", args.clip_norm.map(|norm| norm.to_string())),
        ("--state", (args.state.0 != State::F32).then(|| args.state.0.name().to_owned())),
        ("--inject-nan", args.inject_nan.map(|step| step.to_string())),
        ("--inject-spike", args.inject_spike.map(|step| step.to_string())),
    ];
    settings.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// Returns a text that identifies data, wherever they are stored: `1437 + 360 rows of 64 features, 10 classes (checksum
/// 0f1e2d3c)`.
fn identity(dataset: &Dataset) -> String {
    let mut checksum = flate2::Crc::new();
    for Split { x, y } in [&dataset.train, &dataset.test] {
        checksum.update(bytemuck::cast_slice(x));
        checksum.update(bytemuck::cast_slice(y));
    }
    let [train, test] = [&dataset.train, &dataset.test].map(Split::rows);
    let (Dataset { features, classes, .. }, checksum) = (dataset, checksum.sum());
    format!("{train} + {test} rows of {features} features, {classes} classes (checksum {checksum:08x})")
}

impl Progress {
    /// Reads the progress from a checkpoint that `train` saved.
    fn of(checkpoint: &Checkpoint) -> Option<Self> {
        checkpoint.notes().get(NOTE).and_then(|note| serde_json::from_str(note).ok())
    }

    fn new(settings: &BTreeMap<String, String>, sofar: &Sofar) -> Self {
        let Sofar { first_loss, rates, causes, tensors } = sofar;
        let terms = Term::ALL.iter().zip(causes.terms);
        let tensor = |record: &TensorRecord| {
            let numbers = [record.parameter_norm, record.step_norm, record.learning_rate];
            (record.step, record.tensor, record.skipped, numbers.map(f32::to_bits))
        };
        Progress {
            settings: settings.clone(),
            first_loss: first_loss.map(f32::to_bits),
            rates: [rates.lr_first, rates.lr_last, rates.lr_min, rates.lr_max].map(f32::to_bits),
            terms: terms
                .map(|(term, cause)| (term.name().to_owned(), [cause.up, cause.down].map(f64::to_bits)))
                .collect(),
            skipped: causes.skipped,
            first_skipped: causes.first_skipped.map(|(step, what)| (step, what.count, what.tensor, what.element)),
            clipped: causes.clipped,
            tensors: tensors.iter().map(tensor).collect(),
        }
    }

    fn sofar(&self) -> Sofar {
        let [lr_first, lr_last, lr_min, lr_max] = self.rates.map(f32::from_bits);
        let cause = |term: Term| {
            let [up, down] = self.terms.get(term.name()).copied().unwrap_or_default().map(f64::from_bits);
            Cause { up, down }
        };
        let tensor = |&(step, tensor, skipped, numbers): &(_, _, _, [u32; 3])| {
            let [parameter_norm, step_norm, learning_rate] = numbers.map(f32::from_bits);
            TensorRecord { step, tensor, skipped, parameter_norm, step_norm, learning_rate }
        };
        let first_skipped = self.first_skipped;
        Sofar {
            first_loss: self.first_loss.map(f32::from_bits),
            rates: RateRange { lr_first, lr_last, lr_min, lr_max },
            causes: Causes {
                terms: std::array::from_fn(|index| cause(Term::ALL[index])),
                skipped: self.skipped,
                first_skipped: first_skipped
                    .map(|(step, count, tensor, element)| (step, NonFinite { count, tensor, element })),
                clipped: self.clipped,
            },
            tensors: self.tensors.iter().map(tensor).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_comes_back_bit_for_bit() {
        let mut causes = Causes {
            skipped: 3,
            first_skipped: Some((u64::MAX, NonFinite { count: 4, tensor: 2, element: u64::MAX })),
            clipped: 5,
            ..Causes::default()
        };
        for (index, cause) in causes.terms.iter_mut().enumerate() {
            *cause = Cause { up: 1.0 / (3.0 + index as f64), down: -0.0 };
        }
        let (parameter_norm, step_norm, learning_rate) = (f32::NAN, -0.0, 0.1);
        let tensor =
            TensorRecord { step: u64::MAX, tensor: 3, skipped: true, parameter_norm, step_norm, learning_rate };
        let rates = RateRange { lr_first: 0.1, lr_last: f32::MIN_POSITIVE, lr_min: 1e-30, lr_max: 0.3 };
        let sofar = Sofar { first_loss: Some(f32::NAN), rates, causes, tensors: vec![tensor] };
        let json = serde_json::to_string(&Progress::new(&BTreeMap::new(), &sofar)).expect("JSON");
        let read: Progress = serde_json::from_str(&json).expect("JSON");
        assert_eq!(format!("{:?}", read.sofar()), format!("{sofar:?}"));
    }

    /// Moving one value to another row, or changing one label, makes other data.
    #[test]
    fn data_are_told_apart() {
        let split = |x: &[f32], y: &[u32]| Split { x: x.to_vec(), y: y.to_vec() };
        let set = |train: Split, test: Split| Dataset { name: "set".to_owned(), features: 1, classes: 2, train, test };
        let a = || split(&[1.0, 2.0], &[0, 1]);
        let all = [
            set(a(), a()),
            set(split(&[2.0, 1.0], &[0, 1]), a()),
            set(split(&[1.0, 2.0], &[1, 1]), a()),
            set(a(), split(&[1.0, -2.0], &[0, 1])),
            set(split(&[1.0, -2.0], &[0, 1]), a()),
        ];
        let mut names: Vec<String> = all.iter().map(identity).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len());
    }
}
