//! Rows and columns with their own rates, and rows that are skipped. Twin of `shaders/rows/`.

use crate::cpu::half::Number;
use crate::cpu::values::Slice;

/// Per-row and per-column data of a tensor, seen from an element of the tensor on.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) columns: usize,
    /// Factor of each row, empty if the rows have none.
    pub(crate) of_rows: &'a [f32],
    /// Factor of each column, empty if the columns have none.
    pub(crate) of_columns: &'a [f32],
    /// True for each row with a gradient, empty if no row is skipped.
    pub(crate) touched: &'a [bool],
    pub(crate) first: usize,
}

impl Rows<'_> {
    /// Returns the rows as seen from a later element, `elements` further on.
    pub(crate) fn behind(self, elements: usize) -> Self {
        Rows { first: self.first + elements, ..self }
    }

    /// Finds the longest stretch of elements from `start`, up to `end` at most, that have the same factor. Returns its
    /// end and the factor, or `None` for elements that are skipped.
    pub(crate) fn stretch(self, start: usize, end: usize) -> (usize, Option<f32>) {
        let at = self.first + start;
        let (row, column) = (at / self.columns, at % self.columns);
        let left = (end - start).min(self.columns - column);
        if !self.touched.is_empty() && !self.touched[row] {
            return (start + left, None);
        }
        match self.of_columns.get(column..column + left) {
            Some(factors) => {
                let same = factors.iter().take_while(|&&factor| factor == factors[0]).count();
                (start + same, Some(factors[0]))
            }
            None => (start + left, Some(self.of_rows.get(row).copied().unwrap_or(1.0))),
        }
    }
}

/// Marks the rows that have a gradient.
pub(crate) fn mark(columns: usize, grads: Slice, touched: &mut [bool]) {
    fn of<T: Number>(columns: usize, grads: &[T], touched: &mut [bool]) {
        for (touched, row) in touched.iter_mut().zip(grads.chunks(columns)) {
            *touched = row.iter().any(|g| g.wide() != 0.0);
        }
    }
    match grads {
        Slice::F32(grads) => of(columns, grads, touched),
        Slice::F16(grads) => of(columns, grads, touched),
        Slice::Bf16(grads) => of(columns, grads, touched),
    }
}
