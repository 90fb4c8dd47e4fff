// The first rate of regimes whose formula gives the change of the rate, if the caller gives none: src/regime/first_rate.rs.

import package::layout::{GroupConstants, GroupState, RawRecord, Scaled, CLAMPED_RATE, INITIAL_RATE, RATE_MIN, RATE_MAX};
import package::learning_rate::gradient::{Gradient, differ, direction_length_of, from_squares, hold_rate};
@if(trust_ratio) import package::learning_rate::trust_ratio::before_trust;
import package::scaled::{larger, quotient, root, scaled, smaller, sum, times};

// Sets η_0 = ε (1 + ‖w_0‖) / n_0, with √d in place of n_0 if the direction is a vector of signs.
fn set_first_rate(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    if (c.flags & INITIAL_RATE) != 0u {
        return;
    }
    let initial_norm = root(from_squares(g.sums.initial_square));
    let length = times(sum(Scaled(1.0, 0), initial_norm), c.first_step);
    var wanted = quotient(length, direction_length_of(c, g.norm));
    @if(trust_ratio) wanted = before_trust(c, g, s, wanted);
    let rate = smaller(larger(wanted, scaled(RATE_MIN, 0)), scaled(RATE_MAX, 0));
    if differ(rate, wanted) {
        (*r).flags |= CLAMPED_RATE;
    }
    hold_rate(rate, s);
}
