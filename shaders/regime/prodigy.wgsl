// Prodigy: src/regime/prodigy.rs. Sums are stored divided by d², so that they stay in range when d grows.

import package::layout::{GroupConstants, GroupState, ProdigyRecord, RawRecord, Scaled, Update, DISTANCE_TERM, RATE_MAX};
import package::learning_rate::formula::set_rate;
import package::learning_rate::gradient::{Gradient, is_finite};
@if(squares) import package::learning_rate::second_moment::bias_corrections;
@if(squares) import package::learning_rate::steps_taken::steps_moved;
import package::scaled::{choose, excess_over, is_zero, ln_ratio, quotient, scaled, smaller, sum, times, to_float};

fn follow_regime(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    let k = c.regime_constants;
    let old = (*s).regime.estimate;
    let ahead = (*s).regime.ahead;
    let behind = (*s).regime.behind;
    let numerator = excess_over(ahead, behind);
    let total = scaled(g.sums.absolute, g.scale_of_sums);
    let known = !g.first && is_finite(g.sums.absolute) && !is_zero(total);
    var found = 0.0;
    if known {
        found = min(to_float(times(quotient(numerator, total), k.coefficient)), RATE_MAX);
    }
    let largest = max((*s).regime.largest, found);
    let from_here = select(old, max(old, found), old == k.initial);
    let estimate = to_float(smaller(scaled(largest, 0), times(scaled(from_here, 0), k.growth)));
    let ratio = old / estimate;
    let fall = k.beta3 * (ratio * ratio);
    (*r).regime.numerator = to_float(numerator) - to_float(excess_over(behind, ahead));
    (*r).regime.denominator = select(0.0, to_float(total), known);
    (*r).regime.estimate = estimate;
    (*s).regime.largest = largest;
    (*s).regime.estimate = estimate;
    (*s).regime.ratio *= ratio;
    (*s).regime.keep *= fall;
    (*s).regime.ahead = times(ahead, fall);
    (*s).regime.behind = times(behind, fall);
    if !g.first {
        (*r).terms[DISTANCE_TERM] = ln_ratio(scaled(estimate, 0), scaled(old, 0));
    }
    set_rate(times(scaled(estimate, 0), k.rate), RATE_MAX, RATE_MAX, g, s, r);
}

// Adds the step's gradient to r. The step's η is final, with schedule and controls.
fn settle_estimate(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>) {
    var correction = 1.0;
    @if(squares) if c.regime_constants.corrects_bias != 0u {
        let corrections = bias_corrections(c, steps_moved(*s));
        correction = corrections.x / corrections.y;
    }
    let rate = scaled((*s).learning_rate, 0);
    let share = to_float(times(quotient(rate, scaled((*s).regime.estimate, 0)), correction));
    (*s).regime.share = select(share, 1.0, c.regime_constants.plain_sum != 0u);
    let way = g.sums.slow_dot;
    if is_finite(way) {
        let term = times(scaled(way, g.scale_of_sums), share);
        (*s).regime.ahead = choose((*s).regime.ahead, sum((*s).regime.ahead, term), way > 0.0);
        (*s).regime.behind = choose(sum((*s).regime.behind, term), (*s).regime.behind, way > 0.0);
    }
}

// Adjusts the weights of momentum, second moment and s, which are stored divided by d.
fn amend_update(c: GroupConstants, s: ptr<function, GroupState>, u: ptr<function, Update>) {
    let ratio = (*s).regime.ratio;
    (*u).momentum_keep *= ratio;
    (*u).square_keep *= ratio * ratio;
    if ratio < 1.0 && c.rule.epsilon <= 0.0 {
        // Lion takes the sign of a mixture of gradient and momentum. A common factor does not change it.
        let share = (*u).momentum * ratio;
        (*u).momentum = share / (share + (1.0 - (*u).momentum));
    }
    if c.regime_constants.corrects_bias == 0u && c.rule.epsilon > 0.0 {
        (*u).first_correction = 1.0;
        (*u).second_correction = 1.0;
    }
    (*u).memory_keep = (*s).regime.keep;
    (*u).memory_share = (*s).regime.share;
    (*s).regime.ratio = 1.0;
    (*s).regime.keep = 1.0;
}
