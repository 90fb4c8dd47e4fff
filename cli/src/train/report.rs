//! What a run came to: a table for people, an object for programs.

use serde::Serialize;
use wgpu_optim::{NonFinite, Record, TensorRecord, Term};

use super::in_percent;
use super::options::{Args, RuleName};
use super::verdict::{Verdict, loss_in_words};
use crate::CliError;
use crate::model::Model;
use crate::table::{Columns, say};
use crate::target::TuningSource;

/// One training run.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    pub data: String,
    pub model: String,
    pub rule: String,
    /// The rule's; 0 of AdamW where it is schedule-free.
    pub momentum: f32,
    pub regime: String,
    pub schedule: String,
    pub backend: String,
    pub adapter: String,
    pub tuning: TuningSource,
    pub epochs: u32,
    pub batch: usize,
    pub seed: u64,
    pub steps: u64,
    pub verdict: Verdict,
    /// What the training loss and the test accuracy are of: an average by its name, or `last`.
    pub evaluated: String,
    #[serde(skip)]
    pub evaluated_in_words: &'static str,
    /// Before the first step: see [`start_loss`](super::verdict::start_loss).
    pub start_loss: f64,
    pub train_loss: f64,
    pub test_accuracy: f64,
    /// Of the iterate at which gradients are taken, where an average was evaluated beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_train_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_test_accuracy: Option<f64>,
    /// Of the average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub averaged_test_accuracy: Option<f64>,
    /// Test rows of which an output is not finite. They count as wrong.
    pub nonfinite_test_rows: usize,
    pub lr_first: f32,
    pub lr_last: f32,
    pub lr_min: f32,
    pub lr_max: f32,
    pub skipped_steps: u64,
    pub seconds: f64,
    /// Steps that took them: all but those that a checkpoint brought.
    #[serde(skip)]
    pub timed_steps: u64,
    #[serde(skip)]
    pub causes: Causes,
    /// After the last step, with --telemetry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<TensorFigures>,
}

/// A tensor after a step.
#[derive(Debug, Clone, Serialize)]
pub struct TensorFigures {
    pub name: &'static str,
    pub parameter_norm: f32,
    pub step_norm: f32,
    pub relative_step: f64,
    pub effective_lr: f64,
}

impl TensorFigures {
    pub fn new(record: &TensorRecord, model: &Model) -> Self {
        TensorFigures {
            name: model.tensors()[record.tensor].name,
            parameter_norm: record.parameter_norm,
            step_norm: record.step_norm,
            relative_step: record.relative_step(),
            effective_lr: record.effective_rate(),
        }
    }
}

impl Run {
    /// What the run came to, by name: the figures of what is evaluated, then those of the last iterate where that is something else.
    pub fn figures(&self) -> Vec<(String, String)> {
        let of = self.evaluated_in_words;
        let without_answer = Some(self.nonfinite_test_rows).filter(|&rows| rows > 0);
        let figures = [
            (format!("training loss, {of}"), Some(loss_in_words(self.train_loss))),
            (format!("test accuracy, {of}"), Some(in_percent(self.test_accuracy))),
            ("training loss, last iterate".to_owned(), self.last_train_loss.map(loss_in_words)),
            ("test accuracy, last iterate".to_owned(), self.last_test_accuracy.map(in_percent)),
            (
                "test rows without an answer".to_owned(),
                without_answer.map(|rows| format!("{rows}: outputs are not finite")),
            ),
        ];
        figures.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// The learning rates of a run, from the first step that had one.
#[derive(Debug, Clone, Copy, Default)]
pub struct RateRange {
    pub first: f32,
    pub last: f32,
    pub min: f32,
    pub max: f32,
}

impl RateRange {
    /// Takes a step in.
    pub fn add(&mut self, record: &Record) {
        let rate = record.learning_rate;
        if record.flags.waiting() {
            return;
        }
        if self.first == 0.0 {
            *self = RateRange { first: rate, last: rate, min: rate, max: rate };
        }
        self.last = rate;
        self.min = self.min.min(rate);
        self.max = self.max.max(rate);
    }
}

/// One cause of change, over a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cause {
    /// Sum of the positive changes of ln η.
    pub up: f64,
    /// Sum of the negative ones.
    pub down: f64,
}

impl Cause {
    /// Takes a step's term in.
    pub fn add(&mut self, term: f32) {
        if term > 0.0 {
            self.up += f64::from(term);
        } else {
            self.down += f64::from(term);
        }
    }

