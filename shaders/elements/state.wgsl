// Momentum and second moment in 8 bits with a scale for each block of 32 elements: State::Bits8 of src/state.rs explains the codes. CPU twin:
// src/cpu/state.rs, operation by operation. All compared numbers are exact or rounded once, and no result of a division or a root decides
// alone, so that a number has the same code on every device.
//
// The buffer holds the codes of the momentum, four to a word, then those of the second moment, then a word for each block of 32. The lower half
// of this word has the upper 16 bits of the momentum's scale, and the upper half those of the scale of √v. Blocks of the plan begin with a
// block of 32, so that 8 neighbouring invocations share one.
//
// `momentum`, `squares`: as in rule.wgsl. `writes_parameters`: the kernel stores them.

import package::elements::bytes::{packed_bytes, signed_bytes};
import package::geometry::WORKGROUP;
@if(writes_parameters) import package::elements::random_bits::random_bits;

@if(writes_parameters) @group(1) @binding(3) var<storage, read_write> state_words: array<u32>;
@if(!writes_parameters) @group(1) @binding(3) var<storage, read> state_words: array<u32>;

// The largest codes, and numbers a little below 1/127² and 1/255², by which scales are found from below.
const MOST_CODE = 127.0;
const MOST_SQUARE_CODE = 255.0;
const CODE_SHARE = 6.2e-5;
const SQUARE_CODE_SHARE = 1.5378e-5;
// The upper 16 bits of 2^-110 and 2^-60, the smallest scales, and of the largest scale of which 127² is finite.
const LEAST_MOMENTUM_SCALE = 0x0880u;
const LEAST_SQUARE_SCALE = 0x2180u;
const MOST_MOMENTUM_SCALE = 0x7882u;
// Makes the random bits differ from those of parameters.
const STATE_KEY = 0x5bd1e995u;

// Returns the number of words of one moment's codes. The buffer may be a little longer than its content.
@if(momentum && squares)
fn code_words() -> u32 {
    return 8u * (arrayLength(&state_words) / 17u);
}

@if(momentum && !squares)
fn code_words() -> u32 {
    return 8u * (arrayLength(&state_words) / 9u);
}

@if(!momentum && squares)
fn code_words() -> u32 {
    return 8u * (arrayLength(&state_words) / 9u);
}

fn square_codes_at(quad: u32) -> u32 {
    @if(momentum) return code_words() + quad;
    @if(!momentum) return quad;
}

fn scale_at(quad: u32) -> u32 {
    @if(momentum && squares) return 2u * code_words() + (quad >> 3u);
    @if(momentum && !squares) return code_words() + (quad >> 3u);
    @if(!momentum && squares) return code_words() + (quad >> 3u);
}

fn scale_of_bits(bits: u32) -> f32 {
    return bitcast<f32>(bits << 16u);
}

@if(momentum)
fn decoded_momentum(quad: u32) -> vec4<f32> {
    let code = vec4<f32>(signed_bytes(state_words[quad]));
    return code * abs(code) * scale_of_bits(state_words[scale_at(quad)]);
}

@if(squares)
fn decoded_squares(quad: u32) -> vec4<f32> {
    let bytes = vec4<u32>(state_words[square_codes_at(quad)]) >> vec4<u32>(0u, 8u, 16u, 24u);
    let code = vec4<f32>(bytes & vec4<u32>(255u));
    let root = code * code * scale_of_bits(state_words[scale_at(quad)] >> 16u);
    return root * root;
}

// New moments of this invocation's quad, until the whole block of 32 is known.
@if(writes_parameters && momentum) var<private> momentum_to_keep: vec4<f32>;
@if(writes_parameters && squares) var<private> squares_to_keep: vec4<f32>;
@if(writes_parameters && momentum) var<workgroup> largest_momentum: array<f32, WORKGROUP>;
@if(writes_parameters && squares) var<workgroup> largest_squares_of: array<f32, WORKGROUP>;

@if(writes_parameters)
fn remember(m: vec4<f32>, v: vec4<f32>) {
    @if(momentum) momentum_to_keep = m;
    @if(squares) squares_to_keep = v;
}

fn largest_lane(x: vec4<f32>) -> f32 {
    return max(max(x.x, x.y), max(x.z, x.w));
}

// Returns the upper 16 bits of the scale of a block with this largest magnitude: the smallest scale for which the magnitude has a code.
@if(momentum)
fn scale_bits(largest: f32) -> u32 {
    var bits = bitcast<u32>(CODE_SHARE * largest) >> 16u;
    bits += select(0u, 1u, MOST_CODE * MOST_CODE * scale_of_bits(bits) < largest);
    bits += select(0u, 1u, MOST_CODE * MOST_CODE * scale_of_bits(bits) < largest);
    return clamp(bits, LEAST_MOMENTUM_SCALE, MOST_MOMENTUM_SCALE);
}

