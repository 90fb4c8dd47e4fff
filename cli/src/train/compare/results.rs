//! Results of a comparison, and the best fixed rates.

use serde_json::json;

use super::super::options::{ScheduleName, name_of};
use super::super::report::Run;
use super::super::verdict::Verdict;
use super::cases::{Case, Comparison, Place, REFERENCES, Variant};
use super::summary::overall;

/// Case with its results. A run that diverged is a result too.
pub struct Cell {
    pub case: Case,
    pub runs: Vec<Run>,
    /// Accuracy that a run that diverged counts as: that of an answer that ignores the features.
    pub chance: f64,
}

impl Cell {
    /// Returns a test accuracy of each run, from 0 to 1.
    fn accuracies(&self, of: impl Fn(&Run) -> f64) -> impl ExactSizeIterator<Item = f64> {
        self.runs.iter().map(move |run| if run.verdict == Verdict::Ok { of(run) } else { self.chance })
    }

    /// Returns the mean test accuracy, from 0 to 1.
    pub fn accuracy(&self) -> f64 {
        mean(self.accuracies(|run| run.test_accuracy))
    }

    /// Returns the mean test accuracy of the last iterates, from 0 to 1.
    fn last_accuracy(&self) -> f64 {
        mean(self.accuracies(|run| run.last_test_accuracy.unwrap_or(run.test_accuracy)))
    }

    /// Returns the sample standard deviation of the accuracy, or `None` with one seed.
    pub fn deviation(&self) -> Option<f64> {
        let center = self.accuracy();
        let squares: f64 = self.accuracies(|run| run.test_accuracy).map(|x| (x - center).powi(2)).sum();
        (self.runs.len() > 1).then(|| (squares / (self.runs.len() - 1) as f64).sqrt())
    }

    /// Returns the mean training loss, which is not finite if one of the losses is not.
    pub fn loss(&self) -> f64 {
        mean(self.runs.iter().map(|run| run.train_loss))
    }

    /// Returns the number of runs that diverged or skipped every step.
    pub fn diverged(&self) -> usize {
        self.runs.iter().filter(|run| run.verdict != Verdict::Ok).count()
    }

    /// Returns the accuracy minus that of another cell, in points.
    fn above(&self, other: &Cell) -> f64 {
        100.0 * (self.accuracy() - other.accuracy())
    }

