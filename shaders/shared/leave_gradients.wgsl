// The counterpart of clear_gradients.wgsl where the caller keeps the gradients.

fn clear_gradients(block: Block, quad: u32) {}
