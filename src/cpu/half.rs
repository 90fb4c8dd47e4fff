//! Conversion of 16-bit numbers. Twin of `shaders/elements/half.wgsl`, which explains cuts and remainders. Both give the same bits.

use std::ops::Range;

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
/// 2¹⁶, above every f16.
const BEYOND_BITS: u32 = 0x4780_0000;
const TWO_TO_MINUS_24: f32 = 1.0 / 16_777_216.0;
const TWO_TO_MINUS_32: f32 = 1.0 / 4_294_967_296.0;
const TWO_TO_38: f32 = 274_877_906_944.0;
/// 1.5 · 2²³. A number that is added to it is rounded to a whole number, ties to even.
const ROUNDER: f32 = 12_582_912.0;

/// Number of bits of a 24-bit master weight below those of its parameter.
const SHORT: u32 = 8;
/// Makes the random bits of remainders differ from those of the rule's memory.
const REMAINDER_KEY: u32 = 0x27d4_eb2f;

/// Number of 16-bit numbers that are converted at once.
const ROW: usize = 16;

/// A 16-bit number. It is a trait, so that each loop is compiled for each type.
pub(crate) trait Half: Copy + Default + bytemuck::Pod {
    /// True for f16, false for bf16.
    const IS_F16: bool;

    /// Returns the bits of the number.
    fn code(self) -> u32;

    /// Returns the number with these bits. Only the lower 16 bits are used.
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

/// Storage element that converts to f32. It is the generic parameter of the inner loops, which are compiled for each element type.
pub(crate) trait Number: Copy + Default {
    /// Returns the number as f32.
    fn wide(self) -> f32;

    /// Returns the numbers of a row as f32.
    #[inline(always)]
    fn wide_row(row: [Self; ROW]) -> [f32; ROW] {
        one_by_one(row)
    }
}

/// Converts a row element by element. The method `map` of arrays is not inlined into code for the processor's vector instructions.
#[inline(always)]
fn one_by_one<N: Number>(row: [N; ROW]) -> [f32; ROW] {
    let mut wide = [0.0; ROW];
    for j in 0..ROW {
        wide[j] = row[j].wide();
    }
    wide
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

    #[inline(always)]
    fn wide_row(row: [Self; ROW]) -> [f32; ROW] {
        if H::IS_F16
            && let Some(f16s) = F16s::find()
        {
            return f16s.wide(row);
        }
        one_by_one(row)
    }
}

/// The processor's AVX-512 instructions for rows of f16. On other processors rows are converted by integer arithmetic.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct F16s(pulp::core_arch::x86::Avx512f);

#[cfg(target_arch = "x86_64")]
impl F16s {
    #[inline(always)]
    fn find() -> Option<Self> {
        pulp::core_arch::x86::Avx512f::try_new().map(F16s)
    }

    #[inline(always)]
    fn wide<H: Half>(self, row: [H; ROW]) -> [f32; ROW] {
        pulp::cast(self.0._mm512_cvtph_ps(pulp::cast(row)))
    }

    /// Rounds to the nearest numbers, ties to even.
    #[inline(always)]
    fn nearest<H: Half>(self, row: [f32; ROW]) -> [H; ROW] {
        pulp::cast(self.0._mm512_cvtps_ph::<0>(pulp::cast(row)))
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy)]
enum F16s {}

#[cfg(not(target_arch = "x86_64"))]
impl F16s {
    fn find() -> Option<Self> {
        None
    }

    fn wide<H>(self, _: [H; ROW]) -> [f32; ROW] {
        match self {}
    }

