// Seesaw (src/regime/seesaw.rs), NormRatio, Hypergradient and Fixed. The last three are Seesaw with some constants of 0.
//
// The state holds η_0, the first smoothed norm n̂_1 and the agreement A:
//     ln η_t = ln η_0 + p ln(n̂_1 / n̂_t) + A_t
// NormRatio has no A, Hypergradient has p = 0, and Fixed has neither.

import package::layout::{
    Fixed, GroupConstants, GroupState, RawRecord, Scaled, ALIGNMENT_TERM, BRAKE, BRAKE_TERM, CLAMPED_CHANGE, CLAMPED_RATE,
    CLAMP_TERM, HELD_TERM, ITERATES, NORM_TERM, RATE_MIN, RATE_MAX, MAX_CHANGE, FAST_KEEP, LN_RATE_LIMIT, AGREEMENT_LIMIT,
};
import package::learning_rate::first_rate::set_first_rate;
import package::learning_rate::gradient::{Gradient, is_finite};
import package::scaled::{
    add_fixed, add_float, exp_fixed, fixed_to_float, ln_ratio, ln_ratio_fixed, quotient, scaled, subtract_fixed, times_fixed, to_float,
};

fn follow_regime(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    if g.first {
        (*s).regime.anchor_norm = g.smoothed;
        set_first_rate(c, g, s, r);
        return;
    }
    let anchor = (*s).regime.anchor_norm;
    let from_last_norm = from_norm_ratio(c, ln_ratio_fixed(anchor, g.last_smoothed));
    let from_norm = from_norm_ratio(c, ln_ratio_fixed(anchor, g.smoothed));
    let wanted_before = add_fixed((*s).regime.agreement, from_last_norm);
    (*r).terms[NORM_TERM] = fixed_to_float(subtract_fixed(from_norm, from_last_norm));
    var lost = 0.0;
    if c.regime_constants.gain > 0.0 {
        lost = follow_alignment(c, g, anchor, s, r);
    }
    let wanted = add_fixed((*s).regime.agreement, from_norm);
    let before = (*s).change;
    var total = wanted;
    // Only a rise is clamped. A fall protects the run, and takes effect at once.
    if fixed_to_float(subtract_fixed(total, before)) > MAX_CHANGE {
        (*r).flags |= CLAMPED_CHANGE;
        total = add_float(before, MAX_CHANGE);
    }
    let ln_first = (*s).ln_first_rate;
    let ln_rate = add_fixed(ln_first, total);
    let limit = add_float(Fixed(0, 0u), select(LN_RATE_LIMIT, -LN_RATE_LIMIT, ln_rate.whole < 0));
    let excess = fixed_to_float(subtract_fixed(ln_rate, limit));
    // A difference within the rounding of f32 does not count as beyond the limit.
    if (ln_rate.whole < 0 && excess < -1e-5) || (ln_rate.whole >= 0 && excess > 1e-5) {
        (*r).flags |= CLAMPED_RATE;
        total = subtract_fixed(limit, ln_first);
    }
    (*s).change = total;
    let growth = exp_fixed(total);
    let rate = to_float(scaled(
        (*s).first_rate.mantissa * growth.mantissa,
        (*s).first_rate.exponent + growth.exponent,
    ));
    (*s).regime_rate = clamp(rate, RATE_MIN, RATE_MAX);

    // η is anchored to its first value, so that a later step gives back what a clamp takes away now.
    let taken_before = subtract_fixed(before, wanted_before);
    (*r).terms[CLAMP_TERM] = fixed_to_float(subtract_fixed(subtract_fixed(total, wanted), taken_before)) - lost;
}

// Returns p ln(n̂_1 / n̂), the change of ln η by the smoothed norm since the first step. p differs while the norm has
// risen.
fn from_norm_ratio(c: GroupConstants, fallen: Fixed) -> Fixed {
    return times_fixed(fallen, select(c.regime_constants.exponent, c.regime_constants.exponent_above, fallen.whole < 0));
}

