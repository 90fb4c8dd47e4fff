// The trust ratio of LARS: src/trust.rs.

import package::layout::{GroupConstants, GroupState, RawRecord, Scaled, FIRST, TRUST_CAPS, TRUST_TERM, TRUST_MIN, TRUST_MAX};
import package::learning_rate::gradient::{Gradient, direction_length_of, from_squares};
import package::scaled::{is_zero, larger, ln_ratio, quotient, root, scaled, smaller, times, to_float};

// Multiplies the rate of regime and schedule by the trust ratio. A zero gradient carries the trust ratio over, like the rate.
fn follow_trust(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    if c.trust_coefficient <= 0.0 {
        return;
    }
    if !is_zero(g.square) {
        let trust = trust_of(c, g, s);
        let ln_trust = ln_ratio(trust, Scaled(1.0, 0));
        if ((*r).flags & FIRST) == 0u {
            (*r).terms[TRUST_TERM] = ln_trust - (*s).ln_trust;
        }
        (*s).ln_trust = ln_trust;
        (*s).trust = to_float(trust);
    }
    (*r).trust_ratio = (*s).trust;
    (*s).learning_rate *= (*s).trust;
}

// Returns the first rate divided by the trust ratio that follows, so that the step has the intended length.
fn before_trust(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, rate: Scaled) -> Scaled {
    if c.trust_coefficient <= 0.0 || (c.flags & TRUST_CAPS) != 0u {
        return rate;
    }
    return quotient(rate, trust_of(c, g, s));
}

// Returns the trust ratio of LARS, coefficient ‖w‖ / ‖u‖ (src/trust.rs), for the parameters after the last step. It is 1 if either norm is 0 and
// there is no least value. As a cap it is divided by the rate and at most 1.
fn trust_of(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>) -> Scaled {
    var parameters = (*s).parameter_norm;
    if (*s).momentum_started == 0u {
        parameters = root(from_squares(g.sums.initial_square));
    }
    let direction = direction_length_of(c, g.norm);
    if is_zero(direction) || (is_zero(parameters) && c.trust_least == 0.0) {
        return Scaled(1.0, 0);
    }
    var wanted = quotient(times(parameters, c.trust_coefficient), direction);
    if (c.flags & TRUST_CAPS) != 0u {
        // Dividing by a rate of 0 is not possible, and no factor would change that rate.
        if (*s).learning_rate == 0.0 {
            return Scaled(1.0, 0);
        }
        wanted = smaller(quotient(wanted, scaled((*s).learning_rate, 0)), Scaled(1.0, 0));
    }
    let least = select(TRUST_MIN, c.trust_least, c.trust_least > 0.0);
    return smaller(larger(wanted, scaled(least, 0)), scaled(TRUST_MAX, 0));
}
