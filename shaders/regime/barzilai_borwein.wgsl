// BarzilaiBorwein: src/regime/barzilai_borwein.rs.

import package::layout::{
    GroupConstants, GroupState, RawRecord, Scaled, CURVATURE_TERM, NORM_TERM, SECANT_LONG, SECANT_SHORT, SIGN_RULE, RATE_MAX,
};
import package::learning_rate::first_rate::set_first_rate;
import package::learning_rate::formula::{ln_ratio_or_0, rate_along_signs, set_rate};
import package::learning_rate::gradient::Gradient;
import package::learning_rate::secant::{last_secant, ratio_of_lengths};
import package::scaled::{is_zero, ln_ratio, product, quotient, scaled};

fn follow_regime(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    if g.first {
        set_first_rate(c, g, s, r);
    } else {
        set_rate(secant_rate(c, g, s, r), c.regime_constants.max_change, RATE_MAX, g, s, r);
    }
}

fn secant_rate(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) -> Scaled {
    let old = scaled((*s).regime_rate, 0);
    let secant = last_secant(c, g, s);
    if !secant.finite {
        return Scaled(0.0, 0);
    }
    var factor = Scaled(0.0, 0);
    var share_of_norm = 0.0;
    if c.regime_constants.form == SECANT_LONG {
        if secant.u_dot_y < 0.0 {
            factor = quotient(scaled(secant.u_square, secant.shift), scaled(secant.u_dot_y, 0));
        }
    } else if c.regime_constants.form == SECANT_SHORT {
        if secant.u_dot_y < 0.0 && secant.y_square > 0.0 {
            factor = quotient(scaled(secant.u_dot_y, secant.shift), scaled(secant.y_square, 0));
        }
        share_of_norm = -1.0;
    } else {
        factor = ratio_of_lengths(secant);
        share_of_norm = -0.5;
    }
    if is_zero(factor) {
        return old;
    }
    if (c.flags & SIGN_RULE) != 0u {
        factor = rate_along_signs(c, factor, g.norm);
        share_of_norm += 1.0;
    }
    (*r).terms[NORM_TERM] = share_of_norm * ln_ratio_or_0(g.norm, g.last_norm);
    let rate = product(old, factor);
    (*r).terms[CURVATURE_TERM] = ln_ratio(rate, old) - (*r).terms[NORM_TERM];
    return rate;
}
