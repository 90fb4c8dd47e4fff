//! Numbers of 16 bits and back: twin of `shaders/elements/half.wgsl`, which explains cuts and remainders. Codes have the same bits there.

use half::{bf16, f16};

use crate::element::mix;
use crate::layout::{INFINITY_BITS, MAGNITUDE_BITS};
use crate::plan::Encoding;

const F16_NORMAL: u32 = 0x400;
const F16_INFINITY: u32 = 0x7c00;
const F16_NAN: u32 = 0x7e00;
const BF16_INFINITY: u32 = 0x7f80;
const BF16_NAN: u32 = 0x7fc0;
const SIGN_CODE: u32 = 0x8000;
const MAGNITUDE_CODE: u32 = 0x7fff;
/// The exponents of f16 and f32 differ by 112.
const REBIASED: u32 = 112 << 23;
/// 2⁻¹⁴, the smallest normal f16.
const NORMAL_BITS: u32 = 0x3880_0000;
/// 2¹⁶, beyond every f16.
const BEYOND_BITS: u32 = 0x4780_0000;
const TWO_TO_MINUS_24: f32 = 1.0 / 16_777_216.0;
const TWO_TO_38: f32 = 274_877_906_944.0;
/// 1.5 · 2²³: what is added to it is rounded to a whole number, ties to even.
const ROUNDER: f32 = 12_582_912.0;

/// A number of 16 bits. A trait, so that a loop is compiled for each kind.
pub(crate) trait Half: Copy + Default {
    /// True for f16, false for bf16.
    const IS_F16: bool;

    /// Its bits.
    fn code(self) -> u32;

    /// The number of these bits, of which the lower 16 count.
    fn from_code(code: u32) -> Self;
}

impl Half for f16 {
    const IS_F16: bool = true;

    #[inline(always)]
    fn code(self) -> u32 {
        u32::from(self.to_bits())
    }

    #[inline(always)]
    fn from_code(code: u32) -> Self {
        f16::from_bits(code as u16)
    }
}

impl Half for bf16 {
    const IS_F16: bool = false;

    #[inline(always)]
    fn code(self) -> u32 {
        u32::from(self.to_bits())
    }

    #[inline(always)]
    fn from_code(code: u32) -> Self {
        bf16::from_bits(code as u16)
    }
}

/// Storage element that converts to f32. Generic parameter of the inner loops, so that each element type is compiled separately.
pub(crate) trait Number: Copy + Default {
    /// The f32.
    fn wide(self) -> f32;
}

impl Number for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl<H: Half> Number for H {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(widened_bits::<H>(self.code()))
    }
}

/// Exactly the number, as bits.
#[inline(always)]
fn widened_bits<H: Half>(code: u32) -> u32 {
    if !H::IS_F16 {
        return code << 16;
    }
    let sign = (code & SIGN_CODE) << 16;
    let code = code & MAGNITUDE_CODE;
    let normal = normal_bits::<H>(code);
    let tiny = (TWO_TO_MINUS_24 * code as f32).to_bits();
    let bits = if code < F16_NORMAL { tiny } else { normal };
    let bits = if code >= F16_INFINITY { normal + REBIASED } else { bits };
    bits | sign
}

/// The bits of a number without a sign that is normal, or 0 of bf16.
#[inline(always)]
fn normal_bits<H: Half>(code: u32) -> u32 {
    if H::IS_F16 { (code << 13) + REBIASED } else { code << 16 }
}

/// What is kept above so many bits that are cut off.
#[inline(always)]
fn cut_of<H: Half>(magnitude: u32) -> (u32, u32) {
    if !H::IS_F16 {
        return (magnitude, 16);
    }
    let significand = magnitude & 0x7f_ffff | 0x80_0000;
    let depth = 126 - (magnitude >> 23).min(126);
    let shift = depth.min(31);
    if magnitude < NORMAL_BITS {
        (significand >> (depth - shift).min(31), shift)
    } else {
        (magnitude.wrapping_sub(REBIASED), 13)
    }
}

