// Stores the parameters before the first step, followed by the weighted sum s of the gradients that pass 1 measured,
// for Prodigy.

import package::layout::{Update, LARGEST_F32};
import package::update::seen_gradient::seen_gradient;
import package::elements::memories::memory;

fn keep(update: Update, at: u32, w: vec4<f32>, raw: vec4<f32>, g: vec4<f32>) {
    let behind = arrayLength(&memory) / 2u + at;
    var last = memory[behind];
    if update.first != 0u {
        memory[at] = w;
        last = vec4<f32>();
    }
    let next = update.memory_keep * last + update.memory_share * seen_gradient(update, raw, w);
    memory[behind] = clamp(next, vec4<f32>(-LARGEST_F32), vec4<f32>(LARGEST_F32));
}
