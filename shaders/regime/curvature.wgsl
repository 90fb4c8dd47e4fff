// Curvature: src/regime/curvature.rs. Looks measure the curvature (look.wgsl).

import package::layout::{
    GroupConstants, GroupState, RawRecord, Scaled, CLAMPED_CHANGE, CURVATURE_TERM, LOOK_GEOMETRIC, LOOK_MEASURED, LOOK_MISSING, LOOK_NEWTON,
    LOOK_NONE, MAX_FACTOR, NORM_TERM, RATE_MAX, SIGN_RULE,
};
import package::learning_rate::first_rate::set_first_rate;
import package::learning_rate::formula::{ln_ratio_or_0, rate_along_signs, set_rate};
import package::learning_rate::gradient::{Gradient, differ};
import package::scaled::{choose, excess_over, is_zero, larger, less, ln_ratio, product, quotient, root, scaled, smaller, times};

fn follow_regime(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    let along_signs = (c.flags & SIGN_RULE) != 0u && c.regime_constants.form != LOOK_NEWTON;
    let share = choose(scaled(c.regime_constants.share, 0), rate_along_signs(c, Scaled(1.0, 0), g.norm), along_signs);
    if g.first {
        set_first_rate(c, g, s, r);
        (*s).regime.rate = quotient(scaled((*s).regime_rate, 0), share);
        (*s).regime.due = 1u;
        return;
    }
    (*r).regime.look = select((*s).regime.look, LOOK_MISSING, (*s).regime.due != 0u);
    let old = (*s).regime.rate;
    if (*s).regime.look == LOOK_MEASURED && less((*s).regime.against, (*s).regime.along) && !is_zero((*s).regime.bend) {
        let wanted = wanted_rate(c, s);
        let most = c.regime_constants.max_change;
        let rate = larger(smaller(wanted, times(old, most)), quotient(old, scaled(most, 0)));
        if differ(rate, wanted) {
            (*r).flags |= CLAMPED_CHANGE;
        }
        (*r).terms[CURVATURE_TERM] = ln_ratio(rate, old);
        (*s).regime.rate = rate;
    }
    (*s).regime.look = LOOK_NONE;
    (*s).regime.due = 1u;
    if along_signs {
        (*r).terms[NORM_TERM] = ln_ratio_or_0(g.norm, g.last_norm);
    }
    set_rate(product((*s).regime.rate, share), MAX_FACTOR, RATE_MAX, g, s, r);
}

// Computes A/B, or its root in the geometric form, for A and B above 0.
fn wanted_rate(c: GroupConstants, s: ptr<function, GroupState>) -> Scaled {
    let rate = quotient(excess_over((*s).regime.along, (*s).regime.against), (*s).regime.bend);
    return choose(rate, root(rate), c.regime_constants.form == LOOK_GEOMETRIC);
}
