// Conversion of 16-bit numbers by their bits. It needs no adapter feature, and the results do not depend on how a driver rounds, flushes or
// saturates. A code is a u32 with the 16 bits of one number.

import package::elements::bytes::packed_bytes;
import package::layout::{INFINITY_BITS, MAGNITUDE_BITS};

const F16 = 1u;
const BF16 = 2u;

// Numbers of f16, as codes without the sign.
const F16_NORMAL = 0x400u;
const F16_INFINITY = 0x7c00u;
const F16_NAN = 0x7e00u;
const BF16_INFINITY = 0x7f80u;
const BF16_NAN = 0x7fc0u;
const SIGN_CODE = 0x8000u;
// The exponents of f16 and f32 differ by 112.
const REBIASED = 0x38000000u;
// 2^-14, the smallest normal f16, and 2^16, above every f16, as bits of f32.
const NORMAL_BITS = 0x38800000u;
const BEYOND_BITS = 0x47800000u;

fn codes_of(packed: vec2<u32>) -> vec4<u32> {
    let halves = vec4<u32>(packed.x, packed.x >> 16u, packed.y, packed.y >> 16u);
    return halves & vec4<u32>(0xffffu);
}

fn packed_codes(codes: vec4<u32>) -> vec2<u32> {
    return vec2<u32>(codes.x | (codes.y << 16u), codes.z | (codes.w << 16u));
}

// Returns the bits of exactly this number as f32. A denormal f16 is a normal f32.
fn widened_bits(element: u32, codes: vec4<u32>) -> vec4<u32> {
    if element == BF16 {
        return codes << vec4<u32>(16u);
    }
    let sign = (codes & vec4<u32>(SIGN_CODE)) << vec4<u32>(16u);
    let code = codes & vec4<u32>(0x7fffu);
    let normal = (code << vec4<u32>(13u)) + vec4<u32>(REBIASED);
    let tiny = bitcast<vec4<u32>>(0x1p-24f * vec4<f32>(code));
    var bits = select(normal, tiny, code < vec4<u32>(F16_NORMAL));
    bits = select(bits, normal + vec4<u32>(REBIASED), code >= vec4<u32>(F16_INFINITY));
    return bits | sign;
}

// A magnitude whose upper bits are kept (a code and some bits below it), and the number of its lower bits that are cut off. For a denormal f16
// more bits are cut off, the leading one is explicit, and bits below the reach of every random number are dropped at once.
struct Cut {
    body: vec4<u32>,
    shift: vec4<u32>,
}

fn cut_of(element: u32, magnitude: vec4<u32>, below: u32) -> Cut {
    if element == BF16 {
        return Cut(magnitude, vec4<u32>(16u - below));
    }
    let significand = (magnitude & vec4<u32>(0x7fffffu)) | vec4<u32>(0x800000u);
    let deepest = vec4<u32>(126u - below);
    let depth = deepest - min(magnitude >> vec4<u32>(23u), deepest);
    let shift = min(depth, vec4<u32>(31u));
    let tiny = magnitude < vec4<u32>(NORMAL_BITS);
    return Cut(
        select(magnitude - vec4<u32>(REBIASED), significand >> min(depth - shift, vec4<u32>(31u)), tiny),
        select(vec4<u32>(13u - below), shift, tiny),
    );
}

// Returns the rounded code with its sign. NaN and numbers out of range get their codes.
fn finished(element: u32, bits: vec4<u32>, rounded: vec4<u32>) -> vec4<u32> {
    let sign = (bits >> vec4<u32>(16u)) & vec4<u32>(SIGN_CODE);
    let magnitude = bits & vec4<u32>(MAGNITUDE_BITS);
    var code = rounded;
    var nan = vec4<u32>(BF16_NAN);
    if element == F16 {
        code = select(code, vec4<u32>(F16_INFINITY), magnitude >= vec4<u32>(BEYOND_BITS));
        nan = vec4<u32>(F16_NAN);
    }
    return select(code, nan, magnitude > vec4<u32>(INFINITY_BITS)) | sign;
}

// Returns the nearest code, ties to even.
fn narrowed(element: u32, value: vec4<f32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(value);
    let cut = cut_of(element, bits & vec4<u32>(MAGNITUDE_BITS), 0u);
    let one = vec4<u32>(1u);
    let half = (one << (cut.shift - one)) - one + ((cut.body >> cut.shift) & one);
    return finished(element, bits, (cut.body + half) >> cut.shift);
}

// Returns the code above or below, as the random bits select.
fn dithered(element: u32, value: vec4<f32>, noise: vec4<u32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(value);
    let cut = cut_of(element, bits & vec4<u32>(MAGNITUDE_BITS), 0u);
    let one = vec4<u32>(1u);
    let part = noise & ((one << cut.shift) - one);
    return finished(element, bits, (cut.body + part) >> cut.shift);
}

// Remainders: the difference between an f32 and its nearest code, in ulps of f32 away from 0. For f16 below 2^-14 the unit is 2^-38.

