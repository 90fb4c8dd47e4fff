// WNGrad: src/regime/wngrad.rs.

import package::layout::{GroupConstants, GroupState, RawRecord, HISTORY_TERM, MAX_FACTOR, RATE_MAX};
import package::learning_rate::formula::{direction_square_of, ln_ratio_or_0, set_rate};
import package::learning_rate::gradient::Gradient;
import package::scaled::{is_zero, quotient, root, scaled, sum};

fn follow_regime(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    let last = (*s).regime.b;
    var before = last;
    if g.first {
        before = scaled(c.regime_constants.offset, 0);
    }
    let square = direction_square_of(c, g.square);
    var b = root(square);
    if !is_zero(before) {
        b = sum(before, quotient(square, before));
    }
    (*s).regime.b = b;
    (*r).terms[HISTORY_TERM] = -ln_ratio_or_0(b, last);
    set_rate(quotient(scaled(c.regime_constants.scale, 0), b), MAX_FACTOR, RATE_MAX, g, s, r);
}
