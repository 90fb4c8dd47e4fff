// The counterpart of load_quads.wgsl for the pass that writes.

fn store_parameters(block: Block, quad: u32, value: vec4<f32>) {
    parameters[(block.params_start >> 2u) + quad] = value;
}
