//! Data of a run for the page of `--report`, gathered step by step in memory that does not grow with the number of
//! steps.

use std::fmt;

use wgpu_optim::{NonFinite, Record, TensorRecord, Term};

use super::report::{TermCauses, add_terms};

/// Number of columns of a curve, about one pixel each. If there are more steps, several share a column, which keeps the
/// least and the greatest value.
const COLUMNS: u64 = 1000;
/// Number of bins of the causes.
const BINS: u64 = 200;
/// Number of moves that are described in words.
const MOVES: usize = 10;
/// Number of skipped steps that are described in words.
const SKIPPED: usize = 20;

/// History of the steps of a run so far.
#[derive(Debug, Default, Clone)]
pub struct History {
    pub steps: u64,
    pub columns: Vec<Column>,
    pub bins: Vec<Bin>,
    /// Largest moves, in descending order.
    pub moves: Vec<Move>,
    pub skipped: Vec<(u64, Option<NonFinite>)>,
    pub clamped: u64,
    /// Number of steps in which the rate was held back from falling.
    pub held: u64,
    /// Number of steps whose gradient is zero and has no logarithm.
    pub zero_norms: u64,
    /// Number of finished steps, and the fraction of the test rows that was right then.
    pub accuracies: Vec<(u64, f64)>,
    /// Loss of all training rows before the first step.
    pub start_loss: Option<f64>,
    done: u64,
    smoothed_norm: f32,
    /// Logarithms of the quantities of every recorded tensor, column by column.
    tensors: Vec<Vec<[Extremes; 3]>>,
}

/// Returns the quantities of a tensor as logarithms of base ten.
fn tensor_quantities(record: &TensorRecord) -> [f64; 3] {
    [f64::from(record.parameter_norm).log10(), record.relative_step().log10(), record.effective_rate().log10()]
}

/// Quantity of a curve.
#[derive(Debug, Clone, Copy)]
pub enum Quantity {
    Loss,
    LogLoss,
    LogRate,
    LogNorm,
}

/// Returns every quantity of a step, in the order of [`Quantity`]. Logarithms have base ten.
fn quantities(loss: f32, record: &Record) -> [f64; 4] {
    let loss = f64::from(loss);
    [loss, loss.log10(), record.ln_rate / std::f64::consts::LN_10, f64::from(record.norm).log10()]
}

/// Steps that share a bar.
#[derive(Debug, Clone, Default)]
pub struct Bin {
    pub terms: TermCauses,
    means: [Mean; 4],
}

/// Mean of the finite values among some values with their steps.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mean {
    count: f64,
    steps: f64,
    values: f64,
}

impl Mean {
    fn add(&mut self, step: f64, value: f64) {
        if value.is_finite() {
            self.count += 1.0;
            self.steps += step;
            self.values += value;
        }
    }

    fn point(self) -> Option<(f64, f64)> {
        (self.count > 0.0).then(|| (self.steps / self.count, self.values / self.count))
    }
}

/// Steps that share a pixel.
#[derive(Debug, Clone, Default)]
pub struct Column {
    pub extremes: [Extremes; 4],
    pub skipped: bool,
    pub clamped: bool,
}

/// Least and greatest of some values, each with its step.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extremes(Option<[(f64, f64); 2]>);

impl Extremes {
    fn add(&mut self, step: f64, value: f64) {
        if !value.is_finite() {
            return;
        }
        let [low, high] = self.0.get_or_insert([(step, value); 2]);
        if value < low.1 {
            *low = (step, value);
        }
        if value > high.1 {
            *high = (step, value);
        }
    }

    /// Returns both points in the order of their steps, or one if they are the same.
    pub fn points(self) -> impl Iterator<Item = (f64, f64)> {
        let mut points = self.0.map_or_else(Vec::new, Vec::from);
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points.dedup_by_key(|point| point.0);
        points.into_iter()
    }
}

#[derive(Debug, Clone)]
pub struct Move {
    record: Record,
    smoothed_norm_before: f32,
}

impl History {
    /// Returns an empty history of a run of this many steps.
    pub fn new(steps: u64) -> Self {
        let steps = steps.max(1);
        let columns = vec![Column::default(); steps.min(COLUMNS) as usize];
        let mut history = History { steps, columns, ..History::default() };
        history.bins.resize(steps.div_ceil(history.bin_width()) as usize, Bin::default());
        history
    }

    /// Returns the number of steps in a bin. All bins have the same number, so that they can be compared.
    pub fn bin_width(&self) -> u64 {
        self.steps.div_ceil(BINS).max(1)
    }

