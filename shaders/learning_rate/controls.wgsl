// Settings that the host or a kernel of the caller changes between steps: src/controls.rs.

import package::layout::{
    GroupConstants, GroupState, RawRecord, Scaled, ABSENT, CONTROL_TERM, FIRST, FROZEN, LARGEST_FACTOR_BITS, RATE_MAX,
};
import package::scaled::{ln_ratio, scaled};

// The caller's factor and its logarithm. If the factor is 0, the logarithm is the last one, with which the next factor is compared.
struct Controlled {
    factor: f32,
    ln_factor: f32,
}

fn control_at(c: GroupConstants, s: GroupState) -> Controlled {
    let factor = c.controls.learning_rate_factor;
    if factor == 0.0 || bitcast<u32>(factor) > LARGEST_FACTOR_BITS {
        return Controlled(0.0, s.ln_control);
    }
    return Controlled(factor, ln_ratio(scaled(factor, 0), Scaled(1.0, 0)));
}

// Multiplies the rate of regime, schedule and trust ratio by the factor.
fn follow_controls(controlled: Controlled, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    if ((*r).flags & FIRST) == 0u {
        (*r).terms[CONTROL_TERM] = controlled.ln_factor - (*s).ln_control;
    }
    (*s).ln_control = controlled.ln_factor;
    (*s).learning_rate = min((*s).learning_rate * controlled.factor, RATE_MAX);
}

// Returns the flags of a group that takes no part in the step, else 0.
fn absence_of(c: GroupConstants) -> u32 {
    return select(0u, FROZEN, c.controls.frozen != 0u) | select(0u, ABSENT, c.controls.present == 0u);
}
