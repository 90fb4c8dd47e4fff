// What a lagged step does with its memory where that is the momentum, or nothing.

alias Memory = vec4<f32>;

fn remember(
    update: Update,
    at: u32,
    g: vec4<f32>,
    gradient_scale: f32,
    momentum_scale: f32,
    alignment: ptr<function, AlignmentSums>,
) -> vec4<f32> {
    var m = vec4<f32>();
    if has_momentum() {
        let last = memory[at];
        if MOMENTUM {
            compare_with_momentum(gradient_scale * g, momentum_scale * last, alignment);
        }
        m = next_momentum(update, last, g);
        next_memory[at] = m;
    }
    return direction_of(update, g, m);
}
