//! Verdict on a run. A run that diverged is never reported as a success.

use wgpu_optim::Regime;

use serde::Serialize;

use super::in_percent;
use super::options::{Args, name_of};
use super::report::Run;
use crate::model::{Model, ModelKind};
use crate::words::{count, number};

/// Verdict on a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The run ended, and none of the following is true.
    Ok,
    /// A loss is not finite at the end, or the training loss is far above its start. See [`Ending::verdict`].
    Diverged,
    Skipped,
}

/// Factor of the initial training loss above which a run has diverged.
const FAR: f64 = 10.0;
/// The factor if the answers are no better than by chance.
const FAR_AT_CHANCE: f64 = 3.0;

#[derive(Debug, Clone, Copy)]
pub struct Ending {
    /// Training loss of the evaluated parameters.
    pub loss: f64,
    /// Losses of the last batch and of the last iterate, if they are known.
    pub others: [Option<f64>; 2],
    /// Loss at the start. See [`start_loss`].
    pub start: f64,
    pub accuracy: f64,
    /// Accuracy by chance. See [`Dataset::chance`](crate::data::Dataset::chance).
    pub chance: f64,
    pub every_step_skipped: bool,
}

impl Ending {
    /// Returns the verdict. A run has diverged if a loss is not finite at its end, if its training loss is above ten
    /// times the loss at the start, or if it is above three times that loss with no more right answers than by chance.
    ///
    /// The loss at the start is that of a model that knows nothing or that of the first batch, whichever is larger. A
    /// higher loss at the end is worse, but not necessarily a divergence: a model that is right on most rows and
    /// overconfident on the others has a loss of several times that. Overconfidence alone does not explain ten times
    /// the loss.
    pub fn verdict(&self) -> Verdict {
        let finite = self.loss.is_finite() && self.others.iter().flatten().all(|x| x.is_finite());
        let far = if self.accuracy <= self.chance { FAR_AT_CHANCE } else { FAR };
        if self.every_step_skipped {
            Verdict::Skipped
        } else if !finite || self.loss > far * self.start {
            Verdict::Diverged
        } else {
            Verdict::Ok
        }
    }
}

/// Returns the loss before the first step: that of a model whose outputs are all 0 or that of the first batch,
/// whichever is larger. The first batch has a larger loss if features are large. (A batch of few rows may have a tiny
/// loss by luck.)
pub fn start_loss(model: &Model, first_batch: Option<f32>) -> f64 {
    let classes = model.classes as f64;
    let of_zeros = match model.kind {
        ModelKind::Svm => classes,
        ModelKind::Softmax | ModelKind::Mlp => classes.ln(),
    };
    let first = first_batch.map(f64::from).filter(|loss| loss.is_finite());
    first.map_or(of_zeros, |first| first.max(of_zeros))
}

/// Describes the failure and what to do in one line. Returns `None` for a run without a failure.
pub fn in_words(args: &Args, run: &Run) -> Option<String> {
    let happened = match run.verdict {
        Verdict::Ok => return None,
        Verdict::Skipped if args.inject_nan.is_some() => {
            return Some("every step was skipped, nothing was learned: --inject-nan was all that happened".to_owned());
        }
        Verdict::Skipped => {
            return Some(
                "every step was skipped, nothing was learned: the gradients are not finite, so look at the scale of the features"
                    .to_owned(),
            );
        }
        Verdict::Diverged if !run.train_loss.is_finite() => "is not finite".to_owned(),
        Verdict::Diverged => format!("is {}", loss_in_words(run.train_loss)),
    };
    let without_answer = match run.nonfinite_test_rows {
        0 => String::new(),
        rows => format!(" (the outputs of {} are not finite, and count as wrong)", count(rows as u64, "row")),
    };
    Some(format!(
        "the run diverged: the training loss {happened} after {}, from {} at the start, and {} of the test rows are \
         right{without_answer}; {}",
        count(run.steps, "step"),
        loss_in_words(run.start_loss),
        in_percent(run.test_accuracy),
        way_out(args)
    ))
}

/// Formats a loss in a few characters.
pub fn loss_in_words(loss: f64) -> String {
    number(loss, 3)
}

fn way_out(args: &Args) -> String {
    match args.regime.0 {
        Regime::Fixed(_) => "try a smaller --lr, or leave --regime and --lr out and let the rate be found".to_owned(),
        Regime::Seesaw(_) => {
            "try --clip-norm 1, leave --schedule out if it is given, or bring the features to one scale".to_owned()
        }
        regime => {
            let fails = if regime.suits(&args.rule()) {
                "does not find a rate here".to_owned()
            } else {
                format!("is known to fail with --rule {}", name_of(args.rule))
            };
            format!("--regime {} {fails}: leave --regime out, or take another rule", regime.name())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ends_far_above_its_start_has_diverged() {
        let others = [Some(0.2), None];
        let ok = Ending { loss: 0.1, others, start: 2.3, accuracy: 0.9, chance: 0.1, every_step_skipped: false };
        assert_eq!(ok.verdict(), Verdict::Ok);
        // An overconfident model that is mostly right may have six times the loss at the start.
        assert_eq!(Ending { loss: 14.0, ..ok }.verdict(), Verdict::Ok);
        let at_chance = Ending { accuracy: 0.1, ..ok };
        assert_eq!(at_chance.verdict(), Verdict::Ok);
        for diverged in [
            Ending { loss: 24.0, ..ok },
            Ending { loss: 7.0, ..at_chance },
            Ending { loss: f64::NAN, ..ok },
            Ending { loss: f64::INFINITY, ..ok },
            Ending { others: [Some(f64::NAN), None], ..ok },
            Ending { others: [None, Some(f64::INFINITY)], ..ok },
        ] {
            assert_eq!(diverged.verdict(), Verdict::Diverged, "{diverged:?}");
        }
        let skipped = Ending { every_step_skipped: true, loss: f64::NAN, ..ok };
        assert_eq!(skipped.verdict(), Verdict::Skipped);
    }

    #[test]
    fn a_start_is_never_better_than_knowing_nothing() {
        let mlp = Model::new(ModelKind::Mlp, 2, 10, 3);
        let of_zeros = 10f64.ln();
        for lucky in [None, Some(1e-3), Some(f32::NAN), Some(f32::INFINITY)] {
            assert_eq!(start_loss(&mlp, lucky), of_zeros);
        }
        assert_eq!(start_loss(&mlp, Some(512.0)), 512.0);
        let svm = Model::new(ModelKind::Svm, 2, 10, 3);
        assert_eq!(start_loss(&svm, None), 10.0);
    }
}
