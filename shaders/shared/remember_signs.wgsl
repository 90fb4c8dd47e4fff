// What a lagged step does with its memory where that is the counters of signs.

alias Memory = u32;

fn remember(
    update: Update,
    at: u32,
    g: vec4<f32>,
    gradient_scale: f32,
    momentum_scale: f32,
    alignment: ptr<function, AlignmentSums>,
) -> vec4<f32> {
    let word = memory[at];
    compare_with_counters(gradient_scale * g, word, alignment);
    next_memory[at] = next_counters(word, g);
    return direction_of(update, g, vec4<f32>(), vec4<f32>(), vec4<f32>());
}