    fn nearest<H>(self, _: [f32; ROW]) -> [H; ROW] {
        match self {}
    }
}

/// Returns the bits of exactly this number as f32.
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

/// Returns the f32 bits of a number without a sign. An f16 must be normal.
#[inline(always)]
fn normal_bits<H: Half>(code: u32) -> u32 {
    if H::IS_F16 { (code << 13) + REBIASED } else { code << 16 }
}

/// Splits a magnitude. Returns a number whose upper bits are kept (a code and `BELOW` bits below it), and the number of its lower bits that
/// are cut off.
#[inline(always)]
fn cut_of<H: Half, const BELOW: u32>(magnitude: u32) -> (u32, u32) {
    if !H::IS_F16 {
        return (magnitude, 16 - BELOW);
    }
    let significand = magnitude & 0x7f_ffff | 0x80_0000;
    let depth = 126 - BELOW - (magnitude >> 23).min(126 - BELOW);
    let shift = depth.min(31);
    if magnitude < NORMAL_BITS {
        (significand >> (depth - shift).min(31), shift)
    } else {
        (magnitude.wrapping_sub(REBIASED), 13 - BELOW)
    }
}

/// Returns the rounded code with its sign. Unless all numbers are known to be in range, NaN and numbers out of range get their codes.
#[inline(always)]
fn finished<H: Half, const IN_RANGE: bool>(bits: u32, rounded: u32) -> u32 {
    let sign = bits >> 16 & SIGN_CODE;
    if IN_RANGE {
        return rounded | sign;
    }
    let magnitude = bits & MAGNITUDE_BITS;
    let code = if H::IS_F16 && magnitude >= BEYOND_BITS { F16_INFINITY } else { rounded };
    let nan = if H::IS_F16 { F16_NAN } else { BF16_NAN };
    let code = if magnitude > INFINITY_BITS { nan } else { code };
    code | sign
}

/// Returns the nearest code, ties to even.
#[inline(always)]
fn narrowed<H: Half, const IN_RANGE: bool>(value: f32) -> u32 {
    let bits = value.to_bits();
    if IN_RANGE && !H::IS_F16 {
        return bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    }
    let magnitude = bits & MAGNITUDE_BITS;
    let (body, shift) = if H::IS_F16 { (magnitude.wrapping_sub(REBIASED), 13) } else { (magnitude, 16) };
    let half = (1 << (shift - 1)) - 1 + (body >> shift & 1);
    let normal = body.wrapping_add(half) >> shift;
    // The lowest bit of 1/2 is the unit of a denormal f16. The kernel shifts instead, because a driver may round a sum differently. Here
    // that would take a different shift for each lane.
    let tiny = (value.abs() + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let rounded = if H::IS_F16 && magnitude < NORMAL_BITS { tiny } else { normal };
    finished::<H, IN_RANGE>(bits, rounded)
}

/// Returns the code above or below, as the random bits select.
#[inline(always)]
fn dithered<H: Half, const IN_RANGE: bool>(value: f32, noise: u32) -> u32 {
    let bits = value.to_bits();
    let (body, shift) = cut_of::<H, 0>(bits & MAGNITUDE_BITS);
    let part = noise & ((1 << shift) - 1);
    finished::<H, IN_RANGE>(bits, body.wrapping_add(part) >> shift)
}

#[inline(always)]
fn is_infinite<H: Half>(code: u32) -> bool {
    let infinity = if H::IS_F16 { F16_INFINITY } else { BF16_INFINITY };
    code >= infinity
}

/// Returns the remainder: the difference between an f32 master weight and its nearest 16-bit number.
#[inline(always)]
fn remainder<H: Half, const IN_RANGE: bool>(value: f32, code: u32) -> i16 {
    if IN_RANGE && !H::IS_F16 {
        // The signs cancel.
        let ulps = value.to_bits().wrapping_sub(code << 16).cast_signed();
        return ulps.min(i32::from(i16::MAX)) as i16;
    }
    let code = code & MAGNITUDE_CODE;
    let magnitude = value.to_bits() & MAGNITUDE_BITS;
    let ulps = magnitude.wrapping_sub(normal_bits::<H>(code)).cast_signed().min(i32::from(i16::MAX));
    // All operations but the last sum are exact, because the code is the nearest. The sum rounds. A cast would not be vectorised.
    let fixed = TWO_TO_38 * (value.abs() - TWO_TO_MINUS_24 * code as f32) + ROUNDER;
    let units = fixed.to_bits().wrapping_sub(ROUNDER.to_bits()).cast_signed();
    let kept = if H::IS_F16 && code < F16_NORMAL { units } else { ulps };
    if !IN_RANGE && is_infinite::<H>(code) { 0 } else { kept as i16 }
}

/// Returns the f32 of a code and its remainder.
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

/// Returns the code and the remainder of a 24-bit master weight. It is rounded up or down as the random bits select, and its upper 16 bits are
/// the code.
#[inline(always)]
fn short_master<H: Half, const IN_RANGE: bool>(value: f32, noise: u32) -> (u32, i8) {
    let bits = value.to_bits();
    let (body, shift) = if IN_RANGE && !H::IS_F16 {
        // The sign is included, because no sum carries into it.
        (bits, 16 - SHORT)
    } else {
        cut_of::<H, SHORT>(bits & MAGNITUDE_BITS)
    };
    let part = noise & ((1 << shift) - 1);
    // Half a unit of the code is added. The bits below the code are then the remainder plus half a unit.
    let rounded = (body.wrapping_add(part) >> shift) + 0x80;
    let code = finished::<H, IN_RANGE>(bits, rounded >> SHORT);
    let kept = (rounded as u8 ^ 0x80).cast_signed();
    (code, if !IN_RANGE && is_infinite::<H>(code & MAGNITUDE_CODE) { 0 } else { kept })
}

/// Returns the f32 of a code and its 8-bit remainder.
#[inline(always)]
fn short_joined<H: Half>(code: u32, remainder: i8) -> f32 {
    let sign = (code & SIGN_CODE) << 16;
    let code = code & MAGNITUDE_CODE;
    let whole = ((code << SHORT).cast_signed() + i32::from(remainder)).max(0);
    let bits = whole.cast_unsigned();
    let normal = if H::IS_F16 { (bits << (13 - SHORT)) + REBIASED } else { bits << (16 - SHORT) };
    let tiny = (TWO_TO_MINUS_32 * whole as f32).to_bits();
    let magnitude = if H::IS_F16 && bits < F16_NORMAL << SHORT { tiny } else { normal };
    let magnitude = if is_infinite::<H>(code) { widened_bits::<H>(code) } else { magnitude };
    f32::from_bits(magnitude | sign)
}

/// Remainders of the master weights of 16-bit parameters, in 16 or 8 bits. The other slice is empty, and both are if no remainders are kept.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Remainders<'a> {
    pub(crate) long: &'a [i16],
    pub(crate) short: &'a [i8],
}

impl Remainders<'_> {
    #[inline(always)]
    pub(crate) fn range(self, range: Range<usize>) -> Self {
        Remainders {
            long: self.long.get(range.clone()).unwrap_or_default(),
            short: self.short.get(range).unwrap_or_default(),
        }
    }
}