    pub fn add(&mut self, loss: f32, record: &Record, tensors: &[TensorRecord]) {
        let column = (u128::from(record.step) * self.columns.len() as u128 / u128::from(self.steps)) as usize;
        let bin = (record.step / self.bin_width()) as usize;
        let step = record.step as f64;
        let values = quantities(loss, record);
        if self.tensors.len() < tensors.len() {
            self.tensors.resize(tensors.len(), vec![[Extremes::default(); 3]; self.columns.len()]);
        }
        for (columns, tensor) in self.tensors.iter_mut().zip(tensors) {
            if let Some(extremes) = columns.get_mut(column) {
                extremes.iter_mut().zip(tensor_quantities(tensor)).for_each(|(of, value)| of.add(step, value));
            }
        }
        let clamped = record.flags.clamped_change() || record.flags.clamped_rate();
        if let Some(column) = self.columns.get_mut(column) {
            column.extremes.iter_mut().zip(values).for_each(|(of, value)| of.add(step, value));
            column.skipped |= record.flags.skipped();
            column.clamped |= clamped;
        }
        if let Some(bin) = self.bins.get_mut(bin) {
            add_terms(&mut bin.terms, record);
            bin.means.iter_mut().zip(values).for_each(|(mean, value)| mean.add(step, value));
        }
        self.clamped += u64::from(clamped);
        self.held += u64::from(record.term(Term::Held) > 0.0);
        self.zero_norms += u64::from(record.norm == 0.0);
        if record.flags.skipped() && self.skipped.len() < SKIPPED {
            self.skipped.push((record.step, record.nonfinite));
        }
        self.add_move(record);
        self.smoothed_norm = record.smoothed_norm;
        self.done += 1;
    }

    fn add_move(&mut self, record: &Record) {
        let size = |record: &Record| record.change().abs();
        if size(record) == 0.0 {
            return;
        }
        // Of equal moves the first one is kept.
        let place = self.moves.partition_point(|other| size(&other.record) >= size(record));
        if place < MOVES {
            self.moves.truncate(MOVES - 1);
            self.moves.insert(place, Move { record: record.clone(), smoothed_norm_before: self.smoothed_norm });
        }
    }

    /// Adds the test accuracy after the steps so far.
    pub fn end_epoch(&mut self, accuracy: f64) {
        self.accuracies.push((self.done, accuracy));
    }

    pub fn curve(&self, of: Quantity) -> Vec<(f64, f64)> {
        self.columns.iter().flat_map(|column| column.extremes[of as usize].points()).collect()
    }

    /// Returns the step with the least or the greatest value.
    pub fn step_of_extreme(&self, of: Quantity, greatest: bool) -> Option<f64> {
        let points = self.columns.iter().filter_map(|column| column.extremes[of as usize].0);
        // The negative of the least value is the greatest.
        let points = points.map(|[low, high]| if greatest { high } else { (low.0, -low.1) });
        let best = points.reduce(|best, point| if point.1 > best.1 { point } else { best });
        best.map(|(step, _)| step)
    }

    /// Returns the curves of one quantity, tensor by tensor.
    pub fn tensor_curves(&self, of: usize) -> Vec<Vec<(f64, f64)>> {
        let curve = |columns: &Vec<[Extremes; 3]>| columns.iter().flat_map(|extremes| extremes[of].points()).collect();
        self.tensors.iter().map(curve).collect()
    }

    /// Returns a second curve of means if the first one is a band because steps share its pixels, else an empty curve.
    pub fn means(&self, of: Quantity) -> Vec<(f64, f64)> {
        if self.steps <= COLUMNS {
            return Vec::new();
        }
        self.bins.iter().filter_map(|bin| bin.means[of as usize].point()).collect()
    }
}

/// Formats as `step 212: LR -31 %: norm jumped 1.4x (-29 %), steps contradict (-2.0 %)`.
impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = &self.record;
        let mut terms: Vec<(Term, f64)> = record.terms().map(|(term, value)| (term, f64::from(value))).collect();
        terms.retain(|(_, value)| (100.0 * value.exp_m1()).abs() >= 0.05);
        terms.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
        let growth = record.smoothed_norm / self.smoothed_norm_before;
        write!(f, "step {}: LR {}", record.step, percent(record.change()))?;
        for (index, (term, value)) in terms.into_iter().enumerate() {
            let cause = match term {
                Term::Norm if growth.is_finite() && growth >= 1.15 => {
                    format!("norm jumped {growth:.digits$}x", digits = usize::from(growth < 9.95))
                }
                Term::Norm if growth > 0.0 && growth <= 0.87 => format!("norm fell to {growth:.2}x"),
                _ => term.cause(value > 0.0).to_owned(),
            };
            write!(f, "{} {cause} ({})", if index == 0 { ":" } else { "," }, percent(value))?;
        }
        f.write_str(if record.flags.clipped() { "; gradient clipped" } else { "" })
    }
}

/// Formats a change of ln η as a change of η.
fn percent(change: f64) -> String {
    let percent = 100.0 * change.exp_m1();
    if percent.abs() >= 9.95 { format!("{percent:+.0} %") } else { format!("{percent:+.1} %") }
}
