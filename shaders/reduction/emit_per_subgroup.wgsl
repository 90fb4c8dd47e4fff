// The invocations of a subgroup add up their totals in registers. One invocation of each subgroup stores the result in workgroup memory.
// After one barrier (none if a workgroup is one subgroup) the first invocation adds up these results and stores one partial per block.
//
// Assumes: a workgroup has at most SUBGROUPS subgroups. The order of subgroupAdd is the same at every run on one adapter.
// Every invocation of the workgroup runs this code, so that subgroup operations and the barrier are in uniform control flow.

import package::layout::Squares;
import package::reduction::partials::{store_partial, COUNTERS, INITIAL_NORM, MOMENTUM, RAW_NORM};
import package::reduction::totals::{Totals, add_totals, no_totals, quarter_to_the};

override SUBGROUPS: u32;

struct Invocation {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    @builtin(num_subgroups) subgroups: u32,
}

var<workgroup> subtotals: array<Totals, SUBGROUPS>;

// An exponent below that of every sum.
const NO_EXPONENT = -1024;

// Adds up sums like add_squares: at the largest exponent of those that are not zero.
fn squares_of_subgroup(a: Squares) -> Squares {
    let largest = subgroupMax(select(NO_EXPONENT, a.exponent, a.sum != 0.0));
    // A sum of zero may have a larger exponent.
    let sum = subgroupAdd(a.sum * quarter_to_the(max(largest - a.exponent, 0)));
    return Squares(sum, select(largest, 0, largest == NO_EXPONENT));
}

fn emit_partial(row: u32, invocation: Invocation, t: Totals) {
    var s = no_totals();
    s.square = squares_of_subgroup(t.square);
    if RAW_NORM {
        s.raw_square = squares_of_subgroup(t.raw_square);
    }
    if INITIAL_NORM {
        s.initial_square = squares_of_subgroup(t.initial_square);
    }
    if MOMENTUM || COUNTERS {
        s.slow_dot = subgroupAdd(t.slow_dot);
        s.direction_square = subgroupAdd(t.direction_square);
    }
    if COUNTERS {
        s.absolute = subgroupAdd(t.absolute);
        s.fast_dot = subgroupAdd(t.fast_dot);
    }
    s.nonfinite = subgroupAdd(t.nonfinite);
    s.first_nonfinite = subgroupMin(t.first_nonfinite);
    if SUBGROUPS > 1u {
        if invocation.subgroup_lane == 0u {
            subtotals[invocation.subgroup] = s;
        }
        workgroupBarrier();
        if invocation.lane == 0u {
            s = subtotals[0];
            for (var i = 1u; i < invocation.subgroups; i++) {
                s = add_totals(s, subtotals[i]);
            }
        }
    }
    if invocation.lane == 0u {
        store_partial(row, s);
    }
}
