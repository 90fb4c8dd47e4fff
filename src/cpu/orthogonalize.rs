//! Muon's passes over matrices. Twins of `shaders/orthogonalize/`, with the matrix products of a library.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use crate::layout::Matrix;

/// Number of rows of a product that are computed at once. It does not depend on the number of threads.
const ROWS: usize = 128;

/// Memory for one tensor's matrix.
#[derive(Debug, Default)]
pub(crate) struct MatrixMemory {
    /// Output of the first pass, and then the direction.
    pub(crate) directions: Vec<f32>,
    /// Every second iterate of the iteration.
    pub(crate) others: Vec<f32>,
    /// Product of the matrix and its transpose, and a polynomial of that product.
    pub(crate) grams: [Vec<f32>; 2],
}

/// Computes the direction, in place, from the output of the first pass.
pub(crate) fn orthogonalize(m: &Matrix, iterations: u32, memory: &mut MatrixMemory, parallel: bool) {
    let MatrixMemory { directions, others, grams: [gram, polynomial] } = memory;
    let norm = directions.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let factor = 1.0 / norm.max(f64::from(m.epsilon));
    directions.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
    let short = [m.rows as usize; 2];
    let mut gram = ArrayViewMut2::from_shape(short, gram).expect("a square of its own length");
    let mut polynomial = ArrayViewMut2::from_shape(short, polynomial).expect("a square of its own length");
    for i in 0..iterations {
        let scale = if i + 1 == iterations { m.scale } else { 1.0 };
        let x = matrix(m, directions);
        multiply(1.0, &x, &x.t(), 0.0, &mut gram, parallel);
        polynomial.assign(&gram);
        multiply(m.c, &gram.view(), &gram.view(), m.b, &mut polynomial, parallel);
        let mut next = matrix_mut(m, others);
        next.assign(&x);
        multiply(1.0, &polynomial.view(), &x, m.a, &mut next, parallel);
        if scale != 1.0 {
            next.mapv_inplace(|x| scale * x);
        }
        std::mem::swap(directions, others);
    }
}

fn matrix<'a>(m: &Matrix, elements: &'a [f32]) -> ArrayView2<'a, f32> {
    let [rows, columns] = [m.rows as usize, m.columns as usize];
    let shape = if m.transposed != 0 { [columns, rows] } else { [rows, columns] };
    let lying = ArrayView2::from_shape(shape, elements).expect("as many elements as the shape has");
    if m.transposed != 0 { lying.reversed_axes() } else { lying }
}

fn matrix_mut<'a>(m: &Matrix, elements: &'a mut [f32]) -> ArrayViewMut2<'a, f32> {
    let [rows, columns] = [m.rows as usize, m.columns as usize];
    let shape = if m.transposed != 0 { [columns, rows] } else { [rows, columns] };
    let lying = ArrayViewMut2::from_shape(shape, elements).expect("as many elements as the shape has");
    if m.transposed != 0 { lying.reversed_axes() } else { lying }
}

/// Computes `c ← factor left right + kept c` in chunks of rows, so that the bits do not depend on the number of
/// threads.
fn multiply(
    factor: f32,
    left: &ArrayView2<f32>,
    right: &ArrayView2<f32>,
    kept: f32,
    c: &mut ArrayViewMut2<f32>,
    parallel: bool,
) {
    let rows = left.axis_chunks_iter(Axis(0), ROWS);
    let of_c = c.axis_chunks_iter_mut(Axis(0), ROWS);
    let stretch =
        |(left, mut c): (ArrayView2<f32>, ArrayViewMut2<f32>)| general_mat_mul(factor, &left, right, kept, &mut c);
    if parallel {
        rows.into_par_iter().zip(of_c.into_par_iter()).for_each(stretch);
    } else {
        rows.zip(of_c).for_each(stretch);
    }
}
