//! Pass 2. Twin of `shaders/finish_reduction.wgsl`. It adds up the sums of a scope's blocks in the order of one workgroup: in
//! strides, then in a tree.

use crate::layout::{ScopeSums, Squares, no_totals};
use crate::scaled::power_of_two;

/// Invocations of the workgroup.
const WORKGROUP: usize = 64;

/// Adds up the partials of one scope.
pub(crate) fn finish_reduction(partials: &[ScopeSums]) -> ScopeSums {
    as_a_workgroup(partials, no_totals(), add_totals)
}

/// Adds up the partials of blocks in the order of a workgroup. Lanes without partials add nothing, so a few partials need fewer lanes.
pub(crate) fn as_a_workgroup<T: Copy>(partials: &[T], nothing: T, add: impl Fn(&T, &T) -> T) -> T {
    match partials.len() {
        0 | 1 => in_lanes::<1, T>(partials, nothing, add),
        2..=8 => in_lanes::<8, T>(partials, nothing, add),
        _ => in_lanes::<WORKGROUP, T>(partials, nothing, add),
    }
}

fn in_lanes<const LANES: usize, T: Copy>(partials: &[T], nothing: T, add: impl Fn(&T, &T) -> T) -> T {
    let mut tree = [nothing; LANES];
    for stride in partials.chunks(LANES) {
        for (lane, partial) in tree.iter_mut().zip(stride) {
            *lane = add(lane, partial);
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            tree[lane] = add(&tree[lane], &tree[lane + half]);
        }
        half /= 2;
    }
    tree[0]
}

/// Rounds once, like an f32 with an unbounded exponent. Scaling every gradient by a power of two therefore changes no bit of the
/// sum. The loss by underflow is below 2^-100 of the other term.
pub(crate) fn add_squares(a: Squares, b: Squares) -> Squares {
    if a.exponent == b.exponent {
        return Squares { sum: a.sum + b.sum, exponent: a.exponent };
    }
    if a.sum == 0.0 {
        return b;
    }
    if b.sum == 0.0 {
        return a;
    }
    let exponent = a.exponent.max(b.exponent);
    Squares {
        sum: a.sum * quarter_to_the(exponent - a.exponent) + b.sum * quarter_to_the(exponent - b.exponent),
        exponent,
    }
}

/// Returns 4^-k for k ≥ 0, or 0 if that is too small for f32.
fn quarter_to_the(k: i32) -> f32 {
    if k > 63 { 0.0 } else { power_of_two(-2 * k) }
}

fn add_totals(a: &ScopeSums, b: &ScopeSums) -> ScopeSums {
    ScopeSums {
        square: add_squares(a.square, b.square),
        raw_square: add_squares(a.raw_square, b.raw_square),
        initial_square: add_squares(a.initial_square, b.initial_square),
        absolute: a.absolute + b.absolute,
        slow_dot: a.slow_dot + b.slow_dot,
        fast_dot: a.fast_dot + b.fast_dot,
        direction_square: a.direction_square + b.direction_square,
        nonfinite: a.nonfinite.wrapping_add(b.nonfinite),
        first_nonfinite: a.first_nonfinite.min(b.first_nonfinite),
        loss: 0.0,
    }
}
