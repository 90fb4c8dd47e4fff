//! Tensors as matrices, for rules with passes over matrices.

use super::{Kernel, RateAxis};
use crate::error::{BuildError, Error};
use crate::layout::{FactoredTensor, MATRIX_TILE, Matrix, Tile};

/// Rows and columns of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl Shape {
    /// Returns the first dimension as rows and the product of the others as columns, or `None` for tensors of fewer
    /// than two dimensions.
    pub(crate) fn of(dimensions: &[usize]) -> Option<Self> {
        match dimensions {
            [rows, first, rest @ ..] => {
                Some(Shape { rows: *rows, columns: rest.iter().fold(*first, |all, next| all.saturating_mul(*next)) })
            }
            _ => None,
        }
    }

    /// Returns the smaller of both lengths, which is the largest possible rank.
    pub(crate) fn short(self) -> usize {
        self.rows.min(self.columns)
    }

    pub(crate) fn long(self) -> usize {
        self.rows.max(self.columns)
    }
}

/// Tensor with its own rates for rows or columns, or whose rows without gradients are skipped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowTensor {
    pub(crate) shape: Shape,
    pub(crate) group: u32,
    /// Index of the tensor's first block in the window.
    pub(crate) lead: u32,
    /// Index of the tensor's factors, which follow the table of the window's blocks.
    pub(crate) factors_first: u32,
    /// Index of the flags of the tensor's rows.
    pub(crate) flags_first: u32,
}

impl RowTensor {
    /// Returns the number of factors and the number of flags for a tensor of this shape.
    pub(super) fn words(kernel: Kernel, shape: Shape) -> [u64; 2] {
        let factors = match kernel.rates {
            None => 0,
            Some(RateAxis::Rows) => shape.rows,
            Some(RateAxis::Columns) => shape.columns,
        };
        [factors as u64, if kernel.lazy_rows { shape.rows as u64 } else { 0 }]
    }
}

/// Tensor as a stack of matrices, which are its last two dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stack {
    pub(crate) matrices: u64,
    pub(crate) rows: u64,
    pub(crate) columns: u64,
}

impl Stack {
    /// Returns the last two dimensions as rows and columns, or `None` for tensors of fewer than two dimensions.
    pub(crate) fn of(dimensions: &[usize]) -> Option<Self> {
        let [outer @ .., rows, columns] = dimensions else { return None };
        let some = if *rows == 0 || *columns == 0 { 0 } else { 1 };
        let matrices = outer.iter().fold(some, |all: u64, &length| all.saturating_mul(length as u64));
        Some(Stack { matrices, rows: *rows as u64, columns: *columns as u64 })
    }

    /// Returns the number of partial sums of rows and columns: one for each tile that a row or column passes through.
    fn partials(self) -> u64 {
        self.matrices * (self.rows * tiles_of(self.columns) + self.columns * tiles_of(self.rows))
    }

    /// Returns the number of tiles of all matrices.
    fn tiles(self) -> u64 {
        self.matrices * tiles_of(self.rows) * tiles_of(self.columns)
    }
}

fn tiles_of(length: u64) -> u64 {
    length.div_ceil(MATRIX_TILE.into())
}

/// Work that a rule's own passes do on a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum TensorWork {
    /// Orthogonalizes a matrix.
    Matrix(MatrixNumbers),
    /// Limits the root mean square of the direction, and keeps second moments for the rows and columns of a stack.
    Limited { limit: f32, stack: Option<Stack> },
}

/// Sizes of the data that a window of limited tensors holds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Room {
    pub(crate) rows: u64,
    pub(crate) columns: u64,
    /// Number of means of rows, one for each matrix.
    pub(crate) means: u64,
    /// Number of partial sums of tiles.
    pub(crate) partials: u64,
    pub(super) tiles: u64,
}

impl Room {
    /// Returns the sizes with one more tensor.
    pub(super) fn with(self, work: &TensorWork) -> Self {
        match work {
            TensorWork::Limited { stack: Some(stack), .. } => Room {
                rows: self.rows + stack.matrices * stack.rows,
                columns: self.columns + stack.matrices * stack.columns,
                means: self.means + stack.matrices,
                partials: self.partials + stack.partials(),
                tiles: self.tiles + stack.tiles(),
            },
            _ => self,
        }
    }

    /// Returns the length of the largest buffer, in words.
    pub(super) fn largest(self) -> u64 {
        // The table of tiles begins with their number.
        let tiles = size_of::<Tile>() as u64 / 4 * (self.tiles + 1);
        self.partials.max(self.rows + self.columns + self.means).max(tiles)
    }
}

/// Returns a limited tensor for the kernels. `room` is the data of the window's tensors before it.
pub(super) fn limited(
    limit: f32,
    stack: Option<Stack>,
    room: Room,
    elements: u64,
    [group, lead, blocks]: [u32; 3],
) -> FactoredTensor {
    let Stack { matrices, rows, columns } = stack.unwrap_or(Stack { matrices: 0, rows: 0, columns: 0 });
    FactoredTensor {
        rows: rows as u32,
        columns: columns as u32,
        matrices: matrices as u32,
        elements: elements as u32,
        rows_first: room.rows as u32,
        // Columns follow all rows, and means follow all columns. `finish` adds their offsets.
        columns_first: room.columns as u32,
        means_first: room.means as u32,
        partials_first: room.partials as u32,
        group,
        lead,
        blocks,
        limit,
        factor: 1.0,
    }
}

/// Matrix with the numbers of its rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MatrixNumbers {
    pub(crate) shape: Shape,
    /// Coefficients a, b and c of the Newton–Schulz iteration.
    pub(crate) coefficients: [f32; 3],
    /// Smallest norm that a matrix is divided by.
    pub(crate) epsilon: f32,
    /// Factor of the direction.
    pub(crate) scale: f32,
}

impl MatrixNumbers {
    /// Returns the squared length of the direction. Its singular values are about 1 before the factor.
    pub(crate) fn direction_square(&self) -> f64 {
        f64::from(self.scale).powi(2) * self.shape.short() as f64
    }

    /// Returns the matrix for the kernels. `first` is its first element in the window's memory.
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

/// Returns an error if a shape does not have the tensor's number of elements.
pub(super) fn check_shape(tensor: &str, shape: &[usize], elements: u64) -> Result<(), Error> {
    let product = shape.iter().try_fold(1u64, |all, &length| all.checked_mul(length as u64));
    if shape.is_empty() || product == Some(elements) {
        return Ok(());
    }
    Err(Error::from(BuildError::Shape { tensor: tensor.to_owned(), shape: shape.to_vec(), elements }))
}
