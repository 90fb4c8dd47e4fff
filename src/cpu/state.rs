//! Momentum and second moment in 8 bits. Twin of `shaders/elements/state.wgsl`, operation by operation. [`State::Bits8`](crate::State::Bits8)
//! explains the codes. All compared numbers are exact or rounded once, so that a number has the same code on every path.

use crate::element::mix;
use crate::state::BLOCK;

/// Number of elements that share a scale.
const ROW: usize = BLOCK as usize;

/// The largest codes.
const MOST: f32 = 127.0;
const MOST_SQUARE: f32 = 255.0;
/// A little below 1/127² and 1/255²: the scale is found from below.
const SHARE: f32 = 6.2e-5;
const SQUARE_SHARE: f32 = 1.5378e-5;
/// The upper 16 bits of the smallest scales, 2⁻¹¹⁰ and 2⁻⁶⁰. With them neither the smallest numbers nor the thresholds between codes are denormal.
const LEAST_MOMENTUM_SCALE: u32 = 0x0880;
const LEAST_SQUARE_SCALE: u32 = 0x2180;
/// The upper 16 bits of the largest scale whose product with 127² is finite.
const MOST_MOMENTUM_SCALE: u32 = 0x7882;
/// Makes these random bits differ from those of parameters.
const KEY: u32 = 0x5bd1_e995;
/// The sum of this and a smaller whole number has that number in its lower bits.
const TWO_TO_23: f32 = 8_388_608.0;

/// Returns the scales of the momentum and of the square root of the second moment from a block's word.
#[inline(always)]
fn scales_of(word: u32) -> [f32; 2] {
    [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]
}

#[inline(always)]
fn from_upper(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// Returns the upper 16 bits of the scale of a block with this largest magnitude.
#[inline(always)]
fn scale_bits(largest: f32) -> u32 {
    let mut bits = (SHARE * largest).to_bits() >> 16;
    for _ in 0..2 {
        bits += u32::from(MOST * MOST * from_upper(bits) < largest);
    }
    bits.clamp(LEAST_MOMENTUM_SCALE, MOST_MOMENTUM_SCALE)
}

/// Returns the upper 16 bits of the scale of the square root, from a block's largest square.
#[inline(always)]
fn square_scale_bits(largest: f32) -> u32 {
    let mut bits = (SQUARE_SHARE * largest.sqrt()).to_bits() >> 16;
    for _ in 0..2 {
        let root = MOST_SQUARE * MOST_SQUARE * from_upper(bits);
        bits += u32::from(root * root < largest);
    }
    bits.max(LEAST_SQUARE_SCALE)
}

/// Returns the position of the threshold between two neighbouring codes, in `(0, 1]`. The momentum uses the lower half of an element's random
/// bits, the second moment the upper half.
#[inline(always)]
fn threshold(bits: u32) -> f32 {
    // Signed 32-bit integers, because vector instructions convert them.
    ((bits & 0x7fff).cast_signed() + 1) as f32 * (1.0 / 32768.0)
}

/// Returns the threshold above a code, in squares of codes. The product is exact, so a fused multiplication and addition has the same result.
#[inline(always)]
fn code_square_between(code: f32, threshold: f32) -> f32 {
    code * code + threshold * (2.0 * code + 1.0)
}

/// Returns the code of a magnitude.
#[inline(always)]
fn code(size: f32, scale: f32, inverse: f32, threshold: f32) -> f32 {
    let code = (size * inverse).sqrt().floor();
    let code = if code * code * scale > size { code - 1.0 } else { code };
    let next = code + 1.0;
    let code = if next * next * scale <= size { next } else { code };
    let code = if code_square_between(code, threshold) * scale <= size { code + 1.0 } else { code };
    if code < MOST { code } else { MOST }
}

#[inline(always)]
fn square_at(code_square: f32, scale: f32) -> f32 {
    (code_square * scale) * (code_square * scale)
}

/// Returns the code of a second moment.
#[inline(always)]
fn square_code(square: f32, scale: f32, inverse: f32, threshold: f32) -> f32 {
    let code = (square.sqrt() * inverse).sqrt().floor();
    let code = if square_at(code * code, scale) > square { code - 1.0 } else { code };
    let next = code + 1.0;
    let code = if square_at(next * next, scale) <= square { next } else { code };
    let code = if square_at(code_square_between(code, threshold), scale) <= square { code + 1.0 } else { code };
    let code = if code < MOST_SQUARE { code } else { MOST_SQUARE };
    // The moment is a divisor and must not become 0. The square of the threshold above 0 may be 0 in f32.
    let code = if code > 1.0 { code } else { 1.0 };
    if square > 0.0 { code } else { 0.0 }
}

/// Returns the largest of a block's magnitudes, none of which is NaN.
#[inline(always)]
fn largest_of(values: &[f32; ROW]) -> f32 {
    let mut lanes = [0.0f32; 8];
    for row in 0..ROW / 8 {
        for j in 0..8 {
            let size = values[8 * row + j].abs();
            lanes[j] = if size > lanes[j] { size } else { lanes[j] };
        }
    }
    let mut largest = 0.0;
    for lane in lanes {
        largest = if lane > largest { lane } else { largest };
    }
    largest
}

/// Decodes the momentum of a stretch that begins with a block.
#[inline(always)]
pub(crate) fn decode_momentum(codes: &[u8], scales: &[u32], momentum: &mut [f32]) {
    for ((codes, &word), momentum) in codes.chunks(ROW).zip(scales).zip(momentum.chunks_mut(ROW)) {
        let [scale, _] = scales_of(word);
        for (m, &code) in momentum.iter_mut().zip(codes) {
            let code = f32::from(code.cast_signed());
            *m = code * code.abs() * scale;
        }
    }
}

/// Decodes the second moments of a stretch that begins with a block.
#[inline(always)]
pub(crate) fn decode_squares(codes: &[u8], scales: &[u32], squares: &mut [f32]) {
    for ((codes, &word), squares) in codes.chunks(ROW).zip(scales).zip(squares.chunks_mut(ROW)) {
        let [_, scale] = scales_of(word);
        for (v, &code) in squares.iter_mut().zip(codes) {
            let code = f32::from(code);
            let root = code * code * scale;
            *v = root * root;
        }
    }
}

/// Codes and scales of a stretch that begins with a block.
pub(crate) struct Codes<'a> {
    /// Empty if the rule has no momentum.
    pub(crate) momentum: &'a mut [u8],
    /// Empty if the rule has no second moment.
    pub(crate) squares: &'a mut [u8],
    /// A word for each block: the scale of the momentum in the lower half, that of the square root of the second moment in the upper half.
    pub(crate) scales: &'a mut [u32],
    /// Index of the first element in the optimizer.
    pub(crate) first_element: u32,
}

