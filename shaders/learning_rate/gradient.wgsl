// Declarations that the files of the learning-rate pass share: the gradient of a step, and how a rate is held.

import package::layout::{GroupConstants, GroupState, ScopeSums, Squares, Scaled, INFINITY_BITS, LEAST_RISE, MAGNITUDE_BITS, SIGN_RULE};
import package::scaled::{choose, ln_fixed, scaled, to_float};

// A finite gradient that is not zero, and the parts of the state that it has replaced.
struct Gradient {
    sums: ScopeSums,
    square: Scaled,
    norm: Scaled,
    last_norm: Scaled,      // 0 at the first gradient
    smoothed: Scaled,       // n̂
    last_smoothed: Scaled,
    scale_of_sums: i32,     // the inner products among the sums are of gradients scaled by 2^-this
    first: bool,
    scheduled_rise: f32,    // by how much schedule and controls raise ln η at this step; 0 where they do not
}

// The exchange of streams of parameters that pass 4 does after the step, or instead of it (regime/auto_sgd.wgsl).
struct Turn {
    factor: f32,  // the stream's share of η
    begins: u32,  // 1 where the step is the first of its stream
    skip: u32,    // what Update.skip is where the step is skipped
    put: u32,
    take: u32,
}

fn from_squares(squares: Squares) -> Scaled {
    return scaled(squares.sum, 2 * squares.exponent);
}

// Tests a number that was loaded. A compiler may assume that computed numbers are finite (reduction/sweep_again.wgsl).
fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & MAGNITUDE_BITS) < INFINITY_BITS;
}

// Returns the change of ln of the schedule's and the caller's factors if it is a rise beyond rounding, else 0.
fn rise_of(change: f32) -> f32 {
    return select(change, 0.0, change < LEAST_RISE);
}

// Sets the rate, relative to which later changes are computed.
fn hold_rate(rate: Scaled, s: ptr<function, GroupState>) {
    let ln_rate = ln_fixed(rate);
    (*s).first_rate = rate;
    (*s).ln_first_rate = ln_rate;
    (*s).regime_rate = to_float(rate);
}

fn differ(a: Scaled, b: Scaled) -> bool {
    return (a.mantissa != b.mantissa) | (a.exponent != b.exponent);
}

// Returns the length of the step's direction, as far as it is known before momentum: that of the gradient, or of its signs.
fn direction_length_of(c: GroupConstants, norm: Scaled) -> Scaled {
    return choose(norm, scaled(c.direction_length, 0), (c.flags & SIGN_RULE) != 0u);
}