    /// Whether there was any change.
    pub fn occurred(&self) -> bool {
        self.up != 0.0 || self.down != 0.0
    }
}

/// A cause for each of [`Term::ALL`].
pub type TermCauses = [Cause; Term::ALL.len()];

/// Takes the terms of a step in.
pub fn add_terms(causes: &mut TermCauses, record: &Record) {
    // The terms of a record come in the order of `Term::ALL`.
    for (cause, (_, term)) in causes.iter_mut().zip(record.terms()) {
        cause.add(term);
    }
}

/// What moved the learning rate over a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Causes {
    /// By term.
    pub terms: TermCauses,
    /// Steps skipped because a gradient was not finite.
    pub skipped: u64,
    /// The first of them, and what was not finite in it.
    pub first_skipped: Option<(u64, NonFinite)>,
    pub clipped: u64,
}

impl Causes {
    /// Takes a step in.
    pub fn add(&mut self, record: &Record) {
        add_terms(&mut self.terms, record);
        self.skipped += u64::from(record.flags.skipped());
        if self.first_skipped.is_none() {
            self.first_skipped = record.nonfinite.map(|what| (record.step, what));
        }
        self.clipped += u64::from(record.flags.clipped());
    }

    /// The rows of the table, one for each cause that occurred and one for all of them; no rows where nothing moved.
    pub fn rows(&self) -> Vec<[String; 5]> {
        let row = |name: String, cause: Cause| {
            let net = cause.up + cause.down;
            [name, format!("{:+.3}", cause.up), format!("{:+.3}", cause.down), format!("{net:+.3}"), factor(net.exp())]
        };
        let mut rows = Vec::new();
        let mut total = Cause::default();
        for (term, cause) in Term::ALL.into_iter().zip(self.terms) {
            if cause.occurred() {
                rows.push(row(in_words(term, cause), cause));
                total.up += cause.up;
                total.down += cause.down;
            }
        }
        if !rows.is_empty() {
            rows.push(row("all".to_owned(), total));
        }
        rows
    }
}

/// A factor in a few characters, however far from 1.
fn factor(factor: f64) -> String {
    if (1e-2..1e4).contains(&factor) { format!("x {factor:.3}") } else { format!("x {factor:.2e}") }
}

/// The header of [`Causes::rows`].
pub const CAUSES_HEADER: [&str; 5] = ["what moved ln(lr)", "up", "down", "net", "net factor"];

/// What happened where a term moved the rate, `norm fell / norm rose`: only what did occur.
pub fn in_words(term: Term, cause: Cause) -> String {
    let (up, down) = (term.cause(true), term.cause(false));
    match (cause.up != 0.0, cause.down != 0.0) {
        (true, true) if up != down => format!("{up} / {down}"),
        (false, true) => down.to_owned(),
        _ => up.to_owned(),
    }
}

/// The table.
pub fn print(args: &Args, run: &Run, model: &Model) -> Result<(), CliError> {
    // It is not what the name usually stands for.
    let beta1 = if args.rule == RuleName::AdamW && run.momentum == 0.0 { " with beta1 = 0" } else { "" };
    say(format!(
        "{} on {}: {}{beta1}, {}, {}, {}",
        model, run.data, run.rule, run.regime, run.evaluated_in_words, run.adapter
    ))?;
    let earlier = match run.steps - run.timed_steps {
        0 => String::new(),
        steps => format!(", after {steps} from a checkpoint"),
    };
    say(format!(
        "{} epoch{}: {} steps of {} rows in {:.2} s ({:.0} µs each){earlier}",
        run.epochs,
        if run.epochs == 1 { "" } else { "s" },
        run.timed_steps,
        run.batch,
        run.seconds,
        1e6 * run.seconds / run.timed_steps.max(1) as f64
    ))?;
    let mut table = Columns::without_header(1);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    if run.verdict == Verdict::Diverged {
        row("verdict", "DIVERGED".to_owned());
    }
    for (name, value) in run.figures() {
        row(&name, value);
    }
    row("first learning rate", format!("{:.4e}", run.lr_first));
    row("last learning rate", format!("{:.4e}", run.lr_last));
    row("range", format!("{:.4e} to {:.4e}", run.lr_min, run.lr_max));
    if run.causes.clipped > 0 {
        row("clipped steps", run.causes.clipped.to_string());
    }
    if run.skipped_steps > 0 {
        row("skipped steps", run.skipped_steps.to_string());
    }
    if let Some((step, what)) = run.causes.first_skipped {
        row("first skipped", format!("step {step}: {}", not_finite(what, model)));
    }
    table.print()?;
    let rows = run.causes.rows();
    if rows.is_empty() {
        return Ok(());
    }
    let mut table = Columns::new(&CAUSES_HEADER, 1);
    rows.into_iter().for_each(|row| table.row(row));
    table.print()
}

/// What made a step be skipped, in words.
pub fn not_finite(what: NonFinite, model: &Model) -> String {
    let tensor = model.tensors().get(what.tensor).map_or("", |tensor| tensor.name);
    format!(
        "{} gradient{} not finite, the first in {tensor} at {}",
        what.count,
        if what.count == 1 { "" } else { "s" },
        what.element
    )
}