    fn lr(&self) -> Option<f64> {
        self.case.variant.lr.map(as_given)
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

/// Returns the fixed rates of a table's column under a schedule, at gradient scale 1.
pub fn grid(cells: &[Cell], place: Place, schedule: ScheduleName) -> impl Iterator<Item = &Cell> {
    cells.iter().filter(move |Cell { case: Case { place: other, variant }, .. }| {
        *other == place && variant.is_fixed() && variant.schedule == schedule && variant.gradient_scale == 1.0
    })
}

/// Returns the best fixed rate of a table's column under a schedule: the one with the best mean accuracy on the test
/// rows, then the lowest loss, then the first. A rate whose runs all diverged is only chosen if there is no other.
pub fn best_fixed(cells: &[Cell], place: Place, schedule: ScheduleName) -> Option<&Cell> {
    let loss = |cell: &Cell| Some(cell.loss()).filter(|loss| loss.is_finite()).unwrap_or(f64::INFINITY);
    grid(cells, place, schedule).reduce(|best, cell| {
        let accuracy = |cell: &Cell| if cell.diverged() == cell.runs.len() { -1.0 } else { cell.accuracy() };
        let (one, other) = (accuracy(best), accuracy(cell));
        if other > one || other == one && loss(cell) < loss(best) { cell } else { best }
    })
}

/// Returns the best rate if it is at an end of its grid, and whether that is the upper end. For a grid of one rate it
/// is the upper end.
pub fn end_of_grid(cells: &[Cell], place: Place, schedule: ScheduleName) -> Option<(f32, bool)> {
    let best = best_fixed(cells, place, schedule)?.case.variant.lr?;
    let rates = || grid(cells, place, schedule).filter_map(|cell| cell.case.variant.lr);
    let is_upper = !rates().any(|rate| rate > best);
    (is_upper || !rates().any(|rate| rate < best)).then_some((best, is_upper))
}

/// Returns the number as the user gave it, without the digits of a widened f32.
fn as_given(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

pub struct Results<'a> {
    pub comparison: &'a Comparison<'a>,
    pub cells: Vec<Cell>,
}

impl Results<'_> {
    /// Returns the references of a column's regimes, in the order of [`REFERENCES`].
    fn references(&self, place: Place) -> [Option<&Cell>; 2] {
        REFERENCES.map(|(schedule, _)| best_fixed(&self.cells, place, schedule))
    }

    /// Returns a cell's accuracy in points minus that of the best fixed rate, judged by last iterates as in a run
    /// without averages.
    pub fn above_last(&self, cell: &Cell) -> Option<f64> {
        let rates = grid(&self.cells, cell.case.place, ScheduleName::CONSTANT);
        let best = rates.map(Cell::last_accuracy).max_by(f64::total_cmp)?;
        Some(100.0 * (cell.accuracy() - best))
    }

    /// Returns the rows of every table: the best fixed rate under each schedule, then for each scale the best rate and
    /// the regimes.
    pub fn rows(&self) -> Vec<Variant> {
        let schedules = self.comparison.fixed_schedules();
        let mut rows: Vec<Variant> = schedules.map(|schedule| Variant::fixed(f32::NAN, schedule, 1.0)).collect();
        for &scale in &self.comparison.gradient_scales {
            if scale != 1.0 {
                rows.push(Variant::fixed(f32::NAN, ScheduleName::CONSTANT, scale));
            }
            rows.extend(self.comparison.variants.iter().filter(|variant| variant.gradient_scale == scale));
        }
        rows
    }

    /// Returns the cell of a row, and its points of accuracy above each reference at scale 1.
    pub fn at(&self, place: Place, row: Variant) -> Option<(&Cell, [f64; 2])> {
        let lr = if row.is_fixed() { best_fixed(&self.cells, place, row.schedule)?.case.variant.lr } else { row.lr };
        let case = Case { place, variant: Variant { lr, ..row } };
        let cell = self.cells.iter().find(|cell| cell.case == case)?;
        let [fixed, cosine] = self.references(place);
        Some((cell, [cell.above(fixed?), cell.above(cosine?)]))
    }

    /// Returns the object of `--json`: every run with the data that `train --json` does not have, and a summary of each
    /// cell.
    pub fn json(&self) -> String {
        let mut runs = Vec::new();
        let mut summaries = Vec::new();
        for cell in &self.cells {
            let Case { place, variant } = cell.case;
            let (lr, first_step) = (cell.lr(), variant.first_step.map(as_given));
            let gradient_scale = as_given(variant.gradient_scale);
            for run in &cell.runs {
                let mut run = json!(run);
                run["regime"] = json!(variant.source());
                run["lr"] = json!(lr);
                run["first_step"] = json!(first_step);
                run["gradient_scale"] = json!(gradient_scale);
                runs.push(run);
            }
            let [fixed, cosine] = self.references(place);
            summaries.push(json!({
                "data": self.comparison.subjects[place.data].dataset.name,
                "batch": place.setting.batch,
                "epochs": place.setting.epochs,
                "rule": name_of(place.rule),
                "regime": variant.source(),
                "schedule": name_of(variant.schedule),
                "lr": lr,
                "first_step": first_step,
                "gradient_scale": gradient_scale,
                "seeds": cell.runs.len(),
                "test_accuracy": cell.accuracy(),
                "test_accuracy_deviation": cell.deviation(),
                "train_loss": cell.loss(),
                "diverged": cell.diverged(),
                "best_fixed_lr": fixed.and_then(Cell::lr),
                "best_cosine_lr": cosine.and_then(Cell::lr),
                // Points of accuracy above the references, negative if below.
                "above_best_fixed": fixed.map(|fixed| cell.above(fixed)),
                "above_best_cosine": cosine.map(|cosine| cell.above(cosine)),
                "above_best_last": self.above_last(cell),
            }));
        }
        json!({ "runs": runs, "summary": summaries, "overall": overall(self) }).to_string()
    }
}