fn remainders_of(packed: vec2<u32>) -> vec4<i32> {
    let tops = vec4<u32>(packed.x << 16u, packed.x, packed.y << 16u, packed.y);
    return bitcast<vec4<i32>>(tops) >> vec4<u32>(16u);
}

fn packed_remainders(remainders: vec4<i32>) -> vec2<u32> {
    return packed_codes(bitcast<vec4<u32>>(remainders) & vec4<u32>(0xffffu));
}

// Returns true if a code is a denormal f16.
fn is_tiny(element: u32, code: vec4<u32>) -> vec4<bool> {
    return code < vec4<u32>(select(0u, F16_NORMAL, element == F16));
}

fn is_infinite(element: u32, code: vec4<u32>) -> vec4<bool> {
    return code >= vec4<u32>(select(BF16_INFINITY, F16_INFINITY, element == F16));
}

fn remainder(element: u32, value: vec4<f32>, codes: vec4<u32>) -> vec4<i32> {
    let code = codes & vec4<u32>(0x7fffu);
    let magnitude = bitcast<vec4<u32>>(value) & vec4<u32>(MAGNITUDE_BITS);
    var ulps = bitcast<vec4<i32>>(magnitude - widened_bits(element, code));
    // A tie that was rounded down has a remainder of 32768, one more than an i16 can hold.
    ulps = min(ulps, vec4<i32>(32767));
    let fixed = vec4<i32>(round(0x1p38f * min(abs(value), vec4<f32>(0x1p-14f))));
    let units = fixed - bitcast<vec4<i32>>(code << vec4<u32>(14u));
    return select(select(ulps, units, is_tiny(element, code)), vec4<i32>(), is_infinite(element, code));
}

// Returns the f32 of a code and its remainder, as bits.
fn joined_bits(element: u32, codes: vec4<u32>, remainders: vec4<i32>) -> vec4<u32> {
    let sign = (codes & vec4<u32>(SIGN_CODE)) << vec4<u32>(16u);
    let code = codes & vec4<u32>(0x7fffu);
    let kept = select(remainders, vec4<i32>(), is_infinite(element, code));
    let ulps = max(bitcast<vec4<i32>>(widened_bits(element, code)) + kept, vec4<i32>());
    let units = max(bitcast<vec4<i32>>(code << vec4<u32>(14u)) + kept, vec4<i32>());
    let fixed = bitcast<vec4<u32>>(0x1p-38f * vec4<f32>(units));
    let bits = select(bitcast<vec4<u32>>(ulps), fixed, is_tiny(element, code));
    return bits | sign;
}

// Master weights of 24 bits: a code, and a signed byte with the number of 256ths of the code's unit that are added, away from 0. They form one
// format, with the exponents of the code and 8 more bits of precision. Rounding a master weight may change its code.

// Number of bits of a 24-bit master weight below its code.
const SHORT = 8u;
// Makes the random bits of remainders differ from those of the rule's memory.
const REMAINDER_KEY = 0x27d4eb2fu;

struct ShortMasters {
    codes: vec4<u32>,
    // Four signed bytes.
    remainders: u32,
}

// Returns the 24-bit master weights above or below, as the random bits select.
fn short_masters_of(element: u32, value: vec4<f32>, noise: vec4<u32>) -> ShortMasters {
    let bits = bitcast<vec4<u32>>(value);
    let cut = cut_of(element, bits & vec4<u32>(MAGNITUDE_BITS), SHORT);
    let one = vec4<u32>(1u);
    let part = noise & ((one << cut.shift) - one);
    // Half a unit of the code is added. The bits below the code are then the remainder plus half a unit.
    let rounded = ((cut.body + part) >> cut.shift) + vec4<u32>(0x80u);
    let codes = finished(element, bits, rounded >> vec4<u32>(SHORT));
    let kept = rounded ^ vec4<u32>(0x80u);
    return ShortMasters(codes, packed_bytes(select(kept, vec4<u32>(), is_infinite(element, codes & vec4<u32>(0x7fffu)))));
}

// Returns the f32 of a code and its 8-bit remainder, as bits.
fn short_joined_bits(element: u32, codes: vec4<u32>, remainders: vec4<i32>) -> vec4<u32> {
    let sign = (codes & vec4<u32>(SIGN_CODE)) << vec4<u32>(16u);
    let code = codes & vec4<u32>(0x7fffu);
    let whole = bitcast<vec4<u32>>(max(bitcast<vec4<i32>>(code << vec4<u32>(SHORT)) + remainders, vec4<i32>()));
    var magnitude = whole << vec4<u32>(16u - SHORT);
    if element == F16 {
        let normal = (whole << vec4<u32>(13u - SHORT)) + vec4<u32>(REBIASED);
        let tiny = bitcast<vec4<u32>>(0x1p-32f * vec4<f32>(whole));
        magnitude = select(normal, tiny, whole < vec4<u32>(F16_NORMAL << SHORT));
    }
    return select(magnitude, widened_bits(element, code), is_infinite(element, code)) | sign;
}
