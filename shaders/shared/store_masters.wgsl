// Parameters go back into 16 bits as the nearest, ties to even, and what these lack is kept.

fn store_parameters(block: Block, quad: u32, value: vec4<f32>, key: u32) {
    let codes = narrowed(PARAMETERS_ARE, value);
    store_packed_parameters(block, quad, packed_codes(codes));
    remainders[block.state_quad + quad] = packed_remainders(remainder(PARAMETERS_ARE, value, codes));
}
