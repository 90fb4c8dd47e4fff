//! Pass 2: twin of `shaders/finish_reduction.wgsl`. The sums of a scope's blocks are added up as one workgroup does it: in
//! strides, then in a tree.

use crate::cpu::reduce_gradient::no_totals;
use crate::layout::ScopeSums;

/// Invocations of the workgroup.
const WORKGROUP: usize = 64;

/// Adds up the partials of one scope.
pub(crate) fn finish_reduction(partials: &[ScopeSums]) -> ScopeSums {
    let mut tree = [no_totals(); WORKGROUP];
    for stride in partials.chunks(WORKGROUP) {
        for (lane, partial) in tree.iter_mut().zip(stride) {
            *lane = add_totals(lane, partial);
        }
    }
    let mut half = WORKGROUP / 2;
    while half > 0 {
        for lane in 0..half {
            tree[lane] = add_totals(&tree[lane], &tree[lane + half]);
        }
        half /= 2;
    }
    tree[0]
}

fn add_ranges(a: [f32; 3], b: [f32; 3]) -> [f32; 3] {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

fn add_totals(a: &ScopeSums, b: &ScopeSums) -> ScopeSums {
    ScopeSums {
        square: add_ranges(a.square, b.square),
        raw_square: add_ranges(a.raw_square, b.raw_square),
        initial_square: add_ranges(a.initial_square, b.initial_square),
        absolute: a.absolute + b.absolute,
        slow_dot: a.slow_dot + b.slow_dot,
        fast_dot: a.fast_dot + b.fast_dot,
        direction_square: a.direction_square + b.direction_square,
        nonfinite: a.nonfinite.wrapping_add(b.nonfinite),
        first_nonfinite: a.first_nonfinite.min(b.first_nonfinite),
    }
}