/// Returns the random bits of a block's elements. Without a key they are the bits that round to the nearer of two codes.
#[inline(always)]
fn noise_of(key: Option<u32>, first_element: u32) -> [u32; ROW] {
    let mut noise = [0x3fff_3fff; ROW];
    if let Some(key) = key {
        let start = (key ^ KEY).wrapping_add(first_element.wrapping_mul(0x9e37_79b9));
        for (noise, j) in noise.iter_mut().zip(0u32..) {
            *noise = mix(start.wrapping_add(j.wrapping_mul(0x9e37_79b9)));
        }
    }
    noise
}

/// Returns the codes of a block's momentum, and the bits of its scale.
#[inline(always)]
fn encode_momentum(values: &[f32; ROW], noise: &[u32; ROW]) -> ([u8; ROW], u32) {
    let bits = scale_bits(largest_of(values));
    let scale = from_upper(bits);
    let inverse = 1.0 / scale;
    let mut whole = [0u32; ROW];
    for j in 0..ROW {
        let code = code(values[j].abs(), scale, inverse, threshold(noise[j]));
        let magnitude = (code + TWO_TO_23).to_bits();
        whole[j] = if values[j] < 0.0 { magnitude.wrapping_neg() } else { magnitude };
    }
    (lower_bytes(&whole), bits)
}

/// Returns the codes of a block's second moments, and the bits of their scale.
#[inline(always)]
fn encode_squares(values: &[f32; ROW], noise: &[u32; ROW]) -> ([u8; ROW], u32) {
    let bits = square_scale_bits(largest_of(values));
    let scale = from_upper(bits);
    let inverse = 1.0 / scale;
    let mut whole = [0u32; ROW];
    for j in 0..ROW {
        let code = square_code(values[j], scale, inverse, threshold(noise[j] >> 16));
        whole[j] = (code + TWO_TO_23).to_bits();
    }
    (lower_bytes(&whole), bits)
}

