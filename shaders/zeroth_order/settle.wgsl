// After pass 3: the motion that restores the parameters and takes the step, and the step's record.
//
// Reads:  updates and states of pass 3.
// Writes: probe, motion, probe_records.
// Grid:   one invocation.
//
// `has_momentum`: the momentum of LOZO-M is followed in place of z.

import package::layout::{GroupState, Update};
import package::zeroth_order::layout::{Motion, Probe, RawProbeRecord, LARGEST_PULL};

@group(0) @binding(0) var<storage, read> updates: array<Update>;
@group(0) @binding(1) var<storage, read> states: array<GroupState>;
@group(0) @binding(2) var<storage, read_write> probe: array<Probe>;
@group(0) @binding(3) var<storage, read_write> motion: array<Motion>;
@group(0) @binding(4) var<storage, read_write> probe_records: array<RawProbeRecord>;

@compute @workgroup_size(1)
fn settle_step() {
    let is_taken = updates[0].skip == 0u;
    let rate = updates[0].learning_rate;
    let slope = probe[0].slope;
    let shrink = select(1.0, updates[0].shrink, is_taken);
    probe[0].shrink = shrink;
    @if(!has_momentum) {
        let pull = clamp(rate * slope, -LARGEST_PULL, LARGEST_PULL);
        motion[0] = Motion(probe[0].epsilon, select(0.0, 0.0 - pull, is_taken), shrink);
    }
    @if(has_momentum) {
        // In the first step M = c U.
        let is_first = updates[0].first != 0u;
        let momentum = select(probe[0].momentum, 0.0, is_first);
        probe[0].keep = select(1.0, momentum, is_taken);
        probe[0].share = select(0.0, (1.0 - momentum) * slope, is_taken);
        probe[0].rate = select(0.0, rate, is_taken);
        motion[0] = Motion(0.0, 1.0, shrink);
    }
    probe_records[states[0].record_slot - 1u] = RawProbeRecord(
        array<u32, 2>(probe[0].first_loss, probe[0].second_loss),
        slope,
    );
}
