// Mechanic: src/regime/mechanic.rs.

import package::layout::{
    GroupConstants, GroupState, MechanicConstants, RawRecord, Scaled, Update, ALIGNMENT_TERM, CLAMPED_RATE, COUPLES_DECAY, MECHANIC_BETAS,
    MOST_PRODUCT, MOST_REWARD, MOST_SCALE, RATE_MAX, RATE_MIN,
};
import package::learning_rate::gradient::{Gradient, differ, hold_rate, is_finite};
import package::scaled::{choose, excess_over, larger, ln_ratio, product, quotient, root, scaled, smaller, sum, times, to_float};

fn follow_regime(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    let k = c.regime_constants;
    let old = (*s).regime.scale;
    (*s).regime.keep = 1.0;
    var h = 0.0;
    let known = g.first || (is_finite(g.sums.slow_dot) && is_finite(g.sums.fast_dot) && is_finite(g.sums.direction_square));
    if known {
        if !g.first {
            h = product_of(c, g, old);
        }
        var total = 0.0;
        var fall = 1.0;
        for (var i = 0u; i < MECHANIC_BETAS; i++) {
            fall *= 0.1;
            let m = (*s).regime.largest[i];
            let root = (*s).regime.root[i];
            let reward = (*s).regime.reward[i];
            let share = scale_of(k, m, root, reward);
            let next_reward = clamp((reward - fall * reward) + share * clamp(h, -m, m), -MOST_REWARD, MOST_REWARD);
            let next_m = max(m - fall * m, abs(h) + k.epsilon);
            let next_root = root_of_squares(root - fall * root, abs(h));
            (*s).regime.largest[i] = next_m;
            (*s).regime.root[i] = next_root;
            (*s).regime.reward[i] = next_reward;
            total += scale_of(k, next_m, next_root, next_reward);
        }
        (*s).regime.scale = total;
        (*s).regime.keep = total / (old + k.epsilon);
    }
    (*r).regime.product = h;
    (*r).regime.scale = (*s).regime.scale;
    let wanted = times(scaled((*s).regime.scale, 0), k.rate);
    let rate = larger(smaller(wanted, scaled(RATE_MAX, 0)), scaled(RATE_MIN, 0));
    if differ(rate, wanted) {
        (*r).flags |= CLAMPED_RATE;
    }
    if !g.first {
        (*r).terms[ALIGNMENT_TERM] = ln_ratio(rate, scaled((*s).regime_rate, 0));
    }
    hold_rate(rate, s);
}

// Computes s for one β.
fn scale_of(k: MechanicConstants, m: f32, root: f32, reward: f32) -> f32 {
    return min((k.initial / f32(MECHANIC_BETAS) * m + max(reward, 0.0)) / (root + k.epsilon), MOST_SCALE);
}

// Computes √(a² + b²) for non-negative numbers.
fn root_of_squares(a: f32, b: f32) -> f32 {
    let more = max(a, b);
    if more == 0.0 {
        return 0.0;
    }
    let ratio = min(a, b) / more;
    return more * sqrt(1.0 + ratio * ratio);
}

// Computes h.
fn product_of(c: GroupConstants, g: Gradient, scale: f32) -> f32 {
    let k = c.regime_constants;
    let zero = Scaled(0.0, 0);
    let of_gradient = scaled(g.sums.slow_dot, g.scale_of_sums);
    let length = sum(root(scaled(g.sums.direction_square, 0)), scaled(k.epsilon, 0));
    let of_decay = quotient(times(times(product(scaled(g.sums.fast_dot, 0), g.norm), k.decay), scale), length);
    let gradient_agrees = g.sums.slow_dot > 0.0;
    let decay_agrees = g.sums.fast_dot > 0.0;
    let above = sum(choose(zero, of_gradient, gradient_agrees), choose(zero, of_decay, decay_agrees));
    let below = sum(choose(of_gradient, zero, gradient_agrees), choose(of_decay, zero, decay_agrees));
    let divisor = scaled(scale + k.epsilon, 0);
    let more = min(to_float(quotient(excess_over(above, below), divisor)), MOST_PRODUCT);
    let less = min(to_float(quotient(excess_over(below, above), divisor)), MOST_PRODUCT);
    return more - less;
}

// Scales the displacement to the new scale.
fn amend_update(c: GroupConstants, s: ptr<function, GroupState>, u: ptr<function, Update>) {
    (*u).memory_keep = (*s).regime.keep;
    (*s).regime.keep = 1.0;
    if (c.flags & COUPLES_DECAY) == 0u {
        (*u).memory_share = (*u).learning_rate * c.controls.weight_decay;
    }
}
