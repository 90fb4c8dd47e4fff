// The trust ratio of LARS: src/trust.rs.

import package::layout::{GroupConstants, GroupState, RawRecord, Scaled, FIRST, TRUST_CAPS, TRUST_TERM, TRUST_MIN, TRUST_MAX};
import package::learning_rate::gradient::{Gradient, direction_length_of, from_squares};
import package::scaled::{is_zero, larger, ln_ratio, quotient, root, scaled, smaller, times, to_float};

// The trust ratio, over what regime and schedule say. A gradient of zero carries it over, as it does the rate.
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

// A first rate whose step is to have its length with the trust ratio that follows.
fn before_trust(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, rate: Scaled) -> Scaled {
    if c.trust_coefficient <= 0.0 || (c.flags & TRUST_CAPS) != 0u {
        return rate;
    }
    return quotient(rate, trust_of(c, g, s));
}

// LARS: coefficient ‖w‖ / ‖u‖ (src/trust.rs), of the parameters as they were after the last step, and 1 where either is 0 and there is no least.
// As a cap it is divided by the rate, and is 1 at most.
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
        // There is no quotient by a rate of 0, and no factor changes it.
        if (*s).learning_rate == 0.0 {
            return Scaled(1.0, 0);
        }
        wanted = smaller(quotient(wanted, scaled((*s).learning_rate, 0)), Scaled(1.0, 0));
    }
    let least = select(TRUST_MIN, c.trust_least, c.trust_least > 0.0);
    return smaller(larger(wanted, scaled(least, 0)), scaled(TRUST_MAX, 0));
}
