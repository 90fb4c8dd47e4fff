//! Page of `--report`: the curves of a run, the causes of the changes of its learning rate, and the largest changes in
//! words.

use wgpu_optim::State;

use super::charts::charts;
use super::history::History;
use super::options::Args;
use super::report::{CAUSES_HEADER, Run, not_finite};
use super::{given_in_words, story, verdict};
use crate::model::Model;
use crate::page::{self, escaped, items};
use crate::target::TuningSource;
use crate::words::{count, duration, grouped};

pub fn text(args: &Args, run: &Run, model: &Model, history: &History) -> Result<String, String> {
    let title = format!("wgpu-optim train: {model} on {}", run.data);
    // A failure comes first, so that the figures are not taken for a success.
    let failure = verdict::in_words(args, run);
    let failure = failure.map_or(String::new(), |words| format!("<p class=\"failure\">{}</p>\n", escaped(&words)));
    let story = story::sentences(args, run, model, history);
    let story = format!("<p class=\"story\">{}</p>\n", escaped(&story.join(" ")));
    let body = format!(
        "<h1>{}</h1>\n{failure}{story}<div class=\"facts\">\n<section>\n<h2>Final figures</h2>\n{}</section>\n\
         <section>\n<h2>Configuration</h2>\n{}</section>\n</div>\n{}{}{}{}",
        escaped(&title),
        page::facts(&final_figures(run, history)),
        page::facts(&configuration(args, run, model)),
        charts(args, run, model, history)?,
        moves(history),
        skipped(run, model, history),
        causes(run),
    );
    Ok(page::page(&title, &[page::STYLE, STYLE].concat(), &body))
}

const STYLE: &str = "
h2 { font-size: 16px; margin: 18px 0 6px; }
.failure { padding: 8px 12px; border-left: 6px solid #b00020; background: #fde7ea; font-weight: bold; }
.story { font-size: 16px; max-width: 900px; }
.facts { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: 0 32px; }
figure { margin: 14px 0 0; break-inside: avoid; }
figcaption { font-weight: bold; }
figcaption span { font-weight: normal; margin-left: 14px; white-space: nowrap; }
figcaption svg { width: 12px; height: 12px; vertical-align: -1px; margin-right: 4px; }
figure > svg { display: block; width: 100%; }
li { font-variant-numeric: tabular-nums; }
p { margin: 6px 0; }
@media (max-width: 800px) { .facts { grid-template-columns: minmax(0, 1fr); } }
@media print {
  @page { margin: 12mm; }
  body { max-width: none; padding: 0; font-size: 11px; }
  h2 { break-after: avoid; }
  th { position: static; }
  tr, li { break-inside: avoid; }
}
";

fn final_figures(run: &Run, history: &History) -> Vec<(String, String)> {
    let mut figures = run.figures();
    let others = [
        ("skipped steps", grouped(run.skipped_steps)),
        ("clamped steps", grouped(history.clamped)),
        ("clipped steps", grouped(run.causes.clipped)),
        ("time", format!("{}, {} a step", duration(run.seconds), duration(run.seconds / run.steps.max(1) as f64))),
    ];
    figures.extend(others.map(|(name, value)| (name.to_owned(), value)));
    figures
}

fn configuration(args: &Args, run: &Run, model: &Model) -> Vec<(&'static str, String)> {
    let (momentum, decay) = (args.rule().momentum(), args.decay());
    let geometry = match run.tuning {
        TuningSource::Preset => Some("the adapter's preset"),
        TuningSource::Cached => Some("found by wgpu-optim tune"),
        TuningSource::None => None,
    };
    let facts = [
        ("data", Some(run.data.clone())),
        ("model", Some(model.to_string())),
        ("rule", Some(run.rule.clone())),
        ("regime", Some(run.regime.clone())),
        ("momentum", (momentum != 0.0).then(|| given_in_words(momentum))),
        ("learning rate given", args.lr.map(given_in_words)),
        ("weight decay", (decay != 0.0).then(|| given_in_words(decay))),
        ("clip norm", args.clip_norm.map(given_in_words)),
        ("state", (args.state.0 != State::F32).then(|| args.state.0.name().to_owned())),
        ("gradients made NaN", args.inject_nan.map(|step| format!("at step {step}"))),
        ("gradients times 100", args.inject_spike.map(|step| format!("at step {step}"))),
        (
            "steps",
            Some(format!("{} of {}, {}", grouped(run.steps), count(run.batch as u64, "row"), run.epochs_in_words())),
        ),
        ("stopped by", run.stopped_by.map(|signal| signal.name().to_owned())),
        ("seed", Some(run.seed.to_string())),
        ("backend", Some(run.backend.clone())),
        ("adapter", Some(run.adapter.clone())),
        ("geometry", geometry.map(str::to_owned)),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name, value?))).chain(page::origin()).collect()
}

fn moves(history: &History) -> String {
    let moves = match &history.moves[..] {
        [] => "<p>It never moved.</p>\n".to_owned(),
        moves => format!(
            "<p>Each against the step before; the norm is the smoothed one. Percentages multiply: with -31 % by two causes of -29 % and \
             -2.8 %, 0.69 is 0.71 times 0.972.</p>\n<ol>\n{}</ol>\n",
            items(moves.iter().map(ToString::to_string))
        ),
    };
    format!("<h2>Largest moves of the learning rate</h2>\n{moves}")
}

fn skipped(run: &Run, model: &Model, history: &History) -> String {
    if history.skipped.is_empty() {
        return String::new();
    }
    let sentences = history.skipped.iter().map(|&(step, what)| match what {
        Some(what) => format!("step {step}: skipped: {}", not_finite(what, model)),
        None => format!("step {step}: skipped"),
    });
    let more = run.skipped_steps - history.skipped.len() as u64;
    let more = (more > 0).then(|| format!("and {more} more"));
    format!("<h2>Skipped steps</h2>\n<ul>\n{}</ul>\n", items(sentences.chain(more)))
}

/// Returns the same table as on the terminal.
fn causes(run: &Run) -> String {
    match &run.causes.rows()[..] {
        [] => String::new(),
        rows => format!(
            "<h2>All moves together</h2>\n<p>Changes of ln(learning rate), which add up; the factors are e to the net change, and multiply.</p>\n{}",
            page::table(&CAUSES_HEADER, rows, 1)
        ),
    }
}
