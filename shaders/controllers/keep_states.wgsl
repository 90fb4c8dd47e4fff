// Keeps the states of the groups, or takes them back, according to the watchdog's verdict. Steps that are taken back count as attempted, and
// not as steps that have moved the group. State that a skipped or an out-of-range step has set for later steps stays.
//
// Reads:  watch.
// Writes: kept, or states.
// Grid:   one invocation per group.
//
// CPU twin: `taken_back` in src/controllers/watchdog.rs.

import package::geometry::WORKGROUP;
import package::layout::{GroupState, WatchdogState};

@group(0) @binding(0) var<storage, read> watch: array<WatchdogState>;
@group(0) @binding(1) var<storage, read_write> states: array<GroupState>;
@group(0) @binding(2) var<storage, read_write> kept: array<GroupState>;

@compute @workgroup_size(WORKGROUP)
fn keep_states(@builtin(global_invocation_id) id: vec3<u32>) {
    let group = id.x;
    if group >= arrayLength(&states) {
        return;
    }
    if watch[0].taken_back == 0u {
        kept[group] = states[group];
        return;
    }
    let now = states[group];
    var s = kept[group];
    let moved = (now.steps_low - now.skipped - now.left_out) - (s.steps_low - s.skipped - s.left_out);
    s.left_out = now.left_out + moved;
    s.steps_low = now.steps_low;
    s.steps_high = now.steps_high;
    s.record_slot = now.record_slot;
    s.skipped = now.skipped;
    s.skips_in_row = now.skips_in_row;
    s.halted = now.halted;
    s.last_nonfinite = now.last_nonfinite;
    s.last_first_nonfinite = now.last_first_nonfinite;
    s.overflows_in_row = now.overflows_in_row;
    s.halt_overflow_key = now.halt_overflow_key;
    s.loss_scale_exponent = now.loss_scale_exponent;
    s.good_steps = now.good_steps;
    states[group] = s;
}
