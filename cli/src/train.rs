//! `wgpu-optim train`: trains a model. Forward pass, backward pass and optimizer run on the device (or all on the
//! host), the learning rate needs no setting, and a table explains its changes.

mod charts;
mod compare;
mod engine;
mod history;
mod options;
mod page;
mod report;
mod saving;
mod story;
mod trace;
mod verdict;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use wgpu_optim::{Differences, EpochOutcome, TensorRecord};

use crate::CliError;
use crate::data::{self, Dataset};
use crate::files::{Check, Output, ReportFile, is_page};
use crate::model::{Evaluation, Model, Part};
use crate::signals::{self, Signal};
use crate::table::{progress_bar, say, tell};
use crate::target::{Target, TuningSource};
use crate::words::{grouped, number};
use engine::{Engine, Injection, OptimizerSettings, with_averages};
use history::History;
pub use options::{Args, RegimeName, RuleName};
use options::{AverageName, name_of};
use report::{Run, Watched, tensor_figures};
use saving::{Resumed, Saving, Sofar};
use story::Aftermaths;
use trace::{Trace, is_trace};
use verdict::Ending;

/// Text at the end of `-h`.
pub const EXAMPLES: &str = "\
Examples:
  wgpu-optim train                              handwritten digits, nothing to set
  wgpu-optim train --data spirals --rule adamw  a set that is made from a seed
  wgpu-optim train --data my.csv --label kind --report run.html
                                                your data, and a page of curves
  wgpu-optim train --compare --data digits,spirals --regimes seesaw
                                                against a grid of fixed rates";

/// Text at the end of `--help`, after the examples.
pub const EXIT_CODES: &str = "\
Exit code:
  0  the run ended, whatever it has learned
  1  it diverged: a loss that is not finite, above ten times that at the start, or above three times with no more right answers than
     by chance; or every step was skipped; or the device failed. --json has a verdict: ok, diverged or skipped
  2  the command is wrong
  128 and the number of the signal, 130 for Ctrl-C
     SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM or SIGXCPU ended it: after the step that was running, with
     everything printed and written as at the end. A second signal ends it at once";

/// Evaluations at the end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// The average and the last iterate, on training rows and test rows.
    Everything,
    /// Only the evaluated parameters: the average, or the last iterate if there is no average.
    Judged,
    /// The better of the average and the last iterate on the test rows. Choosing on the test rows is optimistic.
    Better,
}

/// Formats a number that the user gave, without an exponent unless it is tiny or huge.
fn given_in_words(value: f32) -> String {
    if value == 0.0 || (1e-3..1e4).contains(&value.abs()) { value.to_string() } else { format!("{value:e}") }
}

/// Formats a learning rate in a few characters.
fn rate_in_words(rate: f32) -> String {
    number(f64::from(rate), 3)
}

