// Gradient that the rule receives: without the loss scale, with clip, sign, micro-batches and coupled decay.

import package::coupled_decay::COUPLED_DECAY;
import package::layout::Update;

// Returns the gradient for the rule. `raw` is the gradient without the loss scale.
fn step_gradient(update: Update, raw: vec4<f32>, w: vec4<f32>) -> vec4<f32> {
    var g = update.gradient_factor * raw;
    if COUPLED_DECAY {
        g += update.coupled_decay * w;
    }
    return g;
}
