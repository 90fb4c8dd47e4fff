//! Adafactor's passes. Twins of `shaders/factored/`, with sums in f64.

use std::ops::Range;

use crate::cpu::update_parameters::{Gradient, Tiles, tiles};
use crate::layout::{FactoredTensor, Update};
use crate::plan::Kernel;
use crate::rule::{HostRule, LARGEST_FACTORED, RuleVisitor};

/// Sums that are added up side by side, so that an addition does not wait for the one before.
const LANES: usize = 16;

/// Memory for the passes over one tensor.
#[derive(Debug, Default)]
pub(crate) struct FactorMemory {
    /// Sums of squares of rows, and of columns.
    pub(crate) sums: [Vec<f64>; 2],
    /// Mean of the second moments of each matrix's rows.
    pub(crate) means: Vec<f32>,
}

/// Second moments of rows and columns, seen from an element of the tensor on.
#[derive(Clone, Copy)]
pub(crate) struct Factors<'a> {
    pub(crate) tensor: &'a FactoredTensor,
    /// Second moments of rows, and of columns.
    pub(crate) moments: [&'a [f32]; 2],
    pub(crate) means: &'a [f32],
    pub(crate) first: usize,
}

/// Adjacent elements of a row.
struct Segment {
    /// Index of the row in the stack.
    row: usize,
    matrix: usize,
    /// Index of the first column.
    column: usize,
    /// Range of the elements, counted from the first of the range that was split.
    elements: Range<usize>,
}

/// Splits a range of elements at the ends of rows.
#[inline(always)]
fn segments(t: &FactoredTensor, range: Range<usize>) -> impl Iterator<Item = Segment> {
    let (rows, columns) = (t.rows as usize, t.columns as usize);
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let (row, column) = (at / columns, at % columns);
        let elements = (columns - column).min(range.end - at);
        let start = at - range.start;
        at += elements;
        Some(Segment { row, matrix: row / rows, column, elements: start..start + elements })
    })
}

impl Factors<'_> {
    /// Returns the factors as seen from a later element, `elements` further on.
    pub(crate) fn behind(self, elements: usize) -> Self {
        Factors { first: self.first + elements, ..self }
    }

    /// Computes the second moments of a range of elements.
    #[inline(always)]
    pub(crate) fn estimate(&self, range: Range<usize>, epsilon: f32, estimates: &mut [f32]) {
        let t = self.tensor;
        let [of_rows, of_columns] = self.moments;
        for one in segments(t, self.first + range.start..self.first + range.end) {
            let mean = self.means[one.matrix];
            let of_row = of_rows[one.row] / if mean > epsilon { mean } else { epsilon };
            let columns = &of_columns[one.matrix * t.columns as usize + one.column..];
            for (v, column) in estimates[one.elements].iter_mut().zip(columns) {
                *v = of_row * column;
            }
        }
    }
}

