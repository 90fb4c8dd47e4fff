//! Inner products over the elements of tensors, in rows of a fixed length. Twin of `shaders/controllers/products.wgsl` and `rows.wgsl`: the
//! same operations in the same order.

use crate::cpu::values::Slice;
use crate::layout::shared_structs;

pub(crate) mod numbers {
    crate::layout::shared_constants! { ""
        /// Number of elements that one workgroup adds up.
        pub const PRODUCT_ROW: u32 = 4096;
    }
}
pub(crate) use numbers::PRODUCT_ROW;

shared_structs! {
    /// A tensor, or a part of one that a binding holds, in `controllers/products.wgsl`.
    pub struct ProductPart {
        /// Word of the first parameter in its binding.
        pub parameters_word: u32,
        /// Word of the first gradient in its binding.
        pub gradients_word: u32,
        /// Number of elements.
        pub elements: u32,
        /// The first row of sums.
        pub row: u32,
    }
}

/// Number of invocations in a workgroup of the kernels that add up.
pub(crate) const LANES: usize = 64;

type Pair = [f32; 2];

fn add(a: Pair, b: Pair) -> Pair {
    [a[0] + b[0], a[1] + b[1]]
}

/// Adds up the values of the invocations of a workgroup, in a tree.
fn add_up_lanes(mut lanes: [Pair; LANES]) -> Pair {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = add(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

fn add_up(terms: impl Iterator<Item = Pair>) -> Pair {
    let mut lanes = [Pair::default(); LANES];
    for (i, term) in terms.enumerate() {
        lanes[i % LANES] = add(lanes[i % LANES], term);
    }
    add_up_lanes(lanes)
}

/// Adds up rows of sums.
pub(crate) fn add_up_rows(rows: &[Pair]) -> Pair {
    add_up(rows.iter().copied())
}

/// Appends the sums of each row of a tensor. The terms are `term` of the elements of two or three slices of equal length. An empty slice stands for
/// zeros.
pub(crate) fn push_rows(rows: &mut Vec<Pair>, slices: [Slice; 3], term: impl Fn([f32; 3]) -> Pair) {
    let row = PRODUCT_ROW as usize;
    let elements = slices.iter().map(Slice::len).max().unwrap_or(0);
    let mut buffers = [const { [0.0f32; PRODUCT_ROW as usize] }; 3];
    for first in (0..elements).step_by(row) {
        let count = row.min(elements - first);
        let mut decoded = [&[][..]; 3];
        for ((slice, buffer), decoded) in slices.iter().zip(&mut buffers).zip(&mut decoded) {
            *decoded = match slice.len() {
                0 => &buffer[..count],
                _ => slice.range(first..first + count).decode(buffer),
            };
        }
        rows.push(add_up((0..count).map(|i| term(decoded.map(|values| values[i])))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_add_up_to_the_product_in_f64() {
        for elements in [0, 1, 63, 64, 65, 4095, 4096, 4097, 20_001] {
            let value = |i: usize, k: usize| ((i * k % 997) as f32 - 498.0) / 97.0;
            let a: Vec<f32> = (0..elements).map(|i| value(i, 31)).collect();
            let b: Vec<f32> = (0..elements).map(|i| value(i, 57)).collect();
            let mut rows = Vec::new();
            let empty: &[f32] = &[];
            push_rows(&mut rows, [(&a[..]).into(), (&b[..]).into(), empty.into()], |[a, b, c]| [a * b, a * a + c]);
            assert_eq!(rows.len(), elements.div_ceil(4096));
            let [product, square] = add_up_rows(&rows);
            let exact = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
            let allowed = 1e-6 * exact(&a, &a);
            assert!((f64::from(product) - exact(&a, &b)).abs() <= allowed, "{elements}: {product}");
            assert!((f64::from(square) - exact(&a, &a)).abs() <= allowed, "{elements}: {square}");
        }
    }
}
