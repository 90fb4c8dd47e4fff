// Zeros in the place of gradients in 16 bits.

fn clear_gradients(block: Block, quad: u32) {
    store_packed_gradients(block, quad, vec2<u32>());
}