#[inline(always)]
fn lower_bytes(words: &[u32; ROW]) -> [u8; ROW] {
    let mut bytes = [0; ROW];
    for j in 0..ROW {
        bytes[j] = words[j] as u8;
    }
    bytes
}

/// Returns a block. The last one may be shorter and is padded with zeros.
#[inline(always)]
fn block_of(values: &[f32], first: usize) -> [f32; ROW] {
    let mut block = [0.0; ROW];
    match values[first..].first_chunk() {
        Some(whole) => block = *whole,
        None => block[..values.len() - first].copy_from_slice(&values[first..]),
    }
    block
}

#[inline(always)]
fn store(codes: &[u8; ROW], to: &mut [u8]) {
    match to.first_chunk_mut() {
        Some(whole) => *whole = *codes,
        None => to.copy_from_slice(&codes[..to.len()]),
    }
}

impl Codes<'_> {
    /// Stores new moments from element `start`, which begins a block. Moments that the rule does not have are empty. Without a key each number
    /// gets the nearer of its two codes.
    #[inline(always)]
    pub(crate) fn encode(&mut self, start: usize, momentum: &[f32], squares: &[f32], key: Option<u32>) {
        let elements = momentum.len().max(squares.len());
        for first in (0..elements).step_by(ROW) {
            let (at, end) = (start + first, start + elements.min(first + ROW));
            let noise = noise_of(key, self.first_element.wrapping_add(at as u32));
            let mut word = 0;
            if !momentum.is_empty() {
                let (codes, bits) = encode_momentum(&block_of(momentum, first), &noise);
                store(&codes, &mut self.momentum[at..end]);
                word |= bits;
            }
            if !squares.is_empty() {
                let (codes, bits) = encode_squares(&block_of(squares, first), &noise);
                store(&codes, &mut self.squares[at..end]);
                word |= bits << 16;
            }
            self.scales[at / ROW] = word;
        }
    }
}

/// Each of these faults, tried once by hand, failed a test: thresholds in the middle, a second moment that rounds to 0, a zero that does not, a
/// scale too small by one, and either correction of a code left out.
#[cfg(test)]
mod tests {
    use super::*;

    /// Returns every scale.
    fn all_scales(least: u32, most: u32) -> impl Iterator<Item = f32> {
        (least..=most).map(from_upper)
    }

    /// A number that equals a code gets that code for all random bits. A number between two codes gets one of them: the nearer it is to the upper
    /// code, the more of the random bits give the upper one.
    #[test]
    fn a_number_has_one_of_the_two_codes_beside_it() {
        let noises = [0, 1, 0x3fff, 0x4000, 0x7ffe, 0x7fff].map(threshold);
        for (index, scale) in all_scales(LEAST_MOMENTUM_SCALE, MOST_MOMENTUM_SCALE).enumerate() {
            for n in 0..=127u8 {
                let (value, next) = (f32::from(n).powi(2) * scale, f32::from(n.saturating_add(1)).powi(2) * scale);
                let of = |size: f32, threshold: f32| code(size, scale, 1.0 / scale, threshold);
                for noise in noises {
                    // Quotients and roots of devices have small errors, which change where the search for a code starts.
                    for off in [0.999_99, 1.0, 1.000_01] {
                        assert_eq!(code(value, scale, off / scale, noise), f32::from(n), "{n} {scale:e} {off}");
                    }
                    if n < 127 {
                        let below = f32::from_bits(next.to_bits() - 1);
                        let found = of(below, noise);
                        assert!([f32::from(n), f32::from(n) + 1.0].contains(&found), "{n} {scale:e}");
                        assert_eq!(code(below, scale, 1.000_01 / scale, noise), found, "{n} {scale:e}");
                    }
                }
                if (20..127).contains(&n) {
                    let above = value + (next - value) * 2.0 / 32768.0;
                    assert_eq!(code(above, scale, 0.999_99 / scale, threshold(0)), f32::from(n) + 1.0, "{n} {scale:e}");
                }
                if n < 127 && index % 997 == 0 {
                    for share in [0.1, 0.5, 0.9] {
                        let size = value + share * (next - value);
                        let up = (0..0x8000u32).filter(|&bits| of(size, threshold(bits)) > f32::from(n)).count();
                        let found = up as f32 / 32768.0;
                        assert!((found - share).abs() <= 3e-3 + 1e-2 / f32::from(n + 1), "{n}: {found} of {share}");
                    }
                }
            }
        }
        for scale in all_scales(LEAST_SQUARE_SCALE, 0x5600) {
            for n in 0..=255u8 {
                let root = f32::from(n).powi(2) * scale;
                for noise in noises {
                    for off in [0.999_99, 1.0, 1.000_01] {
                        let found = square_code(root * root, scale, off / scale, noise);
                        assert_eq!(found, f32::from(n), "{n} {scale:e} {off}");
                    }
                }
            }
        }
    }

