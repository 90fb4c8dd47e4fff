//! Tensors as matrices, for rules that own passes over them.

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

/// A tensor whose rows or columns have rates of their own, or whose rows are left alone without gradients.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowTensor {
    pub(crate) shape: Shape,
    pub(crate) group: u32,
    /// Its first block in the window.
    pub(crate) lead: u32,
    /// Where its factors are, behind the table of the window's blocks.
    pub(crate) factors_first: u32,
    /// Where the flags of its rows are.
    pub(crate) flags_first: u32,
}

impl RowTensor {
    /// Returns the numbers of factors and of flags that a tensor of this shape has.
    pub(super) fn words(kernel: Kernel, shape: Shape) -> [u64; 2] {
        let factors = match kernel.rates {
            None => 0,
            Some(RateAxis::Rows) => shape.rows,
            Some(RateAxis::Columns) => shape.columns,
        };
        [factors as u64, if kernel.lazy_rows { shape.rows as u64 } else { 0 }]
    }
}

/// A tensor as a stack of matrices, those of its last two dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stack {
    pub(crate) matrices: u64,
    pub(crate) rows: u64,
    pub(crate) columns: u64,
}

impl Stack {
    /// Takes the last two dimensions for rows and columns. `None` for tensors of fewer than two dimensions.
    pub(crate) fn of(dimensions: &[usize]) -> Option<Self> {
        let [outer @ .., rows, columns] = dimensions else { return None };
        let some = if *rows == 0 || *columns == 0 { 0 } else { 1 };
        let matrices = outer.iter().fold(some, |all: u64, &length| all.saturating_mul(length as u64));
        Some(Stack { matrices, rows: *rows as u64, columns: *columns as u64 })
    }

    /// Sums of parts of its rows and columns, one for each tile that they go through.
    fn partials(self) -> u64 {
        self.matrices * (self.rows * tiles_of(self.columns) + self.columns * tiles_of(self.rows))
    }

    /// Tiles of all its matrices.
    fn tiles(self) -> u64 {
        self.matrices * tiles_of(self.rows) * tiles_of(self.columns)
    }
}

fn tiles_of(length: u64) -> u64 {
    length.div_ceil(MATRIX_TILE.into())
}

/// What the passes that a rule owns do with a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum TensorWork {
    /// They make a matrix orthogonal.
    Matrix(MatrixNumbers),
    /// They limit the root mean square of the direction, and keep second moments of the rows and columns of a stack.
    Limited { limit: f32, stack: Option<Stack> },
}

/// Numbers that a window of limited tensors holds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Room {
    pub(crate) rows: u64,
    pub(crate) columns: u64,
    /// Of rows, one for each matrix.
    pub(crate) means: u64,
    /// Sums of tiles.
    pub(crate) partials: u64,
    pub(super) tiles: u64,
}

impl Room {
    /// Adds what one more tensor needs.
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

    /// Returns the length of the largest of its buffers, in words.
    pub(super) fn largest(self) -> u64 {
        // Of a table of tiles, whose first entry is their number.
        let tiles = size_of::<Tile>() as u64 / 4 * (self.tiles + 1);
        self.partials.max(self.rows + self.columns + self.means).max(tiles)
    }
}

/// A limited tensor as the kernels have it, in a window with this room before it.
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
        // Behind all rows, and behind all columns: `finish` adds their numbers.
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
