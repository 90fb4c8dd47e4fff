//! Result of a run: a table for people, and an object for programs.

use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use wgpu_optim::{EpochOutcome, EpochVerdict, NonFinite, Record, Rule, TensorRecord, Term};

use super::options::Args;
use super::story::Aftermaths;
use super::verdict::{Verdict, loss_in_words};
use super::{in_percent, rate_in_words};
use crate::CliError;
use crate::model::Model;
use crate::signals::Signal;
use crate::table::{Columns, say};
use crate::target::TuningSource;
use crate::words::{count, duration, grouped, number, plural};

#[derive(Debug, Clone, Serialize)]
pub struct Run {
    pub data: String,
    pub model: String,
    pub rule: String,
    /// Momentum of the rule, which is 0 for schedule-free AdamW.
    pub momentum: f32,
    pub regime: String,
    pub schedule: String,
    pub backend: String,
    pub adapter: String,
    pub tuning: TuningSource,
    pub epochs: u32,
    /// Number of epochs that were begun.
    #[serde(skip)]
    pub epochs_begun: u32,
    pub batch: usize,
    pub seed: u64,
    /// Number of finished steps.
    pub steps: u64,
    /// Number of gradients that the steps took.
    pub gradients: u64,
    /// Signal that stopped the run early.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "name_of_signal")]
    pub stopped_by: Option<Signal>,
    pub verdict: Verdict,
    /// Parameters that training loss and test accuracy belong to: the name of an average, or `last`.
    pub evaluated: String,
    /// Loss before the first step. See [`start_loss`](super::verdict::start_loss).
    pub start_loss: f64,
    pub train_loss: f64,
    pub test_accuracy: f64,
    /// Training loss of the iterate at which gradients are taken, if an average was evaluated too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_train_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_test_accuracy: Option<f64>,
    /// Test accuracy of the average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub averaged_test_accuracy: Option<f64>,
    /// Number of test rows with an output that is not finite. They count as wrong.
    pub nonfinite_test_rows: usize,
    #[serde(flatten)]
    pub rates: RateRange,
    pub skipped_steps: u64,
    pub seconds: f64,
    /// Number of steps that took this time, which excludes those from a checkpoint.
    #[serde(skip)]
    pub timed_steps: u64,
    #[serde(skip)]
    pub causes: Causes,
    /// Tensors after the last step, with --telemetry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<Value>,
    /// Largest relative step of a tensor in the last step divided by the smallest, with --telemetry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative_step_spread: Option<f64>,
    /// Verdicts of the watchdog, with --watchdog.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<Watched>,
    /// Effects of steps that were changed.
    #[serde(skip)]
    pub aftermaths: Aftermaths,
}

/// Number of verdicts that are printed in words.
const SENTENCES: usize = 8;

/// What a watchdog has made of the epochs.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Watched {
    accepted: u64,
    slowed: u64,
    taken_back: u64,
    /// The first verdicts that were not acceptances, in words.
    sentences: Vec<String>,
}

impl Watched {
    pub fn add(&mut self, verdict: &EpochVerdict) {
        *match verdict.outcome {
            EpochOutcome::Accepted => &mut self.accepted,
            EpochOutcome::Slowed => &mut self.slowed,
            _ => &mut self.taken_back,
        } += 1;
        if verdict.outcome != EpochOutcome::Accepted && self.sentences.len() < SENTENCES {
            self.sentences.push(verdict.to_string());
        }
    }

    fn in_words(&self) -> String {
        let Watched { accepted, slowed, taken_back, .. } = self;
        format!("{accepted} accepted, {slowed} slowed, {taken_back} taken back")
    }
}

fn name_of_signal<S: Serializer>(signal: &Option<Signal>, serializer: S) -> Result<S::Ok, S::Error> {
    signal.map(Signal::name).serialize(serializer)
}

/// Returns the figures of a tensor after a step.
pub fn tensor_figures(record: &TensorRecord, model: &Model) -> Value {
    json!({
        "name": model.tensors()[record.tensor].name,
        "parameter_norm": record.parameter_norm,
        "step_norm": record.step_norm,
        "relative_step": record.relative_step(),
        "effective_lr": record.effective_rate(),
    })
}

impl Run {
    /// Returns `last iterate`, or the name of the average.
    pub fn evaluated_in_words(&self) -> String {
        let kind = if self.evaluated == "last" { "iterate" } else { "average" };
        format!("{} {kind}", self.evaluated)
    }

