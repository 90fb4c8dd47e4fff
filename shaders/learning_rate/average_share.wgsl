// The share of a step in the average of the parameters: src/averaging.rs. CPU twin: src/cpu/count_steps.rs.

import package::layout::{GroupConstants, GroupState, AVERAGE_EXPONENTIAL, AVERAGE_OFF, AVERAGE_SCHEDULE_FREE};
import package::learning_rate::steps_taken::steps_moved;
@if(schedule_free_plus) import package::regime::schedule_free_plus::averaged_rate;
import package::scaled::{is_zero, power_of_two, product, quotient, scaled, sum, times, to_float};

fn average_share(c: GroupConstants, s: ptr<function, GroupState>) -> f32 {
    if c.average == AVERAGE_SCHEDULE_FREE {
        @if(schedule_free_plus) return schedule_free_weight(s, averaged_rate(s), steps_moved(*s));
        @if(!schedule_free_plus) return schedule_free_weight(s, (*s).learning_rate, steps_moved(*s));
    }
    return average_weight(c, steps_moved(*s));
}

// Returns the weight of this step's parameters in their average (src/averaging.rs). It is 0 before the first step that counts and
// exactly 1 at that step. With j = k - 1 steps since, (1 + η)/(k + η) = (1 + η)/(j + (1 + η)).
fn average_weight(c: GroupConstants, taken: u32) -> f32 {
    if c.average == AVERAGE_OFF || taken < c.average_start {
        return 0.0;
    }
    let since = taken - c.average_start;
    if since == 0u {
        return 1.0;
    }
    if c.average == AVERAGE_EXPONENTIAL {
        return c.average_gain;
    }
    return c.average_gain / (f32(since) + c.average_gain);
}

// Returns the weight c_k of z in the average of schedule-free training (src/averaging.rs): w_k = (η_k k)² at the k-th step that is not
// skipped, divided by the sum of all weights so far. It is 0 before the first step with a rate, 1 at that step, and above 0 afterwards.
fn schedule_free_weight(s: ptr<function, GroupState>, rate: f32, taken: u32) -> f32 {
    let k = select(taken + 1u, taken, taken == 0xffffffffu);
    let length = times(scaled(rate, 0), f32(k));
    let weight = product(length, length);
    let total = sum((*s).weight_sum, weight);
    (*s).weight_sum = total;
    if is_zero(total) {
        return 0.0;
    }
    // This case avoids a division, which need not be exact.
    if total.exponent == weight.exponent && total.mantissa == weight.mantissa {
        return 1.0;
    }
    return max(to_float(quotient(weight, total)), power_of_two(-126));
}
