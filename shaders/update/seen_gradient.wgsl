// The gradient as the first pass saw it, without the clip.

import package::coupled_decay::COUPLED_DECAY;
import package::layout::Update;

// `raw`: the gradient without the loss scale.
fn seen_gradient(update: Update, raw: vec4<f32>, w: vec4<f32>) -> vec4<f32> {
    // A clip may have made the factor a zero, which has its sign all the same.
    let climbs = (bitcast<u32>(update.gradient_factor) >> 31u) != 0u;
    var seen = select(update.micro_share, -update.micro_share, climbs) * raw;
    if COUPLED_DECAY {
        seen += update.coupled_decay * w;
    }
    return seen;
}