    /// Returns `10 epochs`, or `3 of 10 epochs` for a run that was stopped.
    pub fn epochs_in_words(&self) -> String {
        let all = count(u64::from(self.epochs), "epoch");
        if self.stopped_by.is_some() && self.epochs_begun < self.epochs {
            format!("{} of {all}", grouped(u64::from(self.epochs_begun)))
        } else {
            all
        }
    }

    /// Returns the results by name: the figures of the evaluated parameters, then those of the last iterate if they
    /// differ.
    pub fn figures(&self) -> Vec<(String, String)> {
        let of = self.evaluated_in_words();
        let rows = self.nonfinite_test_rows;
        let without_answer = (rows > 0).then(|| format!("{rows}: outputs are not finite"));
        let figures = [
            (format!("training loss, {of}"), Some(loss_in_words(self.train_loss))),
            (format!("test accuracy, {of}"), Some(in_percent(self.test_accuracy))),
            ("training loss, last iterate".to_owned(), self.last_train_loss.map(loss_in_words)),
            ("test accuracy, last iterate".to_owned(), self.last_test_accuracy.map(in_percent)),
            ("test rows without an answer".to_owned(), without_answer),
            ("epochs under the watchdog".to_owned(), self.watchdog.as_ref().map(Watched::in_words)),
            ("first learning rate".to_owned(), Some(rate_in_words(self.rates.lr_first))),
            ("last learning rate".to_owned(), Some(rate_in_words(self.rates.lr_last))),
            (
                "relative steps of tensors, largest to smallest".to_owned(),
                self.relative_step_spread.map(|spread| number(spread, 3)),
            ),
            ("range".to_owned(), Some([self.rates.lr_min, self.rates.lr_max].map(rate_in_words).join(" to "))),
        ];
        figures.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// Learning rates of a run, from the first step that had one.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct RateRange {
    pub lr_first: f32,
    pub lr_last: f32,
    pub lr_min: f32,
    pub lr_max: f32,
}

impl RateRange {
    pub fn add(&mut self, record: &Record) {
        if record.flags.waiting() {
            return;
        }
        let rate = record.learning_rate;
        if self.lr_first == 0.0 {
            *self = RateRange { lr_first: rate, lr_last: rate, lr_min: rate, lr_max: rate };
        }
        (self.lr_last, self.lr_min, self.lr_max) = (rate, self.lr_min.min(rate), self.lr_max.max(rate));
    }
}

/// Changes by one cause over a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cause {
    /// Sum of the positive changes of ln η.
    pub up: f64,
    pub down: f64,
}

impl Cause {
    pub fn add(&mut self, term: f32) {
        let sum = if term > 0.0 { &mut self.up } else { &mut self.down };
        *sum += f64::from(term);
    }

    pub fn occurred(&self) -> bool {
        self.up != 0.0 || self.down != 0.0
    }
}

/// Changes by each of [`Term::ALL`].
pub type TermCauses = [Cause; Term::ALL.len()];

pub fn add_terms(causes: &mut TermCauses, record: &Record) {
    // The terms of a record are in the order of `Term::ALL`.
    for (cause, (_, term)) in causes.iter_mut().zip(record.terms()) {
        cause.add(term);
    }
}

/// Causes of the changes of the learning rate over a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Causes {
    pub terms: TermCauses,
    /// Number of steps skipped because a gradient was not finite.
    pub skipped: u64,
    /// First such step, and its non-finite elements.
    pub first_skipped: Option<(u64, NonFinite)>,
    pub clipped: u64,
}

impl Causes {
    pub fn add(&mut self, record: &Record) {
        add_terms(&mut self.terms, record);
        self.skipped += u64::from(record.flags.skipped());
        if self.first_skipped.is_none() {
            self.first_skipped = record.nonfinite.map(|what| (record.step, what));
        }
        self.clipped += u64::from(record.flags.clipped());
    }

