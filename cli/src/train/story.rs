//! Description of a run in sentences: the first paragraph of the page of `--report`, and the effects of steps whose
//! gradients were changed, which are also printed on the terminal.

use std::collections::VecDeque;

use wgpu_optim::Record;

use super::history::{History, Quantity};
use super::options::Args;
use super::report::{Run, in_words, not_finite};
use super::verdict::{Verdict, loss_in_words};
use super::{in_percent, rate_in_words};
use crate::model::Model;
use crate::words::{count, number};

/// Number of steps before the changed one that define the usual loss.
const BEFORE: usize = 16;
/// Number of steps whose mean loss must be usual for the run to have recovered.
const AFTER: usize = 8;
/// Factor of the usual loss up to which a loss counts as unharmed.
const USUAL: f32 = 1.5;
/// Fraction of the old rate at which the rate has recovered.
const BACK: f32 = 0.9;

/// Effects of a step whose gradients were changed by `--inject-spike` or `--inject-nan`.
#[derive(Debug, Clone, Default)]
pub struct Aftermath {
    /// Number of the changed step.
    step: u64,
    /// Last losses up to the changed step, later those after it.
    recent: VecDeque<f32>,
    rate_before: Option<f32>,
    /// Largest and last of the losses up to the changed step.
    usual: Option<[f32; 2]>,
    was_skipped: bool,
    /// Largest loss after the changed step, and its step.
    peak: Option<(f32, u64)>,
    loss_back: Option<u64>,
    lowest_rate: Option<f32>,
    rate_back: Option<u64>,
    last: u64,
}

impl Aftermath {
    pub fn of(step: u64) -> Self {
        Aftermath { step, ..Aftermath::default() }
    }

    /// Takes the result of every step, in order.
    pub fn add(&mut self, step: u64, loss: f32, rate: f32, was_skipped: bool) {
        if step < self.step {
            // There is no rate while the first gradients are zero.
            self.rate_before = Some(rate).filter(|&rate| rate > 0.0);
        }
        // The loss of the changed step was computed before the change had an effect.
        if step <= self.step {
            self.recent.push_back(loss);
            self.recent.drain(..self.recent.len().saturating_sub(BEFORE));
        }
        if step == self.step {
            self.was_skipped = was_skipped;
            self.usual = Some([self.recent.iter().copied().fold(loss, f32::max), loss]);
            self.recent.clear();
        }
        if step >= self.step
            && self.rate_back.is_none()
            && let Some(before) = self.rate_before
        {
            if self.lowest_rate.is_none_or(|lowest| rate < lowest) {
                self.lowest_rate = Some(rate);
            }
            if step > self.step && rate >= BACK * before {
                self.rate_back = Some(step);
            }
        }
        if let Some([usual, _]) = self.usual.filter(|_| step > self.step && self.loss_back.is_none()) {
            // A loss that is not finite counts as larger than all others.
            let loss = if loss.is_nan() { f32::INFINITY } else { loss };
            if self.peak.is_none_or(|(peak, _)| loss > peak) {
                self.peak = Some((loss, step));
            }
            self.recent.push_back(loss);
            self.recent.drain(..self.recent.len().saturating_sub(AFTER));
            let mean = self.recent.iter().sum::<f32>() / self.recent.len() as f32;
            if self.recent.len() == AFTER && mean <= usual {
                self.loss_back = Some(step);
            }
        }
        self.last = step;
    }

