// Pass 2: adds up the partials of each scope.
//
// Reads:  scopes, partials; states, to know whether the initial norm is still wanted; the loss, where a regime needs it.
// Writes: sums, one entry per scope.
// Grid:   one workgroup of WORKGROUP invocations (a power of two) per scope; invocation i takes partials i, i + WORKGROUP, …,
//         then a tree. The order is fixed, so that the same partials give the same bits.
// Assumes: a scope has fewer than 65,535 * WORKGROUP partials.

import package::geometry::WORKGROUP;
import package::layout::{
    GroupState, ScopeSums, ScopeTable, Squares,
    SQUARE, RAW_SQUARE, INITIAL_SQUARE, ABSOLUTE, SLOW_DOT, FAST_DOT, DIRECTION_SQUARE, NONFINITE, FIRST_NONFINITE,
};
import package::reduction::loss::with_loss;
import package::reduction::totals::{add_squares, no_totals, place};
import package::reduction::tree::{add_up_in_tree, tree};

override RAW_NORM: bool;
override MOMENTUM: bool;
override COUNTERS: bool;

@group(0) @binding(0) var<storage, read> scopes: array<ScopeTable>;
@group(0) @binding(1) var<storage, read> states: array<GroupState>;
@group(0) @binding(2) var<storage, read_write> partials: array<u32>;
@group(0) @binding(3) var<storage, read_write> sums: array<ScopeSums>;

fn word(index: u32, at: u32) -> f32 {
    return bitcast<f32>(partials[place(index, at, arrayLength(&partials))]);
}

fn squares(index: u32, at: u32) -> Squares {
    return Squares(word(index, at), bitcast<i32>(partials[place(index + 1u, at, arrayLength(&partials))]));
}

@compute @workgroup_size(WORKGROUP)
fn finish_reduction(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let scope = scopes[workgroup.x];
    let before_first_step = states[scope.group].started == 0u;
    var t = no_totals();
    for (var i = lane; i < scope.partials; i += WORKGROUP) {
        let at = scope.first_partial + i;
        t.square = add_squares(t.square, squares(SQUARE, at));
        if RAW_NORM {
            t.raw_square = add_squares(t.raw_square, squares(RAW_SQUARE, at));
        }
        if before_first_step {
            t.initial_square = add_squares(t.initial_square, squares(INITIAL_SQUARE, at));
        }
        if MOMENTUM || COUNTERS {
            t.slow_dot += word(SLOW_DOT, at);
            t.direction_square += word(DIRECTION_SQUARE, at);
        }
        if COUNTERS {
            t.absolute += word(ABSOLUTE, at);
            t.fast_dot += word(FAST_DOT, at);
        }
        t.nonfinite += partials[place(NONFINITE, at, arrayLength(&partials))];
        t.first_nonfinite = min(t.first_nonfinite, partials[place(FIRST_NONFINITE, at, arrayLength(&partials))]);
    }
    add_up_in_tree(lane, t);
    if lane == 0u {
        sums[workgroup.x] = with_loss(tree[0], workgroup.x);
    }
}
