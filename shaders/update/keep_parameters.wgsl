// Stores the parameters before the first step. With streams it stores those before the first step of each episode.

import package::layout::Update;
import package::elements::memories::memory;

fn keep(update: Update, at: u32, w: vec4<f32>, raw: vec4<f32>, g: vec4<f32>) {
    if update.first != 0u {
        memory[at] = w;
    }
}
