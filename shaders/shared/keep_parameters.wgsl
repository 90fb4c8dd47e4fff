// What pass 4 keeps for the regime: the parameters as they were before the first step, with streams before each episode's first.

alias Memory = vec4<f32>;

fn keep(update: Update, at: u32, w: vec4<f32>, raw: vec4<f32>, g: vec4<f32>) {
    if update.first != 0u {
        memory[at] = w;
    }
}