    /// Describes whether the change did harm, for how long, and how the rate reacted.
    pub fn in_words(&self, what: &str) -> Option<String> {
        let [usual, last] = self.usual?;
        let since = |step: u64| count(step - self.step, "step");
        let skipped = if self.was_skipped { "the step was skipped, " } else { "" };
        let words = |loss: f32| loss_in_words(f64::from(loss));
        let loss = match (self.peak, self.loss_back) {
            (None, _) => "the run ended with it".to_owned(),
            (Some((peak, _)), Some(_)) if peak <= USUAL * usual => "the loss took no harm".to_owned(),
            (Some((peak, at)), back) => format!(
                "the loss of a batch rose from {} to {} at step {at}, and {}",
                words(last),
                words(peak),
                match back {
                    Some(back) => format!("was back after {}", since(back)),
                    None => format!("was not back {} later, when the run ended", since(self.last)),
                }
            ),
        };
        let rate = match (self.rate_before, self.lowest_rate) {
            (Some(before), Some(lowest)) if lowest < BACK * before => {
                let [before, lowest] = [before, lowest].map(rate_in_words);
                let back = match self.rate_back {
                    Some(back) => format!("and was back after {}", since(back)),
                    None => "and was not back when the run ended".to_owned(),
                };
                format!("the learning rate fell from {before} to {lowest}, {back}")
            }
            (Some(_), _) => "the learning rate hardly fell".to_owned(),
            _ => String::new(),
        };
        let parts = [loss, rate];
        let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        Some(format!("step {}, {what}: {skipped}{}", self.step, parts.join("; ")))
    }
}