fn in_percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// Trains and reports.
pub fn run(args: &Args) -> Result<(), CliError> {
    if args.compare.compare {
        return compare::run(args);
    }
    args.check_heeded(&[args.rule])?;
    // The numbers of steps do not matter here. This only checks whether such an optimizer can be built.
    args.settings(1, 1)?.check()?;
    let loaded = data::load_from(&args.data, args.label.as_deref())?;
    let dataset = loaded.dataset;
    let steps = args.steps(&dataset);
    args.check_injection(steps)?;
    let policy = args.policy(&dataset)?;
    let settings = OptimizerSettings { policy, ..args.settings(args.steps_per_epoch(&dataset), steps)? };
    let model = Model::new(args.model, dataset.features, dataset.classes, args.hidden());
    let target = args.target.find()?;
    if args.lose_device.is_some() && matches!(target, Target::Cpu { .. }) {
        return CliError::usage("--lose-device: the CPU path has no device to lose, name one with --backend");
    }
    // Outputs are checked before training, so that a path that cannot be written costs no training. All are checked
    // before any is claimed.
    let read: Vec<PathBuf> = loaded.files.into_iter().chain(args.schedule_policy.clone()).collect();
    let mut check = Check::new(&read, args.force);
    let saving = Saving::new(args, &dataset, &mut check)?;
    // The trace of a run that is resumed is checked row by row later.
    let goes_on = args.resume && args.checkpoint.as_ref().is_some_and(|path| path.exists());
    let is_trace = if goes_on { |_: &Path| true } else { is_trace };
    let trace = args.trace.as_deref().map(|path| check.output("--trace", path, is_trace)).transpose()?;
    let page = args.report.as_deref().map(|path| check.output("--report", path, is_page)).transpose()?;
    let saving = saving.map(Saving::claimed).transpose()?;
    let trace = trace.map(Output::claimed).transpose()?;
    let page = page.map(ReportFile::of).transpose()?;
    let mut resumed = saving.as_ref().map(|saving| saving.resumed(args, steps)).transpose()?.flatten();
    let trace = trace.map(|output| Trace::from_step(output, args, &model, step_of(&resumed))).transpose()?;
    target.explain();
    for warning in settings.warnings() {
        tell(format!("warning: {warning}"));
    }
    if let Some(saving) = saving.as_ref().filter(|_| args.resume) {
        saving.explain(resumed.as_ref());
    }
    let (mut target, mut tuning) = target.tuned_for(model.padded_len());
    signals::watch();
    let progress = progress_bar(steps, "{bar:32} {pos}/{len} steps, {eta} left  {msg}");
    progress.set_position(step_of(&resumed));
    let mut watch = Watch {
        history: page.as_ref().map(|_| History::new(steps)),
        trace,
        saving: saving.as_ref(),
        lose_device: args.lose_device,
        about_data: Some(loaded.about),
        ..Watch::new(&progress)
    };
    let job = Job { args, settings, dataset: &dataset, model: &model };
    let mut lost = Vec::new();
    let run = loop {
        let error = match job.train(&target, resumed, &mut watch, Look::Everything) {
            Ok(run) => break Run { tuning, ..run },
            Err(error) => error,
        };
        let gpu = match &target {
            Target::Gpu(gpu) if error.is_lost_device() => gpu,
            _ => {
                // The rows up to here may explain the error.
                watch.trace = watch.trace.filter(Trace::is_worth_writing);
                watch.finish_trace();
                return Err(error);
            }
        };
        lost.push(gpu.device().adapter_info());
        let from = gpu.describe();
        (target, tuning) = Target::instead_of(&lost).tuned_for(model.padded_len());
        resumed = watch.rewind(&job)?;
        tell(format!(
            "the device {from} is lost: going on {} on {}",
            match step_of(&resumed) {
                0 => "from the start".to_owned(),
                step => format!("from the checkpoint of step {step}"),
            },
            target.in_words()
        ));
    };
    progress.finish_and_clear();
    // A failure to print does not prevent the files from being written, and vice versa.
    let printed = if args.json { say(serde_json::json!({ "runs": [run] })) } else { report::print(args, &run, &model) };
    let mut failures: Vec<CliError> = printed.err().into_iter().collect();
    if let (Some(page), Some(history)) = (page, &watch.history) {
        failures.extend(page.write(page::text(args, &run, &model, history)).err());
    }
    let unwritten = watch.trace_failure.into_iter().chain(saving.as_ref().and_then(Saving::failure));
    failures.extend(unwritten.map(CliError::Failed));
    failures.extend(verdict::in_words(args, &run).map(CliError::Failed));
    failures.extend(run.stopped_by.map(|signal| stopped(args, signal, run.steps, steps)));
    CliError::all(failures)
}

/// Returns the error of a run that a signal has ended, with its position.
fn stopped(args: &Args, signal: Signal, done: u64, steps: u64) -> CliError {
    let way_out = match &args.checkpoint {
        Some(_) => "the same command with --resume goes on",
        None => "a run with --checkpoint FILE could go on from here",
    };
    signal.stopped(format!("stopped after {} of {} steps; {way_out}", grouped(done), grouped(steps)))
}

