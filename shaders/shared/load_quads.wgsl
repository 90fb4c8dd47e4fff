// Gradients in f32, four at a time: every start and length is a multiple of four. The host makes the same for parameters of it.

alias GradientLane = vec4<f32>;

// Elements 4 * quad .. 4 * quad + 4 of a block's gradients.
fn load_gradients(block: Block, quad: u32) -> vec4<f32> {
    return gradients[(block.grads_start >> 2u) + quad];
}
