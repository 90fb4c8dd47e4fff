// What pass 4 keeps for the regime: the gradient as pass 1 saw it, unclipped.

alias Memory = vec4<f32>;

fn keep(update: Update, at: u32, w: vec4<f32>, raw: vec4<f32>, g: vec4<f32>) {
    var seen = sign(update.gradient_factor) * update.micro_share * raw;
    if COUPLED_DECAY {
        seen += update.coupled_decay * w;
    }
    memory[at] = seen;
}
