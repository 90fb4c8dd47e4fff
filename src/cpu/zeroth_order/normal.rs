//! Standard normal numbers from random bits, by Box and Muller. Twin of `shaders/zeroth_order/normal.wgsl`, operation
//! by operation.

use crate::element::mix;
use crate::layout::Scaled;

const GOLDEN: u32 = 0x9e37_79b9;
const TWO_TO_MINUS_23: f32 = 1.0 / 8_388_608.0;

/// Returns the four numbers of a quad: two pairs, each from two words of random bits.
#[inline(always)]
pub(super) fn normals(key: u32, quad: u32) -> [f32; 4] {
    let bits = |i: u32| mix(key.wrapping_add(GOLDEN.wrapping_mul(quad.wrapping_mul(4).wrapping_add(i))));
    let ([first, second], [third, fourth]) = (pair(bits(0), bits(1)), pair(bits(2), bits(3)));
    [first, second, third, fourth]
}

/// Fills a slice with the numbers from a quad on.
#[inline(always)]
pub(super) fn fill_normals(key: u32, first_quad: u32, values: &mut [f32]) {
    for (quad, values) in (0u32..).zip(values.chunks_mut(4)) {
        let of_quad = normals(key, first_quad.wrapping_add(quad));
        values.copy_from_slice(&of_quad[..values.len()]);
    }
}

#[inline(always)]
fn pair(first: u32, second: u32) -> [f32; 2] {
    // 23 bits and a half: exact in f32, above 0 and below 1, so that numbers end at √(2 ln 2²⁴) = 5.77.
    let u = ((first >> 9) as f32 + 0.5) * TWO_TO_MINUS_23;
    let radius = (2.0 * Scaled::ONE.ln_ratio(Scaled::new(u, 0))).sqrt();
    let [cosine, sine] = on_circle(second);
    [radius * cosine, radius * sine]
}

/// Returns a point of the unit circle: the quarter from two bits, and within ±45° of its axis the angle from 23 others,
/// which is exact until it is multiplied by π/2.
#[inline(always)]
fn on_circle(bits: u32) -> [f32; 2] {
    let x = ((((bits >> 7) & 0x007f_ffff) as f32 + 0.5) * TWO_TO_MINUS_23 - 0.5) * std::f32::consts::FRAC_PI_2;
    let s = x * x;
    let sine = x + x * s * (-0.166_666_67 + s * (0.008_333_334 + s * (-0.000_198_412_7 + s * 2.755_731_9e-6)));
    let cosine =
        1.0 - s * (0.5 - s * (0.041_666_668 - s * (0.001_388_888_9 - s * (2.480_158_7e-5 - s * 2.755_732e-7))));
    let quarter = bits >> 30;
    let (along, across) = if quarter & 1 == 0 { (cosine, sine) } else { (sine, cosine) };
    let flips = |negative: bool, x: f32| if negative { -x } else { x };
    [flips(quarter == 1 || quarter == 2, along), flips(quarter >= 2, across)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against Box and Muller in f64 from the same bits.
    #[test]
    fn numbers_are_within_four_ulps() {
        let mut most = 0.0f64;
        for quad in 0..200_000 {
            let key = 0x1234_5678;
            let numbers = normals(key, quad);
            for half in 0..2 {
                let word = |i: u32| mix(key.wrapping_add(GOLDEN.wrapping_mul(4 * quad + 2 * half + i)));
                let u = (f64::from(word(0) >> 9) + 0.5) / 8_388_608.0;
                let second = word(1);
                let quarters = f64::from(second >> 30);
                let within = (f64::from((second >> 7) & 0x007f_ffff) + 0.5) / 8_388_608.0 - 0.5;
                let angle = (quarters + within) * std::f64::consts::FRAC_PI_2;
                let radius = (-2.0 * u.ln()).sqrt();
                let exact = [radius * angle.cos(), radius * angle.sin()];
                for (got, exact) in numbers[2 * half as usize..].iter().zip(exact) {
                    // The angle in f64 is off by 1e-16, which counts near the axes.
                    let unit = f64::from(f32::EPSILON) * exact.abs().log2().floor().exp2();
                    most = most.max(((f64::from(*got) - exact).abs() - 1e-14) / unit);
                }
            }
        }
        println!("{most:.2} ulps");
        assert!(most <= 4.0, "{most:.2} ulps");
    }
}