/// Returns the step at which a run continues.
fn step_of(resumed: &Option<Resumed>) -> u64 {
    resumed.as_ref().map_or(0, |run| run.checkpoint.step())
}

/// Observers of a training run, and faults to inject.
struct Watch<'a> {
    /// History for `--report`.
    history: Option<History>,
    /// History at the time when the run was last saved.
    saved_history: Option<History>,
    progress: &'a ProgressBar,
    trace: Option<Trace>,
    /// Reason why the trace is not complete.
    trace_failure: Option<String>,
    saving: Option<&'a Saving>,
    /// Step before which the device is destroyed.
    lose_device: Option<u64>,
    /// Text about the data that is printed when everything is ready.
    about_data: Option<String>,
}

impl<'a> Watch<'a> {
    /// Returns a watch that only shows the progress.
    fn new(progress: &'a ProgressBar) -> Self {
        Watch {
            history: None,
            saved_history: None,
            progress,
            trace: None,
            trace_failure: None,
            saving: None,
            lose_device: None,
            about_data: None,
        }
    }

    fn finish_trace(&mut self) {
        if let Some(trace) = self.trace.take() {
            self.trace_failure = trace.finish();
        }
    }

    /// Returns to the state in which the run was last saved, or to its start, and reports where the run continues.
    fn rewind(&mut self, job: &Job) -> Result<Option<Resumed>, CliError> {
        let steps = job.args.steps(job.dataset);
        let saved = self.saving.map_or(Ok(None), |saving| saving.last(job.args, steps));
        // The file may have been replaced in the meantime.
        let resumed = saved.unwrap_or_else(|error| {
            tell(format!("warning: the device is lost, and its checkpoint with it: {error}"));
            None
        });
        if let Some(trace) = self.trace.take() {
            match trace.again_from(job.args, job.model, step_of(&resumed)) {
                Ok(trace) => self.trace = Some(trace),
                Err(error) => self.trace_failure = Some(error.to_string()),
            }
        }
        if self.history.is_some() {
            self.history = Some(self.saved_history.clone().unwrap_or_else(|| History::new(steps)));
        }
        self.progress.set_position(step_of(&resumed));
        Ok(resumed)
    }
}

/// Training job.
struct Job<'a> {
    args: &'a Args,
    settings: OptimizerSettings,
    dataset: &'a Dataset,
    model: &'a Model,
}

