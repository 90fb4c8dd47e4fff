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
