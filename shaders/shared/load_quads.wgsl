// Parameters and gradients, four at a time: every start and length is a multiple of four.

alias Lane = vec4<f32>;

// Elements 4 * quad .. 4 * quad + 4 of a block's gradients.
fn load_gradients(block: Block, quad: u32) -> vec4<f32> {
    return gradients[(block.grads_start >> 2u) + quad];
}

fn load_parameters(block: Block, quad: u32) -> vec4<f32> {
    return parameters[(block.params_start >> 2u) + quad];
}
