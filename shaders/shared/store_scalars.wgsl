// The counterpart of load_scalars.wgsl for the pass that writes: nothing is written past the block's end. The key is for
// 16 bits.

fn store_parameters(block: Block, quad: u32, value: vec4<f32>, key: u32) {
    let at = block.params_start + 4u * quad;
    let left = block.elements - 4u * quad;
    let bits = bitcast<vec4<u32>>(value);
    parameters[at] = bits.x;
    if left > 1u {
        parameters[at + 1u] = bits.y;
    }
    if left > 2u {
        parameters[at + 2u] = bits.z;
    }
    if left > 3u {
        parameters[at + 3u] = bits.w;
    }
}
