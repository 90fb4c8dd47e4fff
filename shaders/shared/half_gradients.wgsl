// Gradients of 16 bits as f32. The host makes the same of it for parameters of which nothing else is kept.

// F16 or BF16.
override GRADIENTS_ARE: u32;

fn bits_of_gradients(block: Block, quad: u32) -> vec4<u32> {
    return widened_bits(GRADIENTS_ARE, codes_of(packed_gradients(block, quad)));
}

fn load_gradients(block: Block, quad: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(bits_of_gradients(block, quad));
}
