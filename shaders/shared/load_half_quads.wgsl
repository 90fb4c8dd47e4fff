// Gradients in 16 bits, four at a time, two to a word: every start and length is a multiple of four. The host makes the same for
// parameters of it.

alias GradientLane = vec2<u32>;

fn packed_gradients(block: Block, quad: u32) -> vec2<u32> {
    return gradients[(block.grads_start >> 2u) + quad];
}
