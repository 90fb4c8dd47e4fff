// The counterpart of load_quads.wgsl for the pass that writes: bits, as that loads them. The key is for 16 bits.

fn store_parameters(block: Block, quad: u32, value: vec4<f32>, key: u32) {
    parameters[(block.params_start >> 2u) + quad] = bitcast<vec4<u32>>(value);
}