/// Effects of `--inject-nan` and `--inject-spike`.
#[derive(Debug, Clone, Default)]
pub struct Aftermaths(Vec<(&'static str, Aftermath)>);

impl Aftermaths {
    /// Creates the description for a run that continues from a step. Earlier changes cannot be described.
    pub fn new(args: &Args, from: u64) -> Self {
        let changed = [("gradients made NaN", args.inject_nan), ("gradients times 100", args.inject_spike)];
        let changed = changed.into_iter().filter_map(|(what, step)| Some((what, step.filter(|&step| step >= from)?)));
        Aftermaths(changed.map(|(what, step)| (what, Aftermath::of(step))).collect())
    }

    pub fn add(&mut self, loss: f32, record: &Record) {
        for (_, aftermath) in &mut self.0 {
            aftermath.add(record.step, loss, record.learning_rate, record.flags.skipped());
        }
    }

    pub fn sentences(&self) -> Vec<String> {
        self.0.iter().filter_map(|(what, aftermath)| aftermath.in_words(what)).collect()
    }
}

/// Describes the run in a paragraph.
pub fn sentences(args: &Args, run: &Run, model: &Model, history: &History) -> Vec<String> {
    let mut story = Vec::new();
    let accuracy = match (history.accuracies.first(), history.accuracies.len()) {
        (Some((0, first)), 2..) => format!("from {} to {}", in_percent(*first), in_percent(run.test_accuracy)),
        _ => in_percent(run.test_accuracy),
    };
    let stopped = run.stopped_by.map_or(String::new(), |signal| {
        format!("The run was stopped by {} before its time, after step {}. ", signal.name(), run.steps)
    });
    story.push(format!(
        "{stopped}{} of {} in {} took the training loss from {} to {} and the test accuracy {accuracy} ({}).",
        count(run.steps, "step"),
        count(run.batch as u64, "row"),
        run.epochs_in_words(),
        // The initial loss is that of the same rows if it was evaluated.
        loss_in_words(history.start_loss.unwrap_or(run.start_loss)),
        loss_in_words(run.train_loss),
        run.evaluated_in_words()
    ));
    story.extend(rate(args, run, history));
    story.push(exceptions(run, model, history));
    let aftermaths = run.aftermaths.sentences();
    story.extend(aftermaths.into_iter().map(|sentence| {
        let mut letters = sentence.chars();
        let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
        format!("{first}{}.", letters.as_str())
    }));
    story
}

/// Describes the course of the rate and its causes.
fn rate(args: &Args, run: &Run, history: &History) -> Vec<String> {
    if run.verdict == Verdict::Skipped || run.rates.lr_first == 0.0 {
        return Vec::new();
    }
    let origin = if args.regime.is_fixed() { "was given" } else { "was found by the optimizer" };
    let rates = &run.rates;
    if rates.lr_min == rates.lr_max {
        return vec![format!("The learning rate {origin} and stayed at {}.", rate_in_words(rates.lr_first))];
    }
    let extreme = |value: f32, greatest: bool| {
        let at = history.step_of_extreme(Quantity::LogRate, greatest);
        format!("{}{}", rate_in_words(value), at.map_or(String::new(), |step| format!(" at step {step:.0}")))
    };
    let mut sentences = vec![format!(
        "The learning rate {origin}: it began at {}, was lowest with {}, highest with {}, and ended at {}.",
        rate_in_words(rates.lr_first),
        extreme(rates.lr_min, false),
        extreme(rates.lr_max, true),
        rate_in_words(rates.lr_last)
    )];
    let mut causes: Vec<_> =
        wgpu_optim::Term::ALL.iter().zip(run.causes.terms).filter(|(_, cause)| cause.occurred()).collect();
    let net = |cause: &super::report::Cause| cause.up + cause.down;
    causes.sort_by(|a, b| net(&b.1).abs().total_cmp(&net(&a.1).abs()));
    let factors: Vec<String> = causes
        .iter()
        .take(3)
        .map(|(term, cause)| format!("{} by \"{}\"", number(net(cause).exp(), 3), in_words(**term, *cause)))
        .collect();
    if !factors.is_empty() {
        let all = number(causes.iter().map(|(_, cause)| net(cause)).sum::<f64>().exp(), 3);
        let more = if causes.len() > factors.len() { ", and the rest by others" } else { "" };
        sentences.push(format!(
            "From its beginning to its end it changed by a factor of {all}: {}{more}; these factors multiply.",
            factors.join(", ")
        ));
    }
    sentences
}

/// Describes unusual events.
fn exceptions(run: &Run, model: &Model, history: &History) -> String {
    let counts = [
        ("skipped", run.skipped_steps),
        ("clipped", run.causes.clipped),
        ("clamped", history.clamped),
        ("held back from falling", history.held),
    ];
    let (some, none): (Vec<_>, Vec<_>) = counts.into_iter().partition(|(_, count)| *count > 0);
    let were = |(name, steps): &(&str, u64)| {
        format!("{} {} {name}", count(*steps, "step"), if *steps == 1 { "was" } else { "were" })
    };
    let none: Vec<&str> = none.into_iter().map(|(name, _)| name).collect();
    let mut sentence = some.iter().map(were).collect::<Vec<_>>().join(", ");
    if !none.is_empty() {
        sentence += if some.is_empty() { "No step was " } else { "; none was " };
        sentence += &match none.split_last() {
            Some((last, [])) => (*last).to_owned(),
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => String::new(),
        };
    }
    if let Some((step, what)) = run.causes.first_skipped {
        sentence += &format!("; the first that was skipped is step {step} ({})", not_finite(what, model));
    }
    sentence + "."
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the description for losses and rates of steps from 0 on, with step 20 changed.
    fn told(losses: impl Fn(u64) -> f32, rates: impl Fn(u64) -> f32, steps: u64) -> Option<String> {
        let mut aftermath = Aftermath::of(20);
        (0..steps).for_each(|step| aftermath.add(step, losses(step), rates(step), false));
        aftermath.in_words("a spike")
    }

    #[test]
    fn what_a_changed_step_did_is_told_with_its_length() {
        let harmless = told(|step| 0.5 + 0.1 * (step % 2) as f32, |_| 0.2, 60).expect("words");
        assert_eq!(harmless, "step 20, a spike: the loss took no harm; the learning rate hardly fell");
        let loss = |step| if (21..30).contains(&step) { 3.0 - (step as f32 - 24.0).abs() / 4.0 } else { 0.5 };
        let rate = |step| if (20..50).contains(&step) { 0.05 } else { 0.2 };
        let harmed = told(loss, rate, 60).expect("words");
        assert_eq!(
            harmed,
            "step 20, a spike: the loss of a batch rose from 0.500 to 3.00 at step 24, and was back after 17 steps; \
             the learning rate fell from 0.200 to 0.0500, and was back after 30 steps"
        );
        let unfinished = told(loss, rate, 26).expect("words");
        assert!(unfinished.contains("was not back 5 steps later"), "{unfinished}");
        assert!(unfinished.contains("and was not back when the run ended"), "{unfinished}");
        let lost = told(|step| if step > 20 { f32::NAN } else { 0.5 }, |_| 0.2, 60).expect("words");
        assert!(lost.contains("to inf at step 21, and was not back"), "{lost}");
        assert_eq!(told(|_| 0.5, |_| 0.2, 20), None);
        assert!(told(|_| 0.5, |_| 0.2, 21).expect("words").contains("the run ended with it"));
    }
}
