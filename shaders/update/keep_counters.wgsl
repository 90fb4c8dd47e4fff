// Stores the direction counters for the alignment.

import package::layout::{Update, COUNTER_LIMIT};
import package::measure::counters::{counters_of, pack_counters};
import package::elements::memories::memory;

fn keep(update: Update, at: u32, w: vec4<f32>, raw: vec4<f32>, g: vec4<f32>) {
    let signs = sign(g);
    let q = clamp(counters_of(memory[at]) + signs, vec4<f32>(-COUNTER_LIMIT), vec4<f32>(COUNTER_LIMIT));
    memory[at] = pack_counters(q, signs);
}