/// What is rounded, with the sign, and with what is not a number of this kind.
#[inline(always)]
fn finished<H: Half>(bits: u32, rounded: u32) -> u32 {
    let sign = bits >> 16 & SIGN_CODE;
    let magnitude = bits & MAGNITUDE_BITS;
    let code = if H::IS_F16 && magnitude >= BEYOND_BITS { F16_INFINITY } else { rounded };
    let nan = if H::IS_F16 { F16_NAN } else { BF16_NAN };
    let code = if magnitude > INFINITY_BITS { nan } else { code };
    code | sign
}

/// The nearest code, ties to even.
#[inline(always)]
fn narrowed<H: Half>(value: f32) -> u32 {
    let bits = value.to_bits();
    let magnitude = bits & MAGNITUDE_BITS;
    let (body, shift) = if H::IS_F16 { (magnitude.wrapping_sub(REBIASED), 13) } else { (magnitude, 16) };
    let half = (1 << (shift - 1)) - 1 + (body >> shift & 1);
    let normal = body.wrapping_add(half) >> shift;
    // The lowest bit of 1/2 is the unit of a denormal f16. The kernel shifts, for a driver may round a sum another way; here that would
    // take a shift of its own for each lane.
    let tiny = (value.abs() + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let rounded = if H::IS_F16 && magnitude < NORMAL_BITS { tiny } else { normal };
    finished::<H>(bits, rounded)
}

/// The code above or below, as the random bits have it.
#[inline(always)]
fn dithered<H: Half>(value: f32, noise: u32) -> u32 {
    let bits = value.to_bits();
    let (body, shift) = cut_of::<H>(bits & MAGNITUDE_BITS);
    let part = noise & ((1 << shift) - 1);
    finished::<H>(bits, body.wrapping_add(part) >> shift)
}

#[inline(always)]
fn is_infinite<H: Half>(code: u32) -> bool {
    let infinity = if H::IS_F16 { F16_INFINITY } else { BF16_INFINITY };
    code >= infinity
}

/// Returns the remainder: the difference between an f32 master weight and its nearest 16-bit number.
#[inline(always)]
fn remainder<H: Half>(value: f32, code: u32) -> i16 {
    let code = code & MAGNITUDE_CODE;
    let magnitude = value.to_bits() & MAGNITUDE_BITS;
    let ulps = magnitude.wrapping_sub(normal_bits::<H>(code)).cast_signed().min(i32::from(i16::MAX));
    // Exact up to the last sum, for the code is the nearest. That rounds, where a cast would go element by element.
    let fixed = TWO_TO_38 * (value.abs() - TWO_TO_MINUS_24 * code as f32) + ROUNDER;
    let units = fixed.to_bits().wrapping_sub(ROUNDER.to_bits()).cast_signed();
    let kept = if H::IS_F16 && code < F16_NORMAL { units } else { ulps };
    if is_infinite::<H>(code) { 0 } else { kept as i16 }
}

/// The f32 of a code and its remainder.
#[inline(always)]
fn joined<H: Half>(code: u32, remainder: i16) -> f32 {
    let sign = (code & SIGN_CODE) << 16;
    let code = code & MAGNITUDE_CODE;
    let kept = i32::from(remainder);
    let up = match (is_infinite::<H>(code), H::IS_F16) {
        (false, _) => kept,
        (true, true) => REBIASED.cast_signed(),
        (true, false) => 0,
    };
    let ulps = normal_bits::<H>(code).cast_signed().wrapping_add(up).max(0);
    let units = ((code << 14).cast_signed() + kept).max(0);
    let fixed = units as f32 / TWO_TO_38;
    let bits = if H::IS_F16 && code < F16_NORMAL { fixed.to_bits() } else { ulps.cast_unsigned() };
    f32::from_bits(bits | sign)
}

/// Numbers as f32.
#[inline(always)]
pub(crate) fn decode<H: Half>(halves: &[H], values: &mut [f32]) {
    for (value, half) in values.iter_mut().zip(halves) {
        *value = half.wide();
    }
}

/// Parameters as f32, with their remainders where there are any.
#[inline(always)]
pub(crate) fn decode_parameters<H: Half>(halves: &[H], remainders: &[i16], values: &mut [f32]) {
    if remainders.is_empty() {
        return decode(halves, values);
    }
    for ((value, half), &remainder) in values.iter_mut().zip(halves).zip(remainders) {
        *value = joined::<H>(half.code(), remainder);
    }
}

/// New parameters in 16 bits. The key and the index of the first element are for [`Rounding::Stochastic`].
#[inline(always)]
pub(crate) fn encode_parameters<H: Half>(
    encoding: Encoding,
    values: &[f32],
    halves: &mut [H],
    remainders: &mut [i16],
    key: u32,
    first_element: u32,
) {
    match encoding {
        Encoding::Exact | Encoding::Nearest => {
            for (half, &value) in halves.iter_mut().zip(values) {
                *half = H::from_code(narrowed::<H>(value));
            }
        }
        Encoding::Masters => {
            for ((half, kept), &value) in halves.iter_mut().zip(remainders).zip(values) {
                let code = narrowed::<H>(value);
                *half = H::from_code(code);
                *kept = remainder::<H>(value, code);
            }
        }
        Encoding::Stochastic => {
            for ((half, &value), i) in halves.iter_mut().zip(values).zip(0u32..) {
                let noise = random_bits(key, first_element.wrapping_add(i));
                *half = H::from_code(dithered::<H>(value, noise));
            }
        }
    }
}

/// The random bits of an element.
#[inline(always)]
fn random_bits(key: u32, element: u32) -> u32 {
    mix(key.wrapping_add(element.wrapping_mul(0x9e37_79b9)))
}

/// What is documented of [`Rounding::Masters`] stands with it; here is the proof.
#[cfg(test)]
mod tests {
    use super::*;

    const TWO_TO_MINUS_14: f32 = f32::from_bits(NORMAL_BITS);

    /// Every f32 whose upper 16 bits are any and whose lower ones are around every boundary.
    fn values() -> impl Iterator<Item = f32> {
        let lows = [
            0, 1, 2, 0xfff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x2fff, 0x3000, 0x3001, 0x7fff, 0x8000, 0x8001, 0xefff,
            0xf000, 0xf001, 0xffff,
        ];
        (0..=0xffffu32).flat_map(move |high| lows.map(|low| f32::from_bits(high << 16 | low)))
    }

    #[test]
    fn codes_are_those_of_the_crate_half() {
        for code in 0..=0xffffu32 {
            let wide = f32::from_bits(widened_bits::<f16>(code));
            let half = f16::from_code(code).to_f32();
            assert!(wide.to_bits() == half.to_bits() || wide.is_nan() && half.is_nan(), "{code:#x}");
            let wide = f32::from_bits(widened_bits::<bf16>(code));
            let half = bf16::from_code(code).to_f32();
            assert!(wide.to_bits() == half.to_bits() || wide.is_nan() && half.is_nan(), "{code:#x}");
        }
        for value in values() {
            let (short, half) = (f16::from_code(narrowed::<f16>(value)), f16::from_f32(value));
            assert!(
                short.to_bits() == half.to_bits() || short.is_nan() && half.is_nan(),
                "{value:e}: {short:e} instead of {half:e}"
            );
            let (short, half) = (bf16::from_code(narrowed::<bf16>(value)), bf16::from_f32(value));
            assert!(
                short.to_bits() == half.to_bits() || short.is_nan() && half.is_nan(),
                "{value:e}: {short:e} instead of {half:e}"
            );
        }
    }

    fn master<H: Half>(value: f32) -> f32 {
        let code = narrowed::<H>(value);
        joined::<H>(code, remainder::<H>(value, code))
    }

    #[test]
    fn masters_are_as_exact_as_documented() {
        for value in values().filter(|value| value.is_finite()) {
            let kept = master::<bf16>(value);
            let tie_down = value.to_bits() & 0x1_ffff == 0x8000;
            let expected = f32::from_bits(value.to_bits() - u32::from(tie_down));
            if value.abs() < f32::from_bits(0x7f7f_8000) {
                assert_eq!(kept.to_bits(), expected.to_bits(), "bf16 {value:e}");
            }

            let kept = master::<f16>(value);
            if value.abs() >= 65520.0 {
                assert!(kept.is_infinite(), "f16 {value:e}: {kept:e}");
            } else if value.abs() >= TWO_TO_MINUS_14 {
                assert_eq!(kept.to_bits(), value.to_bits(), "f16 {value:e}");
            } else {
                let units = (f64::from(value) * f64::from(TWO_TO_38)).round_ties_even();
                let expected = units / f64::from(TWO_TO_38);
                // Just below 2^-14 the code may be a normal one, whose remainder is exact.
                let exact = f64::from(kept) == f64::from(value);
                assert!(exact || f64::from(kept) == expected, "f16 {value:e}: {kept:e}");
            }
        }
    }

    #[test]
    fn a_parameter_that_nobody_moves_stays() {
        for code in 0..=0xffffu32 {
            for noise in [0, 1, 0x1fff, 0xffff, 0x1234_5678, u32::MAX] {
                let wide = f32::from_bits(widened_bits::<f16>(code));
                if !wide.is_nan() {
                    assert_eq!(dithered::<f16>(wide, noise), code);
                    assert_eq!((narrowed::<f16>(wide), remainder::<f16>(wide, code)), (code, 0));
                }
                let wide = f32::from_bits(widened_bits::<bf16>(code));
                if !wide.is_nan() {
                    assert_eq!(dithered::<bf16>(wide, noise), code);
                    assert_eq!((narrowed::<bf16>(wide), remainder::<bf16>(wide, code)), (code, 0));
                }
            }
        }
    }

    /// The mean over 2^16 hashes is the value, within five standard errors; both neighbours are drawn and nothing else.
    #[test]
    fn the_mean_of_dithered_values_is_the_value() {
        fn check<H: Half>(value: f32) {
            let draws = 1 << 16;
            let wide = |code: u32| f64::from(f32::from_bits(widened_bits::<H>(code)));
            let nearest = wide(narrowed::<H>(value));
            let codes = (0..draws).map(|i| dithered::<H>(value, random_bits(7, i)));
            let values: Vec<f64> = codes.map(wide).collect();
            let (least, most) =
                values.iter().fold((f64::MAX, f64::MIN), |(least, most), &x| (least.min(x), most.max(x)));
            assert!(least <= f64::from(value) && f64::from(value) <= most, "{value:e}: {least:e}, {most:e}");
            assert!(values.iter().all(|&x| x == least || x == most));
            assert!(nearest == least || nearest == most);
            let mean = values.iter().sum::<f64>() / f64::from(draws);
            let error = (most - least) / 2.0 / f64::from(draws).sqrt();
            assert!((mean - f64::from(value)).abs() <= 5.0 * error, "{value:e}: mean {mean:e}");
        }
        for value in [1.003, -3.3e-3, 7.7e4, 1.1e-6, -2.9e-8, 5e-9, 1.0001, 0.3] {
            check::<bf16>(value);
            if value < 6e4 {
                check::<f16>(value);
            }
        }
    }

    /// Every seed and step has its own numbers.
    #[test]
    fn keys_differ() {
        let mut keys = std::collections::HashSet::new();
        for seed in 0..64 {
            for low in 0..64 {
                for high in 0..4 {
                    keys.insert(crate::element::rounding_key(seed, low, high));
                }
            }
        }
        assert!(keys.len() >= 64 * 64 * 4 - 2, "{}", keys.len());
        assert_ne!(crate::element::seed_of_rank(5, 1), 5);
    }
}
