// Loads and stores the parameters of a block as f32, four at a time (a quad).
//
// `scalars`: the block does not start at, or does not end on, a multiple of four elements. Its elements are then loaded and stored one by
//     one (16-bit elements: word by word). Past the end of the block a load gives 0 and nothing is stored.
// `half_parameters`: the parameters are stored in 16 bits, two to a word, in the format PARAMETERS_ARE.
// `masters`, `nearest`, `stochastic`: how 16-bit parameters are stored (src/element.rs, Rounding).
// `short_masters`: with `masters`, the remainders have 8 bits instead of 16.
// `writes_parameters`: the kernel stores parameters.
//
// Parameters are loaded as bits: whether a number is finite is decided on bits that no arithmetic has touched (reduction/sweep_again.wgsl).

import package::layout::{Block, LARGEST_BF16, LARGEST_F16, LARGEST_F32};
@if(half_parameters) import package::elements::half::F16;
@if(half_parameters) import package::elements::half::{codes_of, packed_codes, widened_bits, narrowed};
@if(masters && !short_masters) import package::elements::half::{joined_bits, remainders_of, remainder, packed_remainders};
@if(short_masters) import package::elements::bytes::signed_bytes;
@if(short_masters) import package::elements::half::{REMAINDER_KEY, short_joined_bits, short_masters_of};
@if(short_masters) import package::elements::random_bits::random_bits;
@if(stochastic) import package::elements::half::dithered;
@if(stochastic) import package::elements::random_bits::random_bits;

@if(!half_parameters && !scalars) alias ParameterLane = vec4<u32>;
@if(!half_parameters && scalars) alias ParameterLane = u32;
@if(half_parameters && !scalars) alias ParameterLane = vec2<u32>;
@if(half_parameters && scalars) alias ParameterLane = u32;

@if(writes_parameters) @group(1) @binding(1) var<storage, read_write> parameters: array<ParameterLane>;
@if(!writes_parameters) @group(1) @binding(1) var<storage, read> parameters: array<ParameterLane>;

// Format of the parameters: F16 or BF16.
@if(half_parameters) override PARAMETERS_ARE: u32;
// The difference between a master weight in f32 and its 16-bit parameter, in quads.
@if(masters && !short_masters) @group(1) @binding(5) var<storage, read_write> remainders: array<vec2<u32>>;
@if(short_masters) @group(1) @binding(5) var<storage, read_write> remainders: array<u32>;

// Loads elements 4 * quad .. 4 * quad + 4 of the block.
@if(!half_parameters && !scalars)
fn bits_of_parameters(block: Block, quad: u32) -> vec4<u32> {
    return parameters[(block.params_start >> 2u) + quad];
}

@if(!half_parameters && scalars)
fn bits_of_parameters(block: Block, quad: u32) -> vec4<u32> {
    let at = block.params_start + 4u * quad;
    let left = block.elements - 4u * quad;
    var loaded = vec4<u32>(parameters[at], 0u, 0u, 0u);
    if left > 1u {
        loaded.y = parameters[at + 1u];
    }
    if left > 2u {
        loaded.z = parameters[at + 2u];
    }
    if left > 3u {
        loaded.w = parameters[at + 3u];
    }
    return loaded;
}

@if(half_parameters && !masters)
fn bits_of_parameters(block: Block, quad: u32) -> vec4<u32> {
    return widened_bits(PARAMETERS_ARE, codes_of(packed_parameters(block, quad)));
}

@if(short_masters)
fn bits_of_parameters(block: Block, quad: u32) -> vec4<u32> {
    let remainder = signed_bytes(remainders[block.state_quad + quad]);
    return short_joined_bits(PARAMETERS_ARE, codes_of(packed_parameters(block, quad)), remainder);
}

@if(masters && !short_masters)
fn bits_of_parameters(block: Block, quad: u32) -> vec4<u32> {
    let remainder = remainders_of(remainders[block.state_quad + quad]);
    return joined_bits(PARAMETERS_ARE, codes_of(packed_parameters(block, quad)), remainder);
}