// Returns the upper 16 bits of the scale of the square root, from a block's largest square.
@if(squares)
fn square_scale_bits(largest: f32) -> u32 {
    var bits = bitcast<u32>(SQUARE_CODE_SHARE * sqrt(largest)) >> 16u;
    for (var i = 0u; i < 2u; i++) {
        let root = MOST_SQUARE_CODE * MOST_SQUARE_CODE * scale_of_bits(bits);
        bits += select(0u, 1u, root * root < largest);
    }
    return max(bits, LEAST_SQUARE_SCALE);
}

// Returns the position of the threshold between two neighbouring codes, in (0, 1].
fn threshold_of(bits: vec4<u32>) -> vec4<f32> {
    return vec4<f32>((bits & vec4<u32>(0x7fffu)) + vec4<u32>(1u)) * 0.000030517578125;
}

// Returns the threshold above a code, in squares of codes. The product is exact, so a fused multiplication and addition has the same result.
fn code_square_between(code: vec4<f32>, threshold: vec4<f32>) -> vec4<f32> {
    return code * code + threshold * (2.0 * code + 1.0);
}

@if(momentum)
fn codes_of_momentum(m: vec4<f32>, scale: f32, threshold: vec4<f32>) -> u32 {
    let size = abs(m);
    var code = floor(sqrt(size * (1.0 / scale)));
    code = select(code, code - 1.0, code * code * scale > size);
    let next = code + 1.0;
    code = select(code, next, next * next * scale <= size);
    code = select(code, code + 1.0, code_square_between(code, threshold) * scale <= size);
    let whole = vec4<i32>(min(code, vec4<f32>(MOST_CODE)));
    return packed_bytes(bitcast<vec4<u32>>(select(whole, -whole, m < vec4<f32>())));
}

@if(squares)
fn square_at(code_square: vec4<f32>, scale: f32) -> vec4<f32> {
    let root = code_square * scale;
    return root * root;
}

@if(squares)
fn codes_of_squares(v: vec4<f32>, scale: f32, threshold: vec4<f32>) -> u32 {
    var code = floor(sqrt(sqrt(v) * (1.0 / scale)));
    code = select(code, code - 1.0, square_at(code * code, scale) > v);
    let next = code + 1.0;
    code = select(code, next, square_at(next * next, scale) <= v);
    code = select(code, code + 1.0, square_at(code_square_between(code, threshold), scale) <= v);
    // The moment is a divisor and must not become 0. The square of the threshold above 0 may be 0 in f32.
    code = select(vec4<f32>(), clamp(code, vec4<f32>(1.0), vec4<f32>(MOST_SQUARE_CODE)), v > vec4<f32>());
    return packed_bytes(vec4<u32>(code));
}

// Stores the new moments of a quad, if there is one. All invocations of the workgroup must call this function together, even without a quad.
@if(writes_parameters)
fn keep_state(lane: u32, quad: u32, is_there: bool, key: u32, first_element: u32) {
    @if(momentum) largest_momentum[lane] = select(0.0, largest_lane(abs(momentum_to_keep)), is_there);
    @if(squares) largest_squares_of[lane] = select(0.0, largest_lane(squares_to_keep), is_there);
    workgroupBarrier();
    let first = lane & ~7u;
    @if(momentum) var largest_m = 0.0;
    @if(squares) var largest_v = 0.0;
    for (var i = 0u; i < 8u; i++) {
        @if(momentum) largest_m = max(largest_m, largest_momentum[first + i]);
        @if(squares) largest_v = max(largest_v, largest_squares_of[first + i]);
    }
    // The next iteration overwrites this memory.
    workgroupBarrier();
    if !is_there {
        return;
    }
    let noise = random_bits(key ^ STATE_KEY, first_element);
    var word = 0u;
    @if(momentum) {
        let bits = scale_bits(largest_m);
        word |= bits;
        state_words[quad] = codes_of_momentum(momentum_to_keep, scale_of_bits(bits), threshold_of(noise));
    }
    @if(squares) {
        let bits = square_scale_bits(largest_v);
        word |= bits << 16u;
        let threshold = threshold_of(noise >> vec4<u32>(16u));
        state_words[square_codes_at(quad)] = codes_of_squares(squares_to_keep, scale_of_bits(bits), threshold);
    }
    if lane == first {
        state_words[scale_at(quad)] = word;
    }
}
