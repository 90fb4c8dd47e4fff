// Keeps the words of a buffer, or takes them back, according to the watchdog's verdict.
//
// Reads:  watch, part.
// Writes: kept, or live.
// Grid:   any number of workgroups of WORKGROUP invocations, which share the words.

import package::geometry::WORKGROUP;
import package::layout::{KeptPart, WatchdogState};

@group(0) @binding(0) var<storage, read> watch: array<WatchdogState>;
@group(0) @binding(1) var<uniform> part: KeptPart;
@group(0) @binding(2) var<storage, read_write> live: array<u32>;
@group(0) @binding(3) var<storage, read_write> kept: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn keep(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>) {
    let take_back = watch[0].taken_back != 0u;
    for (var i = id.x; i < part.words; i += workgroups.x * WORKGROUP) {
        let at = part.first_word + i;
        if !take_back {
            kept[i] = live[at];
        } else if i + 1u < part.words || part.half_word == 0u {
            live[at] = kept[i];
        } else {
            // The other half of the last word belongs to other data.
            live[at] = (live[at] & 0xffff0000u) | (kept[i] & 0xffffu);
        }
    }
}