/// [`Remainders`] that a step changes.
#[derive(Debug)]
pub(crate) struct RemaindersMut<'a> {
    pub(crate) long: &'a mut [i16],
    pub(crate) short: &'a mut [i8],
}

impl RemaindersMut<'_> {
    #[inline(always)]
    pub(crate) fn as_ref(&self) -> Remainders<'_> {
        Remainders { long: self.long, short: self.short }
    }

    #[inline(always)]
    pub(crate) fn range_mut(&mut self, range: Range<usize>) -> RemaindersMut<'_> {
        RemaindersMut {
            long: self.long.get_mut(range.clone()).unwrap_or_default(),
            short: self.short.get_mut(range).unwrap_or_default(),
        }
    }

    #[inline(always)]
    pub(crate) fn split_at(self, middle: usize) -> (Self, Self) {
        let (long, long_after) = self.long.split_at_mut(middle.min(self.long.len()));
        let (short, short_after) = self.short.split_at_mut(middle.min(self.short.len()));
        (RemaindersMut { long, short }, RemaindersMut { long: long_after, short: short_after })
    }
}

/// Decodes numbers to f32.
#[inline(always)]
pub(crate) fn decode<H: Half>(mut halves: &[H], mut values: &mut [f32]) {
    if H::IS_F16
        && let Some(f16s) = F16s::find()
    {
        let rows;
        (rows, halves) = halves.as_chunks::<ROW>();
        let wide;
        (wide, values) = values.as_chunks_mut::<ROW>();
        for (wide, &row) in wide.iter_mut().zip(rows) {
            *wide = f16s.wide(row);
        }
    }
    for (value, half) in values.iter_mut().zip(halves) {
        *value = half.wide();
    }
}