    /// Returns the rows of the table, one for each cause that occurred and one for all of them, or no rows if nothing
    /// changed.
    pub fn rows(&self) -> Vec<[String; 5]> {
        let causes = Term::ALL.iter().zip(self.terms).filter(|(_, cause)| cause.occurred());
        let mut rows: Vec<(String, Cause)> = causes.map(|(term, cause)| (in_words(*term, cause), cause)).collect();
        if !rows.is_empty() {
            let sum = |of: fn(&Cause) -> f64| rows.iter().map(|(_, cause)| of(cause)).sum();
            let all = Cause { up: sum(|cause| cause.up), down: sum(|cause| cause.down) };
            rows.push(("all".to_owned(), all));
        }
        let row = |(name, Cause { up, down }): (String, Cause)| {
            let net = up + down;
            [name, format!("{up:+.3}"), format!("{down:+.3}"), format!("{net:+.3}"), factor(net.exp())]
        };
        rows.into_iter().map(row).collect()
    }
}

/// Formats a factor in a few characters, however far from 1 it is.
fn factor(factor: f64) -> String {
    format!("x {}", number(factor, 3))
}

/// Header of [`Causes::rows`].
pub const CAUSES_HEADER: [&str; 5] = ["what moved ln(lr)", "up", "down", "net", "factor"];

/// Describes the effects of a term that occurred, such as `norm fell / norm rose`.
pub fn in_words(term: Term, cause: Cause) -> String {
    let (up, down) = (term.cause(true), term.cause(false));
    match (cause.up != 0.0, cause.down != 0.0) {
        (true, true) if up != down => format!("{up} / {down}"),
        (false, true) => down.to_owned(),
        _ => up.to_owned(),
    }
}

pub fn print(args: &Args, run: &Run, model: &Model) -> Result<(), CliError> {
    // The name usually stands for AdamW with momentum.
    let beta1 = if matches!(args.rule.0, Rule::AdamW(_)) && run.momentum == 0.0 { " with beta1 = 0" } else { "" };
    let each = if args.per_tensor { " for each tensor" } else { "" };
    let Run { data, rule, regime, adapter, .. } = run;
    say(format!("{model} on {data}: {rule}{beta1}, {regime}{each}, {}, {adapter}", run.evaluated_in_words()))?;
    let earlier = match run.steps - run.timed_steps {
        0 => String::new(),
        steps => format!(", after {steps} from a checkpoint"),
    };
    let twice = if run.gradients > run.steps { ", two gradients each" } else { "" };
    let epochs = run.epochs_in_words();
    if run.timed_steps == 0 && run.steps > 0 {
        say(format!("{epochs}: no step was left, all {} are from a checkpoint", run.steps))?;
    } else {
        say(format!(
            "{epochs}: {} {} of {} {} in {} ({} each{twice}){earlier}",
            run.timed_steps,
            plural(run.timed_steps, "step"),
            run.batch,
            plural(run.batch as u64, "row"),
            duration(run.seconds),
            duration(run.seconds / run.timed_steps.max(1) as f64)
        ))?;
    }
    let causes = &run.causes;
    let steps = |steps: u64| (steps > 0).then(|| grouped(steps));
    let mut figures = run.figures();
    if run.verdict == Verdict::Diverged {
        figures.insert(0, ("verdict".to_owned(), "DIVERGED".to_owned()));
    }
    let others = [("clipped steps", steps(causes.clipped)), ("skipped steps", steps(run.skipped_steps))];
    figures.extend(others.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    let mut table = Columns::without_header(1);
    figures.into_iter().for_each(|(name, value)| table.row([name, value]));
    table.print_narrow()?;
    let rows = causes.rows();
    if !rows.is_empty() {
        let mut table = Columns::new(&CAUSES_HEADER, 1);
        rows.into_iter().for_each(|row| table.row(row));
        table.print_narrow()?;
    }
    if let Some((step, what)) = causes.first_skipped {
        say(format!("first skipped: step {step}: {}", not_finite(what, model)))?;
    }
    if let Some(Watched { slowed, taken_back, sentences, .. }) = &run.watchdog {
        sentences.iter().try_for_each(say)?;
        let more = slowed + taken_back - sentences.len() as u64;
        if more > 0 {
            say(format!("and {more} more epochs that were not accepted"))?;
        }
    }
    run.aftermaths.sentences().into_iter().try_for_each(say)
}

/// Describes the elements that made a step be skipped.
pub fn not_finite(NonFinite { count, tensor, element }: NonFinite, model: &Model) -> String {
    let tensor = model.tensors().get(tensor).map_or("", |tensor| tensor.name);
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} gradient{plural} not finite, the first in {tensor} at {element}")
}
