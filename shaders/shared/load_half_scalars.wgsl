// Gradients in 16 bits word by word, where they do not lie on a multiple of four; they do on one of two. Past the block's end a load
// gives 0. The host makes the same for parameters of it.

alias GradientLane = u32;

fn packed_gradients(block: Block, quad: u32) -> vec2<u32> {
    let at = (block.grads_start >> 1u) + 2u * quad;
    let left = block.elements - 4u * quad;
    var packed = vec2<u32>(gradients[at], 0u);
    if left == 1u {
        packed.x &= 0xffffu;
    }
    if left > 2u {
        packed.y = gradients[at + 1u];
    }
    if left == 3u {
        packed.y &= 0xffffu;
    }
    return packed;
}
