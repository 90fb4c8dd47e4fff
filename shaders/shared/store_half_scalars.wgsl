// The counterpart of load_half_scalars.wgsl for the pass that writes: the half of a word behind the block's end stays as it is. No other
// invocation writes to that word.

fn store_packed_parameters(block: Block, quad: u32, packed: vec2<u32>) {
    let at = (block.params_start >> 1u) + 2u * quad;
    let left = block.elements - 4u * quad;
    if left > 1u {
        parameters[at] = packed.x;
    } else {
        parameters[at] = (parameters[at] & 0xffff0000u) | (packed.x & 0xffffu);
    }
    if left > 3u {
        parameters[at + 1u] = packed.y;
    } else if left == 3u {
        parameters[at + 1u] = (parameters[at + 1u] & 0xffff0000u) | (packed.y & 0xffffu);
    }
}
