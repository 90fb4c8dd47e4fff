//! Momentum and second moment in 8 bits: twin of `shaders/elements/state.wgsl`, operation by operation. [`State::Bits8`](crate::State::Bits8)
//! explains the codes. Every comparison here is of numbers that are exact or rounded once, so that a number has the same code on every path.

use crate::element::mix;
use crate::state::BLOCK;

/// Elements that share a scale.
const ROW: usize = BLOCK as usize;

/// The largest codes.
const MOST: f32 = 127.0;
const MOST_SQUARE: f32 = 255.0;
/// A little below 1/127² and 1/255²: the scale is found from below.
const SHARE: f32 = 6.2e-5;
const SQUARE_SHARE: f32 = 1.5378e-5;
/// The upper 16 bits of 2⁻¹¹⁰ and 2⁻⁶⁰, the smallest scales: neither the smallest numbers nor the thresholds between codes are denormal.
const LEAST_SCALE: u32 = 0x0880;
const LEAST_SQUARE_SCALE: u32 = 0x2180;
/// Those of the largest scale of which 127² is finite.
const MOST_SCALE: u32 = 0x7882;
/// Sets these random bits apart from those of parameters.
const KEY: u32 = 0x5bd1_e995;
/// What is added to a whole number below it is in the lower bits.
const TWO_TO_23: f32 = 8_388_608.0;

/// The scale of the momentum, and of the square root of the second moment, from a block's word.
#[inline(always)]
fn scales_of(word: u32) -> [f32; 2] {
    [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]
}

#[inline(always)]
fn from_upper(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// The upper 16 bits of the scale of a block with this largest magnitude.
#[inline(always)]
fn scale_bits(largest: f32) -> u32 {
    let mut bits = (SHARE * largest).to_bits() >> 16;
    for _ in 0..2 {
        bits += u32::from(MOST * MOST * from_upper(bits) < largest);
    }
    bits.clamp(LEAST_SCALE, MOST_SCALE)
}

/// The same of the square root, from the largest square.
#[inline(always)]
fn square_scale_bits(largest: f32) -> u32 {
    let mut bits = (SQUARE_SHARE * largest.sqrt()).to_bits() >> 16;
    for _ in 0..2 {
        let root = MOST_SQUARE * MOST_SQUARE * from_upper(bits);
        bits += u32::from(root * root < largest);
    }
    bits.max(LEAST_SQUARE_SCALE)
}

/// What decides between two neighbouring codes: the place of the threshold between them, above 0 and up to 1. For the momentum and for the
/// second moment.
#[inline(always)]
fn thresholds(noise: u32) -> [f32; 2] {
    [noise & 0x7fff, noise >> 16 & 0x7fff].map(|bits| (bits + 1) as f32 / 32768.0)
}

/// The code of a magnitude. The product with the odd number is exact, so that it does not matter whether a compiler rounds it.
#[inline(always)]
fn code(size: f32, scale: f32, inverse: f32, threshold: f32) -> f32 {
    let mut code = (size * inverse).sqrt().floor();
    code -= f32::from(u8::from(code * code * scale > size));
    let next = code + 1.0;
    code = if next * next * scale <= size { next } else { code };
    let between = code * code + threshold * (2.0 * code + 1.0);
    code += f32::from(u8::from(between * scale <= size));
    code.min(MOST)
}

/// The code of a second moment.
#[inline(always)]
fn square_code(square: f32, scale: f32, inverse: f32, threshold: f32) -> f32 {
    let of = |code_square: f32| (code_square * scale) * (code_square * scale);
    let mut code = (square.sqrt() * inverse).sqrt().floor();
    code -= f32::from(u8::from(of(code * code) > square));
    let next = code + 1.0;
    code = if of(next * next) <= square { next } else { code };
    let between = code * code + threshold * (2.0 * code + 1.0);
    code += f32::from(u8::from(of(between) <= square));
    // It will be divided by. The square of the threshold above 0 may be 0 in f32.
    if square > 0.0 { code.clamp(1.0, MOST_SQUARE) } else { 0.0 }
}

/// Momentum of a stretch that begins with a block.
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

/// Second moments of a stretch that begins with a block.
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
    /// Empty where the rule has no momentum.
    pub(crate) momentum: &'a mut [u8],
    /// Empty where the rule has no second moment.
    pub(crate) squares: &'a mut [u8],
    /// A word for each block: the scale of the momentum in its lower half, that of the square root of the second moment in its upper half.
    pub(crate) scales: &'a mut [u32],
    /// Index of the first element in the optimizer.
    pub(crate) first_element: u32,
}