/// Decodes parameters to f32, with their remainders if there are any.
#[inline(always)]
pub(crate) fn decode_parameters<H: Half>(halves: &[H], remainders: Remainders, values: &mut [f32]) {
    let Remainders { long, short } = remainders;
    if !short.is_empty() {
        for ((value, half), &remainder) in values.iter_mut().zip(halves).zip(short) {
            *value = short_joined::<H>(half.code(), remainder);
        }
    } else if !long.is_empty() {
        for ((value, half), &remainder) in values.iter_mut().zip(halves).zip(long) {
            *value = joined::<H>(half.code(), remainder);
        }
    } else {
        decode(halves, values);
    }
}

/// Converts 8-bit remainders to 16-bit remainders of the same master weights.
#[cfg(feature = "checkpoint")]
pub(crate) fn lengthened<H: Half>(halves: &[H], short: &[i8]) -> Vec<i16> {
    let pairs = halves.iter().map(|half| half.code()).zip(short);
    pairs.map(|(code, &kept)| remainder::<H, false>(short_joined::<H>(code, kept), code)).collect()
}

/// Converts 16-bit remainders to 8 bits: to the nearest 24-bit master weights with the same parameters.
#[cfg(feature = "checkpoint")]
pub(crate) fn shortened<H: Half>(halves: &[H], long: &[i16]) -> Vec<i8> {
    let pairs = halves.iter().map(|half| half.code()).zip(long);
    let short = |(code, &kept): (u32, &i16)| {
        let (body, shift) = cut_of::<H, SHORT>(joined::<H>(code, kept).to_bits() & MAGNITUDE_BITS);
        let whole = body.wrapping_add(1 << shift >> 1) >> shift;
        let code = code & MAGNITUDE_CODE;
        let kept = whole.wrapping_sub(code << SHORT).cast_signed().clamp(i8::MIN.into(), i8::MAX.into());
        if is_infinite::<H>(code) { 0 } else { kept as i8 }
    };
    pairs.map(short).collect()
}

/// Encodes new parameters in 16 bits. `in_range` tells whether all of them are known to be in the range of their type. The key and the index
/// of the first element select the random bits.
#[inline(always)]
pub(crate) fn encode_parameters<H: Half>(
    in_range: bool,
    encoding: Encoding,
    values: &[f32],
    halves: &mut [H],
    remainders: RemaindersMut,
    key: u32,
    first_element: u32,
) {
    if in_range {
        encode::<H, true>(encoding, values, halves, remainders, key, first_element);
    } else {
        encode::<H, false>(encoding, values, halves, remainders, key, first_element);
    }
}

