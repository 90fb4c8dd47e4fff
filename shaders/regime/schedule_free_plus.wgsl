// ScheduleFree+: src/regime/schedule_free_plus.rs.

import package::layout::{
    GroupConstants, GroupState, RawRecord, Scaled, LOSS_TERM, MAX_FACTOR, NORM_TERM, RATE_MAX, ROOT_OF_HALF_PI, SIGN_RULE, SMALLEST_SUM,
};
import package::learning_rate::formula::{ln_ratio_or_0, set_rate};
import package::learning_rate::gradient::{Gradient, is_finite};
import package::scaled::{choose, excess_over, is_zero, product, quotient, scaled, sum, times};

fn follow_regime(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    let gap = gap_of(c, g);
    let divisor = divisor_of(c, g);
    (*r).terms[LOSS_TERM] = ln_ratio_or_0(gap, (*s).regime.last_gap);
    (*r).terms[NORM_TERM] = -ln_ratio_or_0(divisor, (*s).regime.last_divisor);
    (*s).regime.last_gap = gap;
    (*s).regime.last_divisor = divisor;
    let wanted = choose(quotient(times(gap, c.regime_constants.factor), divisor), gap, is_zero(gap));
    set_rate(wanted, MAX_FACTOR, RATE_MAX, g, s, r);
}

// Computes a, at least 0.
fn gap_of(c: GroupConstants, g: Gradient) -> Scaled {
    let zero = Scaled(0.0, 0);
    let excess = g.sums.loss - c.regime_constants.optimum;
    let along = select(0.0, g.sums.slow_dot, is_finite(g.sums.slow_dot));
    // `scaled` returns the magnitudes of these numbers of either sign.
    let of_loss = scaled(excess, 0);
    let of_way = scaled(along, g.scale_of_sums);
    let more = sum(choose(zero, of_loss, excess > 0.0), choose(zero, of_way, along < 0.0));
    let fewer = sum(choose(zero, of_loss, excess < 0.0), choose(zero, of_way, along > 0.0));
    return excess_over(more, fewer);
}

fn divisor_of(c: GroupConstants, g: Gradient) -> Scaled {
    let of_magnitudes = times(scaled(g.sums.absolute, g.scale_of_sums), ROOT_OF_HALF_PI);
    let in_range = is_finite(g.sums.absolute) & (g.sums.absolute >= SMALLEST_SUM);
    let of_signs = choose(product(scaled(c.direction_length, 0), g.norm), of_magnitudes, in_range);
    return choose(g.square, of_signs, (c.flags & SIGN_RULE) != 0u);
}

// Returns the largest η so far, which weights steps in the average.
fn averaged_rate(s: ptr<function, GroupState>) -> f32 {
    (*s).regime.largest_rate = max((*s).regime.largest_rate, (*s).learning_rate);
    return (*s).regime.largest_rate;
}