impl Job<'_> {
    /// Runs the job, or the rest of it. `watch` is notified of each step and each epoch.
    fn train(&self, target: &Target, resumed: Option<Resumed>, watch: &mut Watch, look: Look) -> Result<Run, CliError> {
        let Job { args, settings, dataset, model } = self;
        let rows = dataset.train.rows();
        let batch = args.batch(dataset);
        let (steps, per_epoch) = (args.steps(dataset), args.steps_per_epoch(dataset) as u64);
        // The device is lost only once.
        let loss_of_device = watch.lose_device.take();
        let injection = Injection { nan: args.inject_nan, spike: args.inject_spike, loss_of_device };
        let mut engine = engine::new(target, model, dataset, args, settings, injection)?;
        if let Some(about) = watch.about_data.take() {
            tell(about);
            if batch < args.batch as usize {
                tell(format!("--batch {} is more than the training rows: each step takes all {batch}", args.batch));
            }
        }
        let progress = watch.progress;
        let (mut done, mut sofar) = (step_of(&resumed), Sofar::default());
        if let Some(resumed) = resumed {
            let accepted = if args.change { Differences::all() } else { Differences::none() };
            let differences = engine.restore(&resumed.checkpoint, accepted)?;
            for line in resumed.changes.into_iter().chain(differences.iter().map(ToString::to_string)) {
                tell(format!("changed: {line}"));
            }
            sofar = resumed.sofar;
        }
        engine.start_watch()?;
        let mut watched = Watched::default();
        let before = done;
        // Step of the last checkpoint.
        let mut saved_at = (done > 0).then_some(done);
        let mut aftermaths = Aftermaths::new(args, done);
        let mut last_loss = None;

        let on_steps = &mut |steps| {
            progress.inc(steps as u64);
            if signals::received().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        if let Some(history) = watch.history.as_mut().filter(|history| done == 0 && history.accuracies.is_empty()) {
            history.end_epoch(engine.evaluate(Part::Test)?.accuracy);
            history.start_loss = Some(engine.evaluate(Part::Train)?.loss);
        }
        let started = Instant::now();
        // The time for the report does not count as training time.
        let mut looking_on = Duration::ZERO;
        let mut order: Vec<u32> = (0..rows as u32).collect();
        // A separate random stream keeps the order of the rows independent of the number of weights.
        let mut shuffle = ChaCha8Rng::seed_from_u64(args.seed);
        shuffle.set_stream(1);
        for epoch in 0..args.epochs() {
            // Each order derives from the previous one, including those of an earlier process.
            order.shuffle(&mut shuffle);
            let start = u64::from(epoch) * per_epoch;
            let end = start + per_epoch;
            // A run that is resumed at the last step of an epoch still has to do the evaluation at the epoch's end.
            let is_over = done > end || start >= end;
            if is_over || done == end && watch.history.is_none() {
                continue;
            }
            if done < end {
                engine.begin_epoch(&args.in_steps(dataset, &order), (done - start) as usize);
            }
            while done < end && signals::received().is_none() {
                let saved = watch.saving.and_then(|saving| saving.next_after(done));
                let until = saved.map_or(end, |saved| saved.min(end));
                let stretch = (done - start) as usize..(until - start) as usize;
                let (losses, records) = engine.train(stretch, on_steps)?;
                done += losses.len() as u64;
                // Every step has the same number of tensor records, which may be 0.
                let per_step = records.tensors.len() / records.records.len().max(1);
                let mut tensors = records.tensors.chunks(per_step.max(1));
                let records = &records.records;
                last_loss = losses.last().copied().or(last_loss);
                for (loss, record) in losses.iter().zip(records) {
                    let tensors = tensors.next().unwrap_or_default();
                    sofar.add(*loss, record, tensors);
                    aftermaths.add(*loss, record);
                    if let Some(trace) = &mut watch.trace {
                        trace.write(*loss, record, tensors);
                    }
                    if let Some(history) = &mut watch.history {
                        history.add(*loss, record, tensors);
                    }
                }
                if let (Some(loss), Some(record)) = (losses.last(), records.last()) {
                    let (epoch, rate) = (epoch + 1, record.learning_rate);
                    progress.set_message(format!("epoch {epoch}, loss {loss:.4}, lr {rate:.3e}"));
                }
                let is_last = done == steps || signals::received().is_some();
                if let Some(saving) = watch.saving.filter(|saving| saving.is_due(done, is_last)) {
                    // The trace is written first, so that its rows are there when a run resumes from this checkpoint.
                    if let Some(trace) = &mut watch.trace {
                        trace.sync();
                    }
                    saving.save(engine.checkpoint(&saving.notes(&sofar))?);
                    watch.saved_history.clone_from(&watch.history);
                    saved_at = Some(done);
                }
            }
            if let Some(verdict) = (done == end).then(|| engine.end_epoch()).transpose()?.flatten() {
                // The loss of the last batch is not that of the parameters any more.
                last_loss = last_loss.filter(|_| verdict.outcome != EpochOutcome::TakenBack);
                watched.add(&verdict);
            }
            if let Some(history) = &mut watch.history {
                let before = Instant::now();
                let test = match args.averaged() {
                    Some(_) => with_averages(&mut *engine, |engine| engine.evaluate(Part::Test))?,
                    None => engine.evaluate(Part::Test)?,
                };
                history.end_epoch(test.accuracy);
                looking_on += before.elapsed();
            }
            if signals::received().is_some() {
                break;
            }
        }
        // A signal may have arrived after the last check.
        if let Some(saving) = watch.saving.filter(|_| saved_at != Some(done)) {
            if let Some(trace) = &mut watch.trace {
                trace.sync();
            }
            saving.save(engine.checkpoint(&saving.notes(&sofar))?);
        }
        let seconds = (started.elapsed() - looking_on).as_secs_f64();
        watch.finish_trace();
        let Sofar { first_loss, rates, causes, tensors } = sofar;
        let Figures { evaluated, train, test, last, averaged_accuracy } = figures(&mut *engine, args.averaged(), look)?;
        let start_loss = verdict::start_loss(model, first_loss);
        let verdict = Ending {
            loss: train.loss,
            others: [last_loss.map(f64::from), last.and_then(|(loss, _)| loss)],
            start: start_loss,
            accuracy: test.accuracy,
            chance: dataset.chance(),
            every_step_skipped: done > 0 && causes.skipped == done,
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
            epochs_begun: done.div_ceil(per_epoch).try_into().unwrap_or(u32::MAX),
            batch,
            seed: args.seed,
            steps: done,
            gradients: done * args.regime.gradients(),
            stopped_by: signals::received().filter(|_| done < steps),
            momentum: settings.rule.momentum(),
            verdict,
            evaluated: evaluated.map_or_else(|| "last".to_owned(), name_of),
            start_loss,
            train_loss: train.loss,
            test_accuracy: test.accuracy,
            last_train_loss: last.and_then(|(loss, _)| loss),
            last_test_accuracy: last.map(|(_, accuracy)| accuracy),
            averaged_test_accuracy: averaged_accuracy,
            nonfinite_test_rows: test.nonfinite_rows,
            rates,
            skipped_steps: causes.skipped,
            seconds,
            timed_steps: done - before,
            causes,
            tensors: tensors.iter().map(|record| tensor_figures(record, model)).collect(),
            relative_step_spread: TensorRecord::relative_step_spread(&tensors),
            watchdog: args.watchdog.map(|_| watched),
            aftermaths,
        })
    }
}