    /// The scale is the smallest of 8 bits for which the largest magnitude has a code.
    #[test]
    fn scales_are_as_small_as_can_be() {
        for high in (LEAST_MOMENTUM_SCALE + 0x700)..0x7f00 {
            for low in [0, 1, 0x7fff, 0x8000, 0xffff] {
                let largest = f32::from_bits(high << 16 | low);
                let bits = scale_bits(largest);
                assert!(16129.0 * from_upper(bits) >= largest || bits == MOST_MOMENTUM_SCALE, "{largest:e}");
                assert!(16129.0 * from_upper(bits - 1) < largest, "{largest:e}");
                if largest < 1.8e19 && largest > 2f32.powi(-43) {
                    let square = largest * largest;
                    let bits = square_scale_bits(square);
                    let root = |bits| 65025.0 * from_upper(bits);
                    assert!(
                        root(bits) * root(bits) >= square && root(bits - 1) * root(bits - 1) < square,
                        "{largest:e}"
                    );
                }
            }
        }
        assert_eq!(from_upper(LEAST_MOMENTUM_SCALE), 2f32.powi(-110));
        assert_eq!(from_upper(LEAST_SQUARE_SCALE), 2f32.powi(-60));
        assert!(
            (16129.0 * from_upper(MOST_MOMENTUM_SCALE)).is_finite()
                && (16129.0 * from_upper(MOST_MOMENTUM_SCALE + 1)).is_infinite()
        );
    }

    /// Stored moments are read back within the distance of a code, including zeros and the smallest and largest numbers.
    #[test]
    fn moments_come_back_within_a_code() {
        let sizes = [0.0, 1e-45, 1e-40, 1e-38, 1e-30, 1e-20, 1e-10, 1.0, 1e10, 1e19, 1e30, 3.4e38];
        for largest in sizes {
            let values: Vec<f32> =
                (0..77).map(|i| largest * (1.0 - i as f32 / 77.0).powi(5) * [1.0, -1.0][i % 2]).collect();
            let squares: Vec<f32> = values.iter().map(|x| x.abs().min(3.2e38)).collect();
            let (mut momentum_codes, mut square_codes, mut scales) = (vec![0; 77], vec![0; 77], vec![0; 3]);
            let mut codes = Codes {
                momentum: &mut momentum_codes,
                squares: &mut square_codes,
                scales: &mut scales,
                first_element: 5,
            };
            codes.encode(0, &values, &squares, Some(7));
            let (mut m, mut v) = (vec![0.0; 77], vec![0.0; 77]);
            decode_momentum(&momentum_codes, &scales, &mut m);
            decode_squares(&square_codes, &scales, &mut v);
            for i in 0..77 {
                let block = &values[i / 32 * 32..77.min(i / 32 * 32 + 32)];
                let most = block.iter().fold(0.0f32, |most, x| most.max(x.abs())).max(16129.0 * 2f32.powi(-110));
                let (x, got) = (f64::from(values[i]), f64::from(m[i]));
                let distance =
                    f64::from(most) * 1.01 * (2.0 * (x.abs() / f64::from(most)).sqrt() / 127.0 + 1.0 / 16129.0);
                assert!((got - x).abs() <= distance, "{got:e} for {x:e}, largest {most:e}");
                let (root, got) = (f64::from(squares[i]).sqrt(), f64::from(v[i]).sqrt());
                let most = f64::from(most).sqrt().max(65025.0 * 2f64.powi(-60));
                let distance = most * 1.01 * (2.0 * (root / most).sqrt() / 255.0 + 1.0 / 65025.0);
                assert!((got - root).abs() <= distance, "{got:e} for {root:e}, largest {most:e}");
                assert_eq!(v[i] > 0.0, squares[i] > 0.0);
            }
        }
    }
}
