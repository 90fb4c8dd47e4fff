//! Tensors as matrices, for rules that own passes over them.

use crate::error::{BuildError, Error};
use crate::layout::Matrix;

/// Rows and columns of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl Shape {
    /// The first dimension for the rows, all others for the columns. `None` for tensors of fewer than two dimensions.
    pub(crate) fn of(dimensions: &[usize]) -> Option<Self> {
        match dimensions {
            [rows, first, rest @ ..] => {
                Some(Shape { rows: *rows, columns: rest.iter().fold(*first, |all, next| all.saturating_mul(*next)) })
            }
            _ => None,
        }
    }

    /// The smaller of the two: the rank of a matrix at most.
    pub(crate) fn short(self) -> usize {
        self.rows.min(self.columns)
    }

    pub(crate) fn long(self) -> usize {
        self.rows.max(self.columns)
    }
}

/// A matrix and what its rule makes of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MatrixNumbers {
    pub(crate) shape: Shape,
    /// Coefficients a, b and c of the Newton–Schulz iteration.
    pub(crate) coefficients: [f32; 3],
    /// The smallest norm that a matrix is divided by.
    pub(crate) epsilon: f32,
    /// The factor of the direction.
    pub(crate) scale: f32,
}

impl MatrixNumbers {
    /// The squared length of the direction, whose singular values are about 1 before the factor.
    pub(crate) fn direction_square(&self) -> f64 {
        f64::from(self.scale).powi(2) * self.shape.short() as f64
    }

    /// The matrix as the kernels have it, from its first element in the window's memories.
    pub(super) fn placed(&self, first: u32, gram_first: u32, group: u32, lead: u32, blocks: u32) -> Matrix {
        let [a, b, c] = self.coefficients;
        Matrix {
            first,
            rows: self.shape.short() as u32,
            columns: self.shape.long() as u32,
            transposed: u32::from(self.shape.rows > self.shape.columns),
            gram_first,
            group,
            lead,
            blocks,
            a,
            b,
            c,
            epsilon: self.epsilon,
            scale: self.scale,
        }
    }
}

/// Refuses a shape that does not have a tensor's number of elements.
pub(super) fn check_shape(tensor: &str, shape: &[usize], elements: u64) -> Result<(), Error> {
    let product = shape.iter().try_fold(1u64, |all, &length| all.checked_mul(length as u64));
    if shape.is_empty() || product == Some(elements) {
        return Ok(());
    }
    Err(Error::from(BuildError::Shape { tensor: tensor.to_owned(), shape: shape.to_vec(), elements }))
}
