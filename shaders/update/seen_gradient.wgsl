// Gradient that pass 1 measured, without the clip.

import package::coupled_decay::COUPLED_DECAY;
import package::layout::Update;

// Returns the gradient that pass 1 measured. `raw` is the gradient without the loss scale.
fn seen_gradient(update: Update, raw: vec4<f32>, w: vec4<f32>) -> vec4<f32> {
    // A clip may have made the factor zero. The zero still has the sign.
    let climbs = (bitcast<u32>(update.gradient_factor) >> 31u) != 0u;
    var seen = select(update.micro_share, -update.micro_share, climbs) * raw;
    if COUPLED_DECAY {
        seen += update.coupled_decay * w;
    }
    return seen;
}
