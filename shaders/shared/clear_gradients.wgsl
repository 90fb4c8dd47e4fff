// Zeros in the place of gradients in f32.

fn clear_gradients(block: Block, quad: u32) {
    store_gradients(block, quad, vec4<f32>(), 0u);
}
