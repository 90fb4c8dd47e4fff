// Polyak: src/regime/polyak.rs.

import package::layout::{GroupConstants, GroupState, RawRecord, Scaled, LOSS_TERM, NORM_TERM, SIGN_RULE, MAX_FACTOR};
import package::learning_rate::formula::{ln_ratio_or_0, rate_along_signs, set_rate};
import package::learning_rate::gradient::Gradient;
import package::scaled::{quotient, scaled, times};

fn follow_regime(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    let k = c.regime_constants;
    let last_loss = (*s).regime.last_loss;
    let loss = max(g.sums.loss - k.optimum, 0.0);
    (*s).regime.last_loss = loss;
    var wanted = Scaled(0.0, 0);
    if loss > 0.0 {
        wanted = quotient(scaled(loss, 0), times(g.square, k.factor));
    }
    let norm_change = ln_ratio_or_0(g.norm, g.last_norm);
    (*r).terms[NORM_TERM] = -2.0 * norm_change;
    (*r).terms[LOSS_TERM] = ln_ratio_or_0(scaled(loss, 0), scaled(last_loss, 0));
    if (c.flags & SIGN_RULE) != 0u {
        wanted = rate_along_signs(c, wanted, g.norm);
        (*r).terms[NORM_TERM] += norm_change;
    }
    set_rate(wanted, MAX_FACTOR, k.max_rate, g, s, r);
}
