// The counterpart of load_half_quads.wgsl for the pass that writes.

fn store_packed_parameters(block: Block, quad: u32, packed: vec2<u32>) {
    parameters[(block.params_start >> 2u) + quad] = packed;
}
