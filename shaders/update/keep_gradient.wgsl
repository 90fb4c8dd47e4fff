// Stores the gradient that pass 1 measured, without the clip, for the secant regimes.

import package::layout::Update;
import package::update::seen_gradient::seen_gradient;
import package::elements::memories::memory;

fn keep(update: Update, at: u32, w: vec4<f32>, raw: vec4<f32>, g: vec4<f32>) {
    memory[at] = seen_gradient(update, raw, w);
}
