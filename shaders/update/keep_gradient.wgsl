// Keeps the gradient as the first pass saw it, without the clip, for the secant regimes.

import package::layout::Update;
import package::update::step_gradient::COUPLED_DECAY;
import package::update_parameters::memory;

alias Memory = vec4<f32>;

fn keep(update: Update, at: u32, w: vec4<f32>, raw: vec4<f32>, g: vec4<f32>) {
    // A clip may have made the factor a zero, which has its sign all the same.
    let climbs = (bitcast<u32>(update.gradient_factor) >> 31u) != 0u;
    var seen = select(update.micro_share, -update.micro_share, climbs) * raw;
    if COUPLED_DECAY {
        seen += update.coupled_decay * w;
    }
    memory[at] = seen;
}
