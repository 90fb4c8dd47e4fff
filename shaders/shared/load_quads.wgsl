// Gradients in f32, four at a time: every start and length is a multiple of four. They are loaded as bits, from which alone it is told
// what is finite (shared/sweep_again.wgsl). The host makes the same for parameters of it.

alias GradientLane = vec4<u32>;

// Elements 4 * quad .. 4 * quad + 4 of a block's gradients.
fn bits_of_gradients(block: Block, quad: u32) -> vec4<u32> {
    return gradients[(block.grads_start >> 2u) + quad];
}

fn load_gradients(block: Block, quad: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(bits_of_gradients(block, quad));
}