// Adds the alignment to A, within its floor. Steps that agree raise A, and steps that contradict each other lower it. A
// falls below its least value so far only while n̂ is above twice its first value, and in full only from four times on.
// Returns what the bounds of A took away.
fn follow_alignment(
    c: GroupConstants,
    g: Gradient,
    anchor: Scaled,
    s: ptr<function, GroupState>,
    r: ptr<function, RawRecord>,
) -> f32 {
    let norm_in_sums = to_float(quotient(g.norm, Scaled(1.0, g.scale_of_sums)));
    // Before the third gradient y equals z up to rounding, so that their difference has no direction yet.
    let compared = (c.flags & ITERATES) == 0u || (*s).mean_steps > 2u;
    // The test uses the sum as it was loaded. reduction/sweep_again.wgsl explains why.
    if compared && is_finite(g.sums.direction_square) {
        (*r).regime.slow_alignment = cosine(g.sums.slow_dot, norm_in_sums * sqrt(g.sums.direction_square));
    }
    var brake = 0.0;
    if (c.flags & BRAKE) != 0u {
        (*r).regime.fast_alignment = cosine(g.sums.fast_dot, g.sums.absolute);
        // The brake uses an average. One step's value is noisy, and noise in a brake only ever lowers the rate.
        (*s).regime.mean_fast = FAST_KEEP * (*s).regime.mean_fast + (1.0 - FAST_KEEP) * (*r).regime.fast_alignment;
        (*s).regime.mean_fast_weight = FAST_KEEP * (*s).regime.mean_fast_weight + (1.0 - FAST_KEEP);
        brake = min(0.0, (*s).regime.mean_fast / (*s).regime.mean_fast_weight + c.regime_constants.brake_slack);
    }
    let weight = gain(c, (*s).mean_steps) * to_float(quotient(g.norm, g.smoothed));
    let agreement = weight * (*r).regime.slow_alignment;
    (*r).terms[BRAKE_TERM] = weight * brake;
    // A rising schedule takes back the agreement that was gained while its factor was lower.
    let ahead = select(0.0, max((*s).regime.ahead + (agreement + weight * brake), 0.0), g.scheduled_rise > 0.0);
    let taken_back = min(ahead, g.scheduled_rise);
    (*s).regime.ahead = ahead - taken_back;
    (*r).terms[ALIGNMENT_TERM] = agreement - taken_back;

    let least = (*s).regime.least_agreement;
    var next = add_float((*s).regime.agreement, (*r).terms[ALIGNMENT_TERM] + (*r).terms[BRAKE_TERM]);
    let below = fixed_to_float(subtract_fixed(least, next));
    if below > 0.0 {
        let doublings = ln_ratio(g.smoothed, anchor) * 1.44269504;
        let held = 1.0 - clamp(doublings - 1.0, 0.0, 1.0);
        (*r).terms[HELD_TERM] = held * below;
        if held == 1.0 {
            // If the whole fall is held, A is exactly its floor, so that rounding cannot wear the floor down.
            next = least;
        } else {
            next = add_float(next, (*r).terms[HELD_TERM]);
        }
        (*s).regime.least_agreement = next;
    }
    // Beyond this bound the rate is at its limit whatever the norm does. Without the bound a rate that was clamped for
    // long would recover slowly.
    let bound = clamp(fixed_to_float(next), -AGREEMENT_LIMIT, AGREEMENT_LIMIT);
    let lost = fixed_to_float(next) - bound;
    if lost != 0.0 {
        (*r).flags |= CLAMPED_RATE;
        next = add_float(Fixed(0, 0u), bound);
    }
    (*s).regime.agreement = next;
    return lost;
}

// Computes κ_t = max(κ, h/(h + k - 2)) at the k-th gradient. It is 1 at the second gradient, the first that can be
// compared with another. As in stochastic approximation, the first steps move the rate most.
fn gain(c: GroupConstants, k: u32) -> f32 {
    let steps = c.regime_constants.early_steps + (f32(k) - 2.0);
    return max(c.regime_constants.gain, c.regime_constants.early_steps / max(1.0, steps));
}

// Returns numerator / denominator as a cosine, or 0 if the denominator is 0 or a sum overflows f32.
fn cosine(numerator: f32, denominator: f32) -> f32 {
    if !is_finite(numerator) || !is_finite(denominator) || denominator <= 0.0 {
        return 0.0;
    }
    return clamp(numerator / denominator, -1.0, 1.0);
}
