// Sums of squares of numbers of any size, in one sweep: squares are added up at three scales, and the largest magnitude selects the valid
// sum afterwards (J. Blue, TOMS 4, 1978).

import package::layout::{Squares, INFINITY_BITS, MAGNITUDE_BITS, SMALL_BITS, BIG_BITS};
import package::reduction::totals::no_squares;

fn magnitude_bits(v: vec4<f32>) -> vec4<u32> {
    return bitcast<vec4<u32>>(v) & vec4<u32>(MAGNITUDE_BITS);
}

fn largest_of(bits: vec4<u32>) -> u32 {
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

fn across(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

// Squares of numbers up to 2^-40 and from 2^40 on are multiplied by 2^160 and 2^-160 before they are added.
const UP = 0x1p80;
const DOWN = 0x1p-80;
const SCALE_EXPONENT = 80;

struct ScaledSquares {
    largest: vec4<u32>,
    plain: vec4<f32>,
    small: vec4<f32>,
    big: vec4<f32>,
}

fn add_squares_of(g: vec4<f32>, squares: ptr<function, ScaledSquares>) {
    (*squares).largest = max((*squares).largest, magnitude_bits(g));
    (*squares).plain += g * g;
    let up = UP * g;
    (*squares).small += up * up;
    let down = DOWN * g;
    (*squares).big += down * down;
}

fn trusted(squares: ScaledSquares) -> Squares {
    let largest = largest_of(squares.largest);
    if largest == 0u || largest >= INFINITY_BITS {
        return no_squares();
    }
    // add_squares brings these sums and sums of other invocations at the next scale to one exponent, by a factor that must be in the range
    // of f32. 2^160 is not. Sums near the next scale are therefore returned at an exponent halfway to it. The factors here are exact.
    if largest < SMALL_BITS {
        let small = across(squares.small);
        if small < 1.0 {
            return Squares(small, -SCALE_EXPONENT);
        }
        return Squares(DOWN * small, -SCALE_EXPONENT / 2);
    }
    if largest > BIG_BITS {
        let big = across(squares.big);
        if big >= 1.0 {
            return Squares(big, SCALE_EXPONENT);
        }
        return Squares(UP * big, SCALE_EXPONENT / 2);
    }
    return Squares(across(squares.plain), 0);
}