struct Figures {
    /// Average that the figures belong to, or `None` for the last iterate.
    evaluated: Option<AverageName>,
    train: Evaluation,
    test: Evaluation,
    /// Training loss and test accuracy of the last iterate, if it was evaluated in addition to an average.
    last: Option<(Option<f64>, f64)>,
    /// Test accuracy of the average, if it was evaluated.
    averaged_accuracy: Option<f64>,
}

/// Evaluates the trained parameters. Nothing is evaluated twice.
fn figures(engine: &mut dyn Engine, average: Option<AverageName>, look: Look) -> Result<Figures, CliError> {
    let Some(average) = average else {
        let (train, test) = (engine.evaluate(Part::Train)?, engine.evaluate(Part::Test)?);
        return Ok(Figures { evaluated: None, train, test, last: None, averaged_accuracy: None });
    };
    let mut last = None;
    if look != Look::Judged {
        let train = if look == Look::Everything { Some(engine.evaluate(Part::Train)?.loss) } else { None };
        last = Some((train, engine.evaluate(Part::Test)?));
    }
    let (averaged, train) = with_averages(engine, |engine| {
        let test = engine.evaluate(Part::Test)?;
        let is_worse = last.is_some_and(|(_, last)| last.accuracy > test.accuracy);
        // Evaluating the training rows is slow, so it is done only for the parameters that are chosen.
        let train = if look == Look::Better && is_worse { None } else { Some(engine.evaluate(Part::Train)?) };
        Ok((test, train))
    })?;
    let (evaluated, train, test) = match train {
        Some(train) => (Some(average), train, averaged),
        None => (None, engine.evaluate(Part::Train)?, last.map_or(averaged, |(_, last)| last)),
    };
    let last = last.map(|(loss, test)| (loss, test.accuracy));
    Ok(Figures { evaluated, train, test, last, averaged_accuracy: Some(averaged.accuracy) })
}