@if(half_parameters && !scalars)
fn packed_parameters(block: Block, quad: u32) -> vec2<u32> {
    return parameters[(block.params_start >> 2u) + quad];
}

// The block starts at a whole word.
@if(half_parameters && scalars)
fn packed_parameters(block: Block, quad: u32) -> vec2<u32> {
    let at = (block.params_start >> 1u) + 2u * quad;
    let left = block.elements - 4u * quad;
    var packed = vec2<u32>(parameters[at], 0u);
    if left == 1u {
        packed.x &= 0xffffu;
    }
    if left > 2u {
        packed.y = parameters[at + 1u];
    }
    if left == 3u {
        packed.y &= 0xffffu;
    }
    return packed;
}

// Returns the largest magnitude that a parameter can have.
fn largest_parameter() -> f32 {
    @if(half_parameters) return select(LARGEST_BF16, LARGEST_F16, PARAMETERS_ARE == F16);
    @if(!half_parameters) return LARGEST_F32;
}

fn load_parameters(block: Block, quad: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(bits_of_parameters(block, quad));
}

// Stores the parameters. The key is that of the step's random bits, for stochastic rounding.
@if(writes_parameters && !half_parameters && !scalars)
fn store_parameters(block: Block, quad: u32, value: vec4<f32>, key: u32) {
    parameters[(block.params_start >> 2u) + quad] = bitcast<vec4<u32>>(value);
}

@if(writes_parameters && !half_parameters && scalars)
fn store_parameters(block: Block, quad: u32, value: vec4<f32>, key: u32) {
    let at = block.params_start + 4u * quad;
    let left = block.elements - 4u * quad;
    let bits = bitcast<vec4<u32>>(value);
    parameters[at] = bits.x;
    if left > 1u {
        parameters[at + 1u] = bits.y;
    }
    if left > 2u {
        parameters[at + 2u] = bits.z;
    }
    if left > 3u {
        parameters[at + 3u] = bits.w;
    }
}

// Rounds to the nearest, ties to even.
@if(writes_parameters && nearest)
fn store_parameters(block: Block, quad: u32, value: vec4<f32>, key: u32) {
    store_packed_parameters(block, quad, packed_codes(narrowed(PARAMETERS_ARE, value)));
}

// Rounds to the nearest, ties to even, and keeps the remainder.
@if(writes_parameters && masters && !short_masters)
fn store_parameters(block: Block, quad: u32, value: vec4<f32>, key: u32) {
    let codes = narrowed(PARAMETERS_ARE, value);
    store_packed_parameters(block, quad, packed_codes(codes));
    remainders[block.state_quad + quad] = packed_remainders(remainder(PARAMETERS_ARE, value, codes));
}

// Rounds to a 24-bit master weight at random, with probabilities that make the mean exact.
@if(writes_parameters && short_masters)
fn store_parameters(block: Block, quad: u32, value: vec4<f32>, key: u32) {
    let noise = random_bits(key ^ REMAINDER_KEY, block.first_element + 4u * quad);
    let next = short_masters_of(PARAMETERS_ARE, value, noise);
    store_packed_parameters(block, quad, packed_codes(next.codes));
    remainders[block.state_quad + quad] = next.remainders;
}

// Rounds up or down at random, with probabilities that make the mean exact.
@if(writes_parameters && stochastic)
fn store_parameters(block: Block, quad: u32, value: vec4<f32>, key: u32) {
    let noise = random_bits(key, block.first_element + 4u * quad);
    store_packed_parameters(block, quad, packed_codes(dithered(PARAMETERS_ARE, value, noise)));
}

@if(writes_parameters && half_parameters && !scalars)
fn store_packed_parameters(block: Block, quad: u32, packed: vec2<u32>) {
    parameters[(block.params_start >> 2u) + quad] = packed;
}

// The half of a word after the end of the block keeps its bits. No other invocation writes to that word.
@if(writes_parameters && half_parameters && scalars)
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
