// What pass 4 keeps for the regime: counters of signs, or nothing.

alias Memory = u32;

fn keep(update: Update, at: u32, w: vec4<f32>, raw: vec4<f32>, g: vec4<f32>) {
    if COUNTERS {
        memory[at] = next_counters(memory[at], g);
    }
}
