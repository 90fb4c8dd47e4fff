// Parameters go back into 16 bits as the nearest, ties to even.

fn store_parameters(block: Block, quad: u32, value: vec4<f32>, key: u32) {
    store_packed_parameters(block, quad, packed_codes(narrowed(PARAMETERS_ARE, value)));
}
