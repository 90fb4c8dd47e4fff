// The counterpart of load_quads.wgsl for the pass that writes. The key is for 16 bits.

fn store_parameters(block: Block, quad: u32, value: vec4<f32>, key: u32) {
    parameters[(block.params_start >> 2u) + quad] = value;
}
