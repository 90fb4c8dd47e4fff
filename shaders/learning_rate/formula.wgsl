// Code that regimes share whose formula gives the rate itself, and not its change: limits and the terms of the record. CPU twin:
// src/regime/formula.rs.

import package::layout::{
    GroupConstants, GroupState, RawRecord, Scaled, CLAMPED_CHANGE, CLAMPED_RATE, CLAMP_TERM, CURVATURE_TERM, DISTANCE_TERM,
    GATE_TERM, HISTORY_TERM, LOSS_TERM, NORM_TERM, SIGN_RULE, RATE_MIN,
};
import package::learning_rate::gradient::{Gradient, differ, hold_rate};
import package::scaled::{choose, is_zero, larger, ln_ratio, product, quotient, scaled, smaller, times, to_float};

// The largest factor by which one step changes η.

// Sets the rate that a formula requests, within its limits. A request of 0 gives the lowest rate that they allow. Returns η_t / η_{t-1}, and 0
// at the first gradient.
fn set_rate(wanted: Scaled, max_change: f32, max_rate: f32, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) -> f32 {
    let old = scaled((*s).regime_rate, 0);
    var rate = wanted;
    if !g.first {
        rate = larger(smaller(rate, times(old, max_change)), quotient(old, scaled(max_change, 0)));
        if differ(rate, wanted) {
            (*r).flags |= CLAMPED_CHANGE;
        }
    }
    let within = larger(smaller(rate, scaled(max_rate, 0)), scaled(RATE_MIN, 0));
    if differ(rate, within) {
        (*r).flags |= CLAMPED_RATE;
    }
    hold_rate(within, s);
    if g.first {
        return 0.0;
    }
    let explained = (*r).terms[NORM_TERM] + (*r).terms[CURVATURE_TERM] + (*r).terms[GATE_TERM] + (*r).terms[DISTANCE_TERM]
        + (*r).terms[HISTORY_TERM] + (*r).terms[LOSS_TERM];
    // If the formula uses this step alone, this includes the effect of earlier clamps. A remainder within the rounding of the terms is no clamp.
    let clamped = ln_ratio(within, old) - explained;
    (*r).terms[CLAMP_TERM] = select(clamped, 0.0, abs(clamped) < 4e-6 * max(1.0, abs(explained)));
    return to_float(quotient(within, old));
}

// Returns the squared length of the step's direction, as far as these regimes know it: that of the gradient, or of its signs.
fn direction_square_of(c: GroupConstants, square: Scaled) -> Scaled {
    let signs = scaled(c.direction_length, 0);
    return choose(square, product(signs, signs), (c.flags & SIGN_RULE) != 0u);
}

// Returns ln(a / b), or 0 if there is nothing to compare.
fn ln_ratio_or_0(a: Scaled, b: Scaled) -> f32 {
    return select(ln_ratio(a, b), 0.0, is_zero(a) | is_zero(b));
}

// Returns the rate at which a step along the signs is as long as a step along the gradient at the given rate.
fn rate_along_signs(c: GroupConstants, rate: Scaled, norm: Scaled) -> Scaled {
    return quotient(product(rate, norm), scaled(c.direction_length, 0));
}
