// What pass 4 stores where streams of parameters take turns: those of the stream whose turn comes next, or of the one that won. The
// stream that took the step goes to a slot. The memory holds STREAM_SLOTS slots one after the other.

fn settled(update: Update, at: u32, next: vec4<f32>) -> vec4<f32> {
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
