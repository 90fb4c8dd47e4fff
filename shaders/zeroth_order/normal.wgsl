// Standard normal numbers from random bits, by Box and Muller. CPU twin: src/cpu/zeroth_order/normal.rs.
//
// Logarithm, sine and cosine are polynomials, because those of WGSL differ between drivers by many units in the last
// place.

import package::elements::random_bits::random_bits;
import package::layout::Scaled;
import package::scaled::{ln_ratio, scaled};

const TWO_TO_MINUS_23 = 1.1920928955078125e-7;

// Returns the four numbers of a quad: two pairs, each from two words of random bits.
fn normals(key: u32, quad: u32) -> vec4<f32> {
    let bits = random_bits(key, 4u * quad);
    return vec4<f32>(radius(bits.x) * on_circle(bits.y), radius(bits.z) * on_circle(bits.w));
}

// Returns the radius, from a number of 23 bits plus a half, which is exact in f32, above 0 and below 1.
fn radius(bits: u32) -> f32 {
    let u = (f32(bits >> 9u) + 0.5) * TWO_TO_MINUS_23;
    return sqrt(2.0 * ln_ratio(Scaled(1.0, 0), scaled(u, 0)));
}

// Returns a point of the unit circle. Two bits select the quarter. 23 other bits give the angle within 45 degrees of
// the quarter's axis, which is exact until it is multiplied by half of pi.
fn on_circle(bits: u32) -> vec2<f32> {
    let x = ((f32((bits >> 7u) & 0x7fffffu) + 0.5) * TWO_TO_MINUS_23 - 0.5) * 1.57079633;
    let s = x * x;
    let sine = x + x * s * (-0.166666667 + s * (0.00833333333 + s * (-0.000198412698 + s * 2.75573192e-6)));
    let cosine = 1.0
        - s * (0.5 - s * (0.0416666667 - s * (0.00138888889 - s * (2.48015873e-5 - s * 2.75573192e-7))));
    let quarter = bits >> 30u;
    let turned = select(vec2<f32>(cosine, sine), vec2<f32>(sine, cosine), (quarter & 1u) != 0u);
    return select(turned, vec2<f32>(0.0) - turned, vec2<bool>(quarter == 1u || quarter == 2u, quarter >= 2u));
}
