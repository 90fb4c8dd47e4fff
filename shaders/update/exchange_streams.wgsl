// Exchanges AutoSgd's streams of parameters. The stream that took the step goes to a slot of the memory, and the
// caller's buffer gets the next stream or the winner. The memory holds STREAM_SLOTS slots one after the other.

import package::layout::{Update, NO_SLOT, STREAM_SLOTS};
import package::elements::memories::memory;

fn exchanged(update: Update, at: u32, next: vec4<f32>) -> vec4<f32> {
    let slot_quads = arrayLength(&memory) / STREAM_SLOTS;
    var taken = next;
    if update.take != NO_SLOT {
        taken = memory[update.take * slot_quads + at];
    }
    if update.put != NO_SLOT {
        memory[update.put * slot_quads + at] = next;
    }
    return taken;
}
