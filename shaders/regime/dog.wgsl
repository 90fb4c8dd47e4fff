// DoG: src/regime/dog.rs.

import package::layout::{GroupConstants, GroupState, RawRecord, DISTANCE_TERM, HISTORY_TERM, MAX_FACTOR, RATE_MAX};
import package::learning_rate::distance::farthest_of;
import package::learning_rate::formula::{direction_square_of, ln_ratio_or_0, set_rate};
import package::learning_rate::gradient::Gradient;
import package::scaled::{quotient, root, sum};

fn follow_regime(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    let last = (*s).regime;
    let farthest = farthest_of(c, g, s);
    let history = sum(last.history, direction_square_of(c, g.square));
    (*s).regime.history = history;
    (*r).terms[DISTANCE_TERM] = ln_ratio_or_0(farthest, last.distance);
    (*r).terms[HISTORY_TERM] = -0.5 * ln_ratio_or_0(history, last.history);
    set_rate(quotient(farthest, root(history)), MAX_FACTOR, RATE_MAX, g, s, r);
}
