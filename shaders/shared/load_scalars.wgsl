// Gradients in f32 one at a time, for heads, tails and tensors that do not lie on a multiple of four. Past the block's end a load gives 0.
// They are loaded as bits, as in load_quads.wgsl. The host makes the same for parameters of it.

alias GradientLane = u32;

fn bits_of_gradients(block: Block, quad: u32) -> vec4<u32> {
    let at = block.grads_start + 4u * quad;
    let left = block.elements - 4u * quad;
    var loaded = vec4<u32>(gradients[at], 0u, 0u, 0u);
    if left > 1u {
        loaded.y = gradients[at + 1u];
    }
    if left > 2u {
        loaded.z = gradients[at + 2u];
    }
    if left > 3u {
        loaded.w = gradients[at + 3u];
    }
    return loaded;
}

fn load_gradients(block: Block, quad: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(bits_of_gradients(block, quad));
}
