// Stores the sums of a sweep, one partial for each block, subgroup or invocation. Sums that the kernel does not measure are not stored.
//
// `whole_step`: one workgroup does the whole step. It adds each partial at once to the sums of the invocation of pass 2 that would read it, in
// the same order.

import package::layout::{Squares, SQUARE, RAW_SQUARE, INITIAL_SQUARE, ABSOLUTE, SLOW_DOT, FAST_DOT, DIRECTION_SQUARE, NONFINITE, FIRST_NONFINITE};
@if(!whole_step) import package::reduction::totals::{Totals, place};
@if(whole_step) import package::reduction::totals::{Totals, add_totals};

// True for each sum that the kernel measures in addition to the norm.
override RAW_NORM: bool;
override INITIAL_NORM: bool;
override MOMENTUM: bool;
override COUNTERS: bool;
// Number of invocations of pass 2.
@if(whole_step) override FINISH_WORKGROUP: u32;

@if(!whole_step) @group(0) @binding(2) var<storage, read_write> partials: array<u32>;
@if(whole_step) var<workgroup> leaves: array<Totals, FINISH_WORKGROUP>;

@if(!whole_step)
fn store_squares(word: u32, at: u32, squares: Squares) {
    partials[place(word, at, arrayLength(&partials))] = bitcast<u32>(squares.sum);
    partials[place(word + 1u, at, arrayLength(&partials))] = bitcast<u32>(squares.exponent);
}

@if(!whole_step)
fn store_partial(at: u32, t: Totals) {
    store_squares(SQUARE, at, t.square);
    if RAW_NORM {
        store_squares(RAW_SQUARE, at, t.raw_square);
    }
    if INITIAL_NORM {
        store_squares(INITIAL_SQUARE, at, t.initial_square);
    }
    if MOMENTUM || COUNTERS {
        partials[place(SLOW_DOT, at, arrayLength(&partials))] = bitcast<u32>(t.slow_dot);
        partials[place(DIRECTION_SQUARE, at, arrayLength(&partials))] = bitcast<u32>(t.direction_square);
    }
    if COUNTERS {
        partials[place(ABSOLUTE, at, arrayLength(&partials))] = bitcast<u32>(t.absolute);
        partials[place(FAST_DOT, at, arrayLength(&partials))] = bitcast<u32>(t.fast_dot);
    }
    partials[place(NONFINITE, at, arrayLength(&partials))] = t.nonfinite;
    partials[place(FIRST_NONFINITE, at, arrayLength(&partials))] = t.first_nonfinite;
}

// `at` counts within a scope. A leaf belongs to one invocation, because the number of leaves is a multiple of the number of partials of a block.
@if(whole_step)
fn store_partial(at: u32, t: Totals) {
    let leaf = at % FINISH_WORKGROUP;
    leaves[leaf] = add_totals(leaves[leaf], t);
}
