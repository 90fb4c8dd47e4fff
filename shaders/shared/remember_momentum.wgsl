// What a lagged step does with its memory where that is the momentum, with squares in its second half or without, squares alone, or nothing.

alias Memory = vec4<f32>;

fn remember(
    update: Update,
    at: u32,
    g: vec4<f32>,
    gradient_scale: f32,
    momentum_scale: f32,
    alignment: ptr<function, AlignmentSums>,
) -> vec4<f32> {
    var last = vec4<f32>();
    var m = vec4<f32>();
    var v = vec4<f32>();
    if has_momentum() {
        last = memory[at];
        if MOMENTUM {
            compare_with_momentum(gradient_scale * g, momentum_scale * last, alignment);
        }
        m = next_momentum(update, last, admitted(g));
        next_memory[at] = m;
    }
    if has_squares() {
        let behind = squares_at(arrayLength(&memory), at);
        v = next_squares(update, memory[behind], admitted(g));
        next_memory[behind] = v;
    }
    return direction_of(update, g, last, m, v);
}
