// Parameters of 16 bits with what these lack of f32, which lies in quads as the momentum does.

// F16 or BF16.
override PARAMETERS_ARE: u32;

@group(1) @binding(5) var<storage, read_write> remainders: array<vec2<u32>>;

fn bits_of_parameters(block: Block, quad: u32) -> vec4<u32> {
    let remainder = remainders_of(remainders[block.state_quad + quad]);
    return joined_bits(PARAMETERS_ARE, codes_of(packed_parameters(block, quad)), remainder);
}

fn load_parameters(block: Block, quad: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(bits_of_parameters(block, quad));
}
