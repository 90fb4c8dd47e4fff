// Pass 3, what follows from the exact number of steps that were taken. CPU twin: src/cpu/count_steps.rs.

// Steps that were not skipped, this one not counted; the largest u32 where there are more.
fn steps_taken(s: GroupState) -> u32 {
    if s.steps_high > select(0u, 1u, s.steps_low < s.skipped) {
        return 0xffffffffu;
    }
    return s.steps_low - s.skipped;
}

// The share of this step's parameters in their average (src/averaging.rs): all of it at the first step that counts, bit for bit,
// and nothing before. With j = k - 1 steps since, (1 + η)/(k + η) = (1 + η)/(j + (1 + η)).
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

// The share c_k of z in the average of schedule-free training (src/averaging.rs): w_k = (η_k k)² at the k-th step that is not skipped, over
// the sum of all so far. All of it at the first step with a rate, nothing before, and above 0 from then on.
fn schedule_free_weight(s: ptr<function, GroupState>, rate: f32, taken: u32) -> f32 {
    let k = select(taken + 1u, taken, taken == 0xffffffffu);
    let length = times(scaled(rate, 0), f32(k));
    let weight = product(length, length);
    let total = sum(Scaled((*s).weight_sum_mantissa, (*s).weight_sum_exponent), weight);
    (*s).weight_sum_mantissa = total.mantissa;
    (*s).weight_sum_exponent = total.exponent;
    if is_zero(total) {
        return 0.0;
    }
    // Not left to a division, which need not be exact.
    if total.exponent == weight.exponent && total.mantissa == weight.mantissa {
        return 1.0;
    }
    return max(to_float(quotient(weight, total)), power_of_two(-126));
}

// 1/(1 - β₁ᵏ) and 1/√(1 - β₂ᵏ) of AdamW, which make up for moments that began at zero.
fn bias_corrections(c: GroupConstants, taken: u32) -> vec2<f32> {
    let k = select(taken + 1u, 0xffffffffu, taken == 0xffffffffu);
    return vec2<f32>(1.0 / one_less_power(c.first_decay, k), 1.0 / sqrt(one_less_power(c.second_decay, k)));
}

// 1 - βᵏ with decay = -ln β, to about two ulps also where βᵏ is close to 1: with k ln β = -(h ln 2 + r) it is (1 - 2^-h) + 2^-h (1 - e^-r).
fn one_less_power(decay: f32, k: u32) -> f32 {
    // Beyond 2^24 k is rounded, as the product is anyway.
    let x = f32(k) * decay;
    // Less than half a unit in the last place is missing.
    if x > 18.0 {
        return 1.0;
    }
    let halvings = round(x * 1.44269504);
    let r = (x - halvings * LN_2_HIGH) - halvings * LN_2_LOW;
    let tail = r * r * (0.5 - r * (0.166666667 - r * (0.0416666667 - r * (0.00833333333
        - r * (0.00138888889 - r * 0.000198412698)))));
    let power = power_of_two(-i32(halvings));
    return (1.0 - power) + power * (r - tail);
}