#[inline(always)]
fn encode<H: Half, const IN_RANGE: bool>(
    encoding: Encoding,
    values: &[f32],
    halves: &mut [H],
    remainders: RemaindersMut,
    key: u32,
    first_element: u32,
) {
    match encoding {
        Encoding::Exact | Encoding::Nearest => encode_nearest::<H, IN_RANGE>(values, halves),
        Encoding::Masters if H::IS_F16 => {
            encode_nearest::<H, IN_RANGE>(values, halves);
            for ((half, kept), &value) in halves.iter().zip(remainders.long).zip(values) {
                *kept = remainder::<H, IN_RANGE>(value, half.code());
            }
        }
        Encoding::Masters => {
            for ((half, kept), &value) in halves.iter_mut().zip(remainders.long).zip(values) {
                let code = narrowed::<H, IN_RANGE>(value);
                *half = H::from_code(code);
                *kept = remainder::<H, IN_RANGE>(value, code);
            }
        }
        Encoding::ShortMasters => {
            for (((half, kept), &value), i) in halves.iter_mut().zip(remainders.short).zip(values).zip(0u32..) {
                let noise = random_bits(key ^ REMAINDER_KEY, first_element.wrapping_add(i));
                let (code, remainder) = short_master::<H, IN_RANGE>(value, noise);
                *half = H::from_code(code);
                *kept = remainder;
            }
        }
        Encoding::Stochastic => {
            for ((half, &value), i) in halves.iter_mut().zip(values).zip(0u32..) {
                let noise = random_bits(key, first_element.wrapping_add(i));
                *half = H::from_code(dithered::<H, IN_RANGE>(value, noise));
            }
        }
    }
}

#[inline(always)]
fn encode_nearest<H: Half, const IN_RANGE: bool>(mut values: &[f32], mut halves: &mut [H]) {
    // The instructions keep more bits of a NaN than the kernels do.
    if IN_RANGE
        && H::IS_F16
        && let Some(f16s) = F16s::find()
    {
        let rows;
        (rows, values) = values.as_chunks::<ROW>();
        let nearest;
        (nearest, halves) = halves.as_chunks_mut::<ROW>();
        for (nearest, &row) in nearest.iter_mut().zip(rows) {
            *nearest = f16s.nearest(row);
        }
    }
    for (half, &value) in halves.iter_mut().zip(values) {
        *half = H::from_code(narrowed::<H, IN_RANGE>(value));
    }
}

/// Returns the random bits of an element.
#[inline(always)]
fn random_bits(key: u32, element: u32) -> u32 {
    mix(key.wrapping_add(element.wrapping_mul(0x9e37_79b9)))
}