impl Codes<'_> {
    /// Stores new moments from an element on that begins a block. Those that the rule does not have are empty. Without a key each number
    /// gets the nearer of its two codes.
    #[inline(always)]
    pub(crate) fn encode(&mut self, start: usize, momentum: &[f32], squares: &[f32], key: Option<u32>) {
        let elements = momentum.len().max(squares.len());
        for first in (0..elements).step_by(ROW) {
            let end = elements.min(first + ROW);
            let at = start + first;
            let (mut m, mut v) = ([0.0; ROW], [0.0; ROW]);
            let mut thresholds_of = [[0.5; 2]; ROW];
            if let Some(key) = key {
                let first_element = self.first_element.wrapping_add(at as u32);
                for (thresholds_of, i) in thresholds_of.iter_mut().zip(0u32..) {
                    let element = first_element.wrapping_add(i);
                    *thresholds_of = thresholds(mix((key ^ KEY).wrapping_add(element.wrapping_mul(0x9e37_79b9))));
                }
            }
            let mut word = 0;
            if !momentum.is_empty() {
                m[..end - first].copy_from_slice(&momentum[first..end]);
                let bits = scale_bits(m.iter().fold(0.0, |largest, m| m.abs().max(largest)));
                word |= bits;
                let scale = from_upper(bits);
                let inverse = 1.0 / scale;
                let mut codes = [0; ROW];
                for j in 0..ROW {
                    let code = (code(m[j].abs(), scale, inverse, thresholds_of[j][0]) + TWO_TO_23).to_bits() as u8;
                    codes[j] = if m[j] < 0.0 { code.wrapping_neg() } else { code };
                }
                self.momentum[at..start + end].copy_from_slice(&codes[..end - first]);
            }
            if !squares.is_empty() {
                v[..end - first].copy_from_slice(&squares[first..end]);
                let bits = square_scale_bits(v.iter().fold(0.0, |largest: f32, &v| v.max(largest)));
                word |= bits << 16;
                let scale = from_upper(bits);
                let inverse = 1.0 / scale;
                let mut codes = [0; ROW];
                for j in 0..ROW {
                    codes[j] = (square_code(v[j], scale, inverse, thresholds_of[j][1]) + TWO_TO_23).to_bits() as u8;
                }
                self.squares[at..start + end].copy_from_slice(&codes[..end - first]);
            }
            self.scales[at / ROW] = word;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every scale that there is.
    fn all_scales(least: u32, most: u32) -> impl Iterator<Item = f32> {
        (least..=most).map(from_upper)
    }

    /// Numbers that are codes keep them, whatever the random bits, and numbers between two codes get one of the two: the upper one for as many of
    /// the random bits as the number is nearer to it.
    #[test]
    fn a_number_has_one_of_the_two_codes_beside_it() {
        let noises = [0, 1, 0x3fff, 0x4000, 0x7ffe, 0x7fff].map(|bits| thresholds(bits | bits << 16));
        for (index, scale) in all_scales(LEAST_SCALE, MOST_SCALE).enumerate() {
            for n in 0..=127u8 {
                let (value, next) = (f32::from(n).powi(2) * scale, f32::from(n.saturating_add(1)).powi(2) * scale);
                let of = |size: f32, noise: [f32; 2]| code(size, scale, 1.0 / scale, noise[0]);
                for noise in noises {
                    assert_eq!(of(value, noise), f32::from(n), "{n} {scale:e}");
                    if n < 127 {
                        let below = f32::from_bits(next.to_bits() - 1);
                        assert!([f32::from(n), f32::from(n) + 1.0].contains(&of(below, noise)), "{n} {scale:e}");
                    }
                }
                if n < 127 && index % 997 == 0 {
                    for share in [0.1, 0.5, 0.9] {
                        let size = value + share * (next - value);
                        let up = (0..0x8000u32).filter(|&bits| of(size, thresholds(bits)) > f32::from(n)).count();
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
                    assert_eq!(square_code(root * root, scale, 1.0 / scale, noise[1]), f32::from(n), "{n} {scale:e}");
                }
            }
        }
    }

    /// The scale is the smallest of 8 bits for which the largest magnitude has a code.
    #[test]
    fn scales_are_as_small_as_can_be() {
        for high in (LEAST_SCALE + 0x700)..0x7f00 {
            for low in [0, 1, 0x7fff, 0x8000, 0xffff] {
                let largest = f32::from_bits(high << 16 | low);
                let bits = scale_bits(largest);
                assert!(16129.0 * from_upper(bits) >= largest || bits == MOST_SCALE, "{largest:e}");
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
        assert_eq!(from_upper(LEAST_SCALE), 2f32.powi(-110));
        assert_eq!(from_upper(LEAST_SQUARE_SCALE), 2f32.powi(-60));
        assert!((16129.0 * from_upper(MOST_SCALE)).is_finite() && (16129.0 * from_upper(MOST_SCALE + 1)).is_infinite());
    }

    /// What is stored is read back within a code's distance; zeros, the smallest and the largest numbers too.
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
