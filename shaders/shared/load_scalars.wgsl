// Parameters and gradients one at a time, for heads, tails and tensors that do not lie on a multiple of four. Past the block's
// end a load gives 0.

alias Lane = f32;

fn load_gradients(block: Block, quad: u32) -> vec4<f32> {
    let at = block.grads_start + 4u * quad;
    let left = block.elements - 4u * quad;
    var quad_of_gradients = vec4<f32>(gradients[at], 0.0, 0.0, 0.0);
    if left > 1u {
        quad_of_gradients.y = gradients[at + 1u];
    }
    if left > 2u {
        quad_of_gradients.z = gradients[at + 2u];
    }
    if left > 3u {
        quad_of_gradients.w = gradients[at + 3u];
    }
    return quad_of_gradients;
}

fn load_parameters(block: Block, quad: u32) -> vec4<f32> {
    let at = block.params_start + 4u * quad;
    let left = block.elements - 4u * quad;
    var quad_of_parameters = vec4<f32>(parameters[at], 0.0, 0.0, 0.0);
    if left > 1u {
        quad_of_parameters.y = parameters[at + 1u];
    }
    if left > 2u {
        quad_of_parameters.z = parameters[at + 2u];
    }
    if left > 3u {
        quad_of_parameters.w = parameters[at + 3u];
    }
    return quad_of_parameters;
}
