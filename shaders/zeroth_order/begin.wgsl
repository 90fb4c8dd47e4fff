// Sets the keys of a step's random numbers.
//
// Reads:  states, which count the steps.
// Writes: probe.
// Grid:   one invocation.

import package::elements::random_bits::rounding_key;
import package::layout::GroupState;
import package::zeroth_order::layout::{Probe, COLUMNS_SEED, NEVER};

@group(0) @binding(0) var<storage, read> states: array<GroupState>;
@group(0) @binding(1) var<storage, read_write> probe: array<Probe>;

@compute @workgroup_size(1)
fn begin_step() {
    var p = probe[0];
    p.key = rounding_key(p.seed, states[0].steps_low, states[0].steps_high);
    if p.interval > 0u {
        let is_first = p.age == NEVER;
        let draws = is_first || p.age + 1u >= p.interval;
        p.draws = select(0u, 1u, draws);
        p.turns = select(0u, 1u, draws && !is_first);
        p.age = select(p.age + 1u, 0u, draws);
        if draws {
            p.period += 1u;
            p.columns_key = rounding_key(p.seed ^ COLUMNS_SEED, p.period, 0u);
        }
    }
    probe[0] = p;
}