/// These tests prove the documented properties of [`Rounding::Masters`].
#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::numbers::{LARGEST_BF16, LARGEST_F16};

    const TWO_TO_MINUS_14: f32 = f32::from_bits(NORMAL_BITS);

    /// Returns f32 numbers with all values of the upper 16 bits, and values of the lower 16 bits around every boundary.
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
            let (short, half) = (f16::from_code(narrowed::<f16, false>(value)), f16::from_f32(value));
            assert!(
                short.to_bits() == half.to_bits() || short.is_nan() && half.is_nan(),
                "{value:e}: {short:e} instead of {half:e}"
            );
            let (short, half) = (bf16::from_code(narrowed::<bf16, false>(value)), bf16::from_f32(value));
            assert!(
                short.to_bits() == half.to_bits() || short.is_nan() && half.is_nan(),
                "{value:e}: {short:e} instead of {half:e}"
            );
        }
    }

    /// Numbers that are known to be in range have the same codes and remainders with all instructions.
    #[test]
    fn numbers_in_range_have_the_same_codes() {
        fn check<H: Half>(largest: f32) {
            // The length is not a multiple of a row.
            let values: Vec<f32> = values().filter(|value| value.abs() <= largest).skip(1).collect();
            assert_ne!(values.len() % ROW, 0);
            for &value in &values {
                let code = narrowed::<H, false>(value);
                assert_eq!(narrowed::<H, true>(value), code, "{value:e}");
                assert_eq!(remainder::<H, true>(value, code), remainder::<H, false>(value, code), "{value:e}");
            }
            for encoding in [Encoding::Nearest, Encoding::Masters, Encoding::ShortMasters, Encoding::Stochastic] {
                let [(codes, kept), (codes_in_range, kept_in_range)] = [false, true].map(|in_range| {
                    let mut halves = vec![H::default(); values.len()];
                    let (mut long, mut short) = (vec![0; values.len()], vec![0; values.len()]);
                    let remainders = RemaindersMut { long: &mut long, short: &mut short };
                    encode_parameters(in_range, encoding, &values, &mut halves, remainders, 7, 3);
                    (halves.into_iter().map(H::code).collect::<Vec<_>>(), (long, short))
                });
                assert!(codes == codes_in_range && kept == kept_in_range, "{encoding:?}");
            }
        }
        check::<f16>(LARGEST_F16);
        check::<bf16>(LARGEST_BF16);
    }

    /// Rows are decoded like single numbers, except for the bits of a NaN.
    #[test]
    fn rows_have_the_same_numbers() {
        let halves: Vec<f16> = (0..=0xfffeu32).map(f16::from_code).collect();
        let mut values = vec![0.0; halves.len()];
        decode(&halves, &mut values);
        let rows = halves.as_chunks().0.iter().flat_map(|&row| f16::wide_row(row));
        for (value, row) in values.iter().zip(rows) {
            assert!(value.to_bits() == row.to_bits(), "{value:e}");
        }
        for (value, half) in values.iter().zip(halves) {
            assert!(value.to_bits() == half.wide().to_bits() || value.is_nan() && half.is_nan(), "{half:e}: {value:e}");
        }
    }

    fn master<H: Half>(value: f32) -> f32 {
        let code = narrowed::<H, false>(value);
        joined::<H>(code, remainder::<H, false>(value, code))
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
                    assert_eq!(dithered::<f16, false>(wide, noise), code);
                    assert_eq!((narrowed::<f16, false>(wide), remainder::<f16, false>(wide, code)), (code, 0));
                }
                let wide = f32::from_bits(widened_bits::<bf16>(code));
                if !wide.is_nan() {
                    assert_eq!(dithered::<bf16, false>(wide, noise), code);
                    assert_eq!((narrowed::<bf16, false>(wide), remainder::<bf16, false>(wide, code)), (code, 0));
                }
            }
        }
    }

    /// Returns every 24-bit master weight, except NaN, infinities and those whose remainder would be below 0.
    fn short_masters<H: Half>() -> impl Iterator<Item = (u32, i8)> {
        let codes = (0..=0xffffu32).filter(|&code| !is_infinite::<H>(code & MAGNITUDE_CODE));
        let all = codes.flat_map(|code| (i8::MIN..=i8::MAX).map(move |kept| (code, kept)));
        all.filter(|&(code, kept)| code & MAGNITUDE_CODE != 0 || kept >= 0)
    }

    #[test]
    fn a_short_master_that_nobody_moves_stays() {
        fn check<H: Half>() {
            for (code, kept) in short_masters::<H>() {
                let value = short_joined::<H>(code, kept);
                for noise in [0, 0x1234_5678, u32::MAX] {
                    assert_eq!(short_master::<H, false>(value, noise), (code, kept), "{value:e}");
                }
            }
            for infinite in [f32::INFINITY, f32::NEG_INFINITY] {
                let (code, kept) = short_master::<H, false>(infinite, u32::MAX);
                assert_eq!((short_joined::<H>(code, kept), kept), (infinite, 0));
            }
            let (code, kept) = short_master::<H, false>(f32::NAN, u32::MAX);
            assert!(short_joined::<H>(code, kept).is_nan());
        }
        check::<f16>();
        check::<bf16>();
    }

    /// A drawn number is one of the two multiples of the unit beside the value, in f64. The mean is the value within five standard errors, also
    /// across the boundary between two codes. The code is the nearest to the drawn number, with ties away from 0.
    #[test]
    fn the_mean_of_short_masters_is_the_value() {
        fn check<H: Half>(value: f32, [bits, least]: [i32; 2]) {
            let draws = 1 << 16;
            let exact = f64::from(value);
            let exponent = (exact.abs().log2().floor() as i32).max(least);
            let unit = 2f64.powi(exponent + 1 - bits);
            let [below, above] = [(exact / unit).floor(), (exact / unit).ceil()];
            let mut sum = 0.0;
            for i in 0..draws {
                let (code, kept) = short_master::<H, false>(value, random_bits(7, i));
                let drawn = f64::from(short_joined::<H>(code, kept));
                assert!([below, above].contains(&(drawn / unit)), "{value:e}: {drawn:e}");
                let of_code = unit * 256.0;
                let nearest = (drawn.abs() / of_code + 0.5).floor() * of_code;
                let stored = f64::from(f32::from_bits(widened_bits::<H>(code)));
                assert!(stored.abs() == nearest, "{drawn:e}: {stored:e}");
                sum += drawn / unit;
            }
            let part = exact / unit - below;
            let error = (part * (1.0 - part) / f64::from(draws)).sqrt();
            let mean = sum / f64::from(draws);
            assert!((mean - exact / unit).abs() <= 5.0 * error, "{value:e}: mean {mean:e} of {:e}", exact / unit);
        }
        let ties = [0x3f80_7fff, 0x3f80_8001, 0x3f80_7f01, 0xbf81_7f80, 0x3fff_7fc3, 0x3fff_ffff].map(f32::from_bits);
        let others = [1.003, -3.3e-3, 7.7e4, 1.1e-6, -2.9e-8, 5e-9, 1.0001, 0.3, 6.1035e-5, 6.103_4e-5, 3.1e-38, 1e-40];
        for value in ties.into_iter().chain(others) {
            check::<bf16>(value, [16, -126]);
            if value < 6e4 && value.abs() > 1e-30 {
                check::<f16>(value, [19, -14]);
            }
        }
        let f16_ties = [0x3f80_0fff, 0x3f80_1001, 0xbf80_2ff0, 0x387f_f001, 0x3380_0001].map(f32::from_bits);
        f16_ties.into_iter().for_each(|value| check::<f16>(value, [19, -14]));
    }

    #[cfg(feature = "checkpoint")]
    #[test]
    fn remainders_are_converted() {
        fn check<H: Half>() {
            for (code, kept) in short_masters::<H>() {
                let half = H::from_code(code);
                let long = lengthened(&[half], &[kept]);
                let (from, to) = (short_joined::<H>(code, kept), joined::<H>(code, long[0]));
                assert_eq!(to.to_bits(), from.to_bits(), "{from:e}: {to:e}");
                assert_eq!(shortened(&[half], &long), [kept], "{from:e}");
            }
            // The nearer of two neighbours. At the end of a code there is no neighbour above.
            for value in values().filter(|value| value.abs() < 6e4) {
                let code = narrowed::<H, false>(value);
                let half = H::from_code(code);
                let long = remainder::<H, false>(value, code);
                let kept = shortened(&[half], &[long])[0];
                let (from, to) = (joined::<H>(code, long), short_joined::<H>(code, kept));
                let unit = (short_joined::<H>(code, 1) - short_joined::<H>(code, 0)).abs();
                let allowed = if kept == i8::MAX { unit } else { unit / 2.0 };
                assert!((from - to).abs() <= allowed, "{from:e}: {to:e}");
            }
        }
        check::<f16>();
        check::<bf16>();
    }

    /// The mean over 2^16 hashes is the value, within five standard errors. Both neighbours are drawn, and no other numbers.
    #[test]
    fn the_mean_of_dithered_values_is_the_value() {
        fn check<H: Half>(value: f32) {
            let draws = 1 << 16;
            let wide = |code: u32| f64::from(f32::from_bits(widened_bits::<H>(code)));
            let nearest = wide(narrowed::<H, false>(value));
            let codes = (0..draws).map(|i| dithered::<H, false>(value, random_bits(7, i)));
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

    /// Different seeds and steps have different keys.
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