/// Sums the squares of rows and columns, and updates their second moments.
#[inline(always)]
pub(crate) fn follow_moments(
    kernel: Kernel,
    update: &Update,
    t: &FactoredTensor,
    elements: &mut impl Tiles,
    moments: [&mut [f32]; 2],
    memory: &mut FactorMemory,
) {
    let gradient = Gradient::<true>::of_step(kernel, update);
    let FactorMemory { sums: [of_rows, of_columns], means } = memory;
    of_rows.fill(0.0);
    of_columns.fill(0.0);
    for tile in tiles(elements.len(), elements.tile_elements()) {
        let (params, grads) = elements.tile(tile.clone());
        for one in segments(t, tile) {
            let columns = &mut of_columns[one.matrix * t.columns as usize + one.column..];
            let (params, grads) = (&params[one.elements.clone()], &grads[one.elements]);
            let add = |of_row: &mut f64, of_column: &mut f64, w, g| {
                let g = f64::from(gradient.of(g, w).clamp(-LARGEST_FACTORED, LARGEST_FACTORED));
                *of_row += g * g;
                *of_column += g * g;
            };
            let mut sums = [0.0; LANES];
            let (params_rows, last_params) = params.as_chunks::<LANES>();
            let (grads_rows, last_grads) = grads.as_chunks::<LANES>();
            let (columns_rows, last_columns) = columns[..params.len()].as_chunks_mut::<LANES>();
            for ((w, g), of_column) in params_rows.iter().zip(grads_rows).zip(columns_rows) {
                for j in 0..LANES {
                    add(&mut sums[j], &mut of_column[j], w[j], g[j]);
                }
            }
            let last = last_params.iter().zip(last_grads).zip(last_columns);
            for (((&w, &g), of_column), sum) in last.zip(&mut sums) {
                add(sum, of_column, w, g);
            }
            of_rows[one.row] += sums.iter().sum::<f64>();
        }
    }
    let [rows, columns] = moments;
    let squares = [(&mut *rows, of_rows, t.columns), (columns, of_columns, t.rows)];
    for (moments, sums, terms) in squares {
        for (moment, sum) in moments.iter_mut().zip(sums) {
            let mean = (*sum / f64::from(terms)) as f32;
            *moment = update.square_keep * *moment + update.square_share * mean;
        }
    }
    for (mean, rows) in means.iter_mut().zip(rows.chunks(t.rows as usize)) {
        let sum: f64 = rows.iter().copied().map(f64::from).sum();
        *mean = (sum / f64::from(t.rows)) as f32;
    }
}

/// Returns the factor that brings the root mean square of a tensor's direction within its limit.
#[inline(always)]
pub(crate) fn limit_of(
    kernel: Kernel,
    update: &Update,
    t: &FactoredTensor,
    elements: &mut impl Tiles,
    squares: &[f32],
    factors: Option<Factors>,
) -> f32 {
    let square = kernel.rule.visit(Measure { kernel, update, elements, squares, factors });
    let allowed = f64::from(t.limit) * f64::from(t.elements).sqrt();
    let norm = square.sqrt();
    if norm > allowed { (allowed / norm) as f32 } else { 1.0 }
}

/// Measures the squared length of a direction.
struct Measure<'a, T> {
    kernel: Kernel,
    update: &'a Update,
    elements: &'a mut T,
    /// Second moments of the elements, empty if there are factors.
    squares: &'a [f32],
    factors: Option<Factors<'a>>,
}

impl<T: Tiles> RuleVisitor for Measure<'_, T> {
    type Output = f64;

    #[inline(always)]
    fn visit<R: HostRule>(self) -> f64 {
        let Measure { kernel, update, elements, squares, factors } = self;
        let gradient = Gradient::<true>::of_step(kernel, update);
        let mut estimates = [0.0; crate::cpu::update_parameters::TILE];
        let mut sums = [0.0; LANES];
        for tile in tiles(elements.len(), elements.tile_elements()) {
            let estimates = &mut estimates[..tile.len()];
            match factors {
                Some(factors) => factors.estimate(tile.clone(), update.epsilon, estimates),
                None => estimates.copy_from_slice(&squares[tile.clone()]),
            }
            let (params, grads) = elements.tile(tile);
            let add = |sum: &mut f64, w, g, v| {
                let g = gradient.of(g, w);
                let admitted = g.clamp(-LARGEST_FACTORED, LARGEST_FACTORED);
                let v = match factors {
                    Some(_) => v,
                    None => update.square_keep * v + update.square_share * (admitted * admitted),
                };
                let u = f64::from(R::direction(update, g, 0.0, 0.0, v));
                *sum += u * u;
            };
            let (params_rows, last_params) = params.as_chunks::<LANES>();
            let (grads_rows, last_grads) = grads.as_chunks::<LANES>();
            let (squares_rows, last_squares) = estimates.as_chunks::<LANES>();
            for ((w, g), v) in params_rows.iter().zip(grads_rows).zip(squares_rows) {
                for j in 0..LANES {
                    add(&mut sums[j], w[j], g[j], v[j]);
                }
            }
            let last = last_params.iter().zip(last_grads).zip(last_squares);
            for (((&w, &g), &v), sum) in last.zip(&mut sums) {
                add(sum, w, g, v);
            }
        }
        sums.iter().sum()
    }
}
