// Gradients of 16 bits as f32. The host makes the same of it for parameters of which nothing else is kept.

// F16 or BF16.
override GRADIENTS_ARE: u32;

fn load_gradients(block: Block, quad: u32) -> vec4<f32> {
    return widened(GRADIENTS_ARE, codes_of(packed_gradients(block, quad)));
}
