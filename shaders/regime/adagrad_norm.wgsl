// AdaGradNorm: src/regime/adagrad_norm.rs.

import package::layout::{GroupConstants, GroupState, RawRecord, HISTORY_TERM, MAX_FACTOR, RATE_MAX};
import package::learning_rate::formula::{direction_square_of, ln_ratio_or_0, set_rate};
import package::learning_rate::gradient::Gradient;
import package::scaled::{product, quotient, root, scaled, sum};

fn follow_regime(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    let k = c.regime_constants;
    let last = (*s).regime.history;
    var history = last;
    if g.first {
        history = product(scaled(k.offset, 0), scaled(k.offset, 0));
    }
    history = sum(history, direction_square_of(c, g.square));
    (*s).regime.history = history;
    (*r).terms[HISTORY_TERM] = -0.5 * ln_ratio_or_0(history, last);
    set_rate(quotient(scaled(k.scale, 0), root(history)), MAX_FACTOR, RATE_MAX, g, s, r);
}
