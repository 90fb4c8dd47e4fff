// AdGd: src/regime/adgd.rs.

import package::layout::{
    GroupConstants, GroupState, RawRecord, Scaled, CURVATURE_TERM, GATE_TERM, NORM_TERM, SIGN_RULE, MAX_FACTOR, RATE_MAX,
};
import package::learning_rate::first_rate::set_first_rate;
import package::learning_rate::formula::{ln_ratio_or_0, rate_along_signs, set_rate};
import package::learning_rate::gradient::Gradient;
import package::learning_rate::secant::{last_secant, ratio_of_lengths};
import package::scaled::{is_zero, less, ln_ratio, product, root, scaled, sum, times};

fn follow_regime(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    if g.first {
        set_first_rate(c, g, s, r);
    } else {
        (*s).regime.last_growth = set_rate(secant_rate(c, g, s, r), MAX_FACTOR, RATE_MAX, g, s, r);
    }
}

fn secant_rate(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) -> Scaled {
    let old = scaled((*s).regime_rate, 0);
    let secant = last_secant(c, g, s);
    if !secant.finite {
        return Scaled(0.0, 0);
    }
    var factor = ratio_of_lengths(secant);
    if is_zero(factor) {
        return old;
    }
    var share_of_norm = -0.5;
    if (c.flags & SIGN_RULE) != 0u {
        factor = rate_along_signs(c, factor, g.norm);
        share_of_norm = 0.5;
    }
    (*r).terms[NORM_TERM] = share_of_norm * ln_ratio_or_0(g.norm, g.last_norm);
    let rate = times(product(old, factor), 0.5);
    (*r).terms[CURVATURE_TERM] = ln_ratio(rate, old) - (*r).terms[NORM_TERM];
    let most = product(old, root(sum(Scaled(1.0, 0), scaled((*s).regime.last_growth, 0))));
    if less(most, rate) {
        (*r).terms[GATE_TERM] = ln_ratio(most, rate);
        return most;
    }
    return rate;
}
