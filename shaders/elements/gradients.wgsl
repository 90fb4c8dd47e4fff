// Loads the gradients of a block as f32, four at a time (a quad), and clears them on request.
//
// `scalars`: as in elements/parameters.wgsl.
// `half_gradients`: the gradients are stored in 16 bits, two to a word, in the format GRADIENTS_ARE.
// `writes_gradients`: the gradients are bound for writing. wgpu also requires this if they share a buffer with parameters that are written.
// `clears_gradients`: the gradients are set to zero after they were read for the last time.
//
// Gradients are loaded as bits: whether a number is finite is decided on bits that no arithmetic has touched (reduction/sweep_again.wgsl).

import package::layout::Block;
@if(half_gradients) import package::elements::half::{codes_of, widened_bits};

@if(!half_gradients && !scalars) alias GradientLane = vec4<u32>;
@if(!half_gradients && scalars) alias GradientLane = u32;
@if(half_gradients && !scalars) alias GradientLane = vec2<u32>;
@if(half_gradients && scalars) alias GradientLane = u32;

@if(writes_gradients) @group(1) @binding(2) var<storage, read_write> gradients: array<GradientLane>;
@if(!writes_gradients) @group(1) @binding(2) var<storage, read> gradients: array<GradientLane>;

// Format of the gradients: F16 or BF16.
@if(half_gradients) override GRADIENTS_ARE: u32;

// Loads elements 4 * quad .. 4 * quad + 4 of the block.
@if(!half_gradients && !scalars)
fn bits_of_gradients(block: Block, quad: u32) -> vec4<u32> {
    return gradients[(block.grads_start >> 2u) + quad];
}

@if(!half_gradients && scalars)
fn bits_of_gradients(block: Block, quad: u32) -> vec4<u32> {
    let at = block.grads_start + 4u * quad;
    let left = block.elements - 4u * quad;
    var loaded = vec4<u32>(gradients[at], 0u, 0u, 0u);
    if left > 1u {
        loaded.y = gradients[at + 1u];
    }
    if left > 2u {
        loaded.z = gradients[at + 2u];
    }
    if left > 3u {
        loaded.w = gradients[at + 3u];
    }
    return loaded;
}

@if(half_gradients)
fn bits_of_gradients(block: Block, quad: u32) -> vec4<u32> {
    return widened_bits(GRADIENTS_ARE, codes_of(packed_gradients(block, quad)));
}

@if(half_gradients && !scalars)
fn packed_gradients(block: Block, quad: u32) -> vec2<u32> {
    return gradients[(block.grads_start >> 2u) + quad];
}

// The block starts at a whole word.
@if(half_gradients && scalars)
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

fn load_gradients(block: Block, quad: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(bits_of_gradients(block, quad));
}

@if(clears_gradients && !scalars)
fn clear_gradients(block: Block, quad: u32) {
    gradients[(block.grads_start >> 2u) + quad] = GradientLane(0u);
}

@if(clears_gradients && !half_gradients && scalars)
fn clear_gradients(block: Block, quad: u32) {
    let at = block.grads_start + 4u * quad;
    let end = min(at + 4u, block.grads_start + block.elements);
    for (var i = at; i < end; i++) {
        gradients[i] = 0u;
    }
}

// The half of a word after the end of the block keeps its bits. No other invocation writes to that word.
@if(clears_gradients && half_gradients && scalars)
fn clear_gradients(block: Block, quad: u32) {
    let at = (block.grads_start >> 1u) + 2u * quad;
    let left = block.elements - 4u * quad;
    gradients[at] = select(0u, gradients[at] & 0xffff0000u, left == 1u);
    if left > 2u {
        gradients[at + 1u] = select(0u, gradients[at + 1u] & 0xffff0000u, left == 3u);
    }
}
