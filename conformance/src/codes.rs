//! 8-bit state in f64, from the definition of [`State::Bits8`](wgpu_optim::State::Bits8). This module decodes the codes
//! in a checkpoint and compares them with given moments. It is written from the documentation, and not from the code of
//! either path.

use wgpu_optim::{Checkpoint, Element};

/// Number of elements that share a scale.
const BLOCK: usize = 32;

/// Largest relative difference between the moments of a path and the given ones: a few units in the last place of f32.
const ROUNDING: f64 = 1e-6;

/// Moment of a rule: the momentum or the second moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// m.
    First,
    /// v, which is stored as its root.
    Second,
}

impl Moment {
    /// Both moments.
    pub const ALL: [Self; 2] = [Moment::First, Moment::Second];

    /// Returns the name of the codes in a checkpoint.
    pub fn entry(self) -> &'static str {
        match self {
            Moment::First => "momentum_codes",
            Moment::Second => "second_moment_codes",
        }
    }

    fn most(self) -> f64 {
        match self {
            Moment::First => 127.0,
            Moment::Second => 255.0,
        }
    }

    fn least_scale(self) -> f64 {
        match self {
            Moment::First => 2f64.powi(-110),
            Moment::Second => 2f64.powi(-60),
        }
    }

    /// Decodes a code, given its square, with the f32 rounding of the paths.
    fn value(self, code_square: f64, scale: f64) -> f64 {
        let product = f64::from((code_square * scale) as f32);
        match self {
            Moment::First => product,
            Moment::Second => f64::from((product * product) as f32),
        }
    }

    fn scale_of(self, word: u32) -> f64 {
        match self {
            Moment::First => f64::from(f32::from_bits(word << 16)),
            Moment::Second => f64::from(f32::from_bits(word & 0xffff_0000)),
        }
    }

    /// Returns the smallest scale of 8 significant bits for which the largest code reaches a block's largest magnitude.
    fn scale(self, largest: f64) -> f64 {
        let square = self.most() * self.most();
        let exact = match self {
            Moment::First => largest / square,
            Moment::Second => largest.sqrt() / square,
        };
        let unit = (exact.max(f64::MIN_POSITIVE).log2().floor() - 7.0).exp2();
        let mut scale = (exact / unit).floor() * unit;
        while self.value(square, scale) < largest && self.value(square, scale + unit).is_finite() {
            scale += unit;
        }
        scale.max(self.least_scale())
    }

    /// Returns the code of a magnitude. `random`, above 0 and at most 1, decides between the two nearest codes.
    fn code(self, size: f64, scale: f64, random: f64) -> f64 {
        let root = if self == Moment::First { size } else { size.sqrt() };
        // The search starts above the result. Numbers that are far too large have the largest code.
        let mut below = ((root / scale).sqrt().floor() + 1.0).min(self.most());
        while below > 0.0 && self.value(below * below, scale) > size {
            below -= 1.0;
        }
        let between = f64::from((below * below + random * (2.0 * below + 1.0)) as f32);
        let code = if self.value(between, scale) <= size { below + 1.0 } else { below };
        match self {
            _ if size == 0.0 => 0.0,
            Moment::Second => code.clamp(1.0, self.most()),
            Moment::First => code.min(self.most()),
        }
    }

    fn signed(self, code: u8) -> f64 {
        match self {
            Moment::First => f64::from(code.cast_signed()),
            Moment::Second => f64::from(code),
        }
    }
}

/// Hash function lowbias32.
fn hash(mut x: u32) -> u32 {
    x = (x ^ x >> 16).wrapping_mul(0x7feb_352d);
    x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

/// Returns the random number of an element at a step, both counted from 0.
fn random(moment: Moment, seed: u32, step: u64, element: u32) -> f64 {
    let key = hash(hash(hash(seed) ^ step as u32) ^ (step >> 32) as u32);
    let bits = hash((key ^ 0x5bd1_e995).wrapping_add(element.wrapping_mul(0x9e37_79b9)));
    let bits = match moment {
        Moment::First => bits & 0x7fff,
        Moment::Second => bits >> 16 & 0x7fff,
    };
    f64::from(bits + 1) / 32768.0
}

/// Returns the codes and scales of a tensor's moment in a checkpoint, if it contains them.
fn stored(checkpoint: &Checkpoint, moment: Moment, tensor: &str) -> Option<(Vec<u8>, Vec<u32>)> {
    let codes = checkpoint.entry(&format!("{}/{tensor}", moment.entry()))?;
    let scales = checkpoint.entry(&format!("state_scales/{tensor}"))?;
    Some((codes.to_vec(), bytemuck::pod_collect_to_vec(scales)))
}

/// Decodes a tensor's 8-bit moment from a checkpoint, if it contains one.
pub fn decoded(checkpoint: &Checkpoint, moment: Moment, tensor: &str) -> Option<Vec<f64>> {
    let (codes, scales) = stored(checkpoint, moment, tensor)?;
    let value = |(code, word): (&u8, u32)| {
        let code = moment.signed(*code);
        moment.value(code * code, moment.scale_of(word)).copysign(code)
    };
    let words = scales.iter().flat_map(|&word| [word; BLOCK]);
    Some(codes.iter().zip(words).map(value).collect())
}

/// A tensor's master weights of 24 bits as a checkpoint has them, if it has remainders of 8 bits: numbers with the exponents of the parameters, and
/// 8 bits of precision more.
pub fn short_masters(checkpoint: &Checkpoint, element: Element, tensor: &str) -> Option<Vec<f64>> {
    let kept: Vec<i8> = bytemuck::pod_collect_to_vec(checkpoint.entry(&format!("remainder_codes/{tensor}"))?);
    let stored: Vec<u16> = bytemuck::pod_collect_to_vec(checkpoint.entry(&format!("parameters/{tensor}"))?);
    let (fraction_bits, bias) = if element == Element::F16 { (18, 15) } else { (15, 127) };
    let value = |(stored, kept): (u16, i8)| {
        let whole = i32::from(stored & 0x7fff) * 256 + i32::from(kept);
        let (exponent, fraction) = (whole >> fraction_bits, whole & ((1 << fraction_bits) - 1));
        let significand = if exponent > 0 { fraction | 1 << fraction_bits } else { fraction };
        let magnitude = f64::from(significand) * 2f64.powi(exponent.max(1) - bias - fraction_bits);
        if stored & 0x8000 == 0 { magnitude } else { -magnitude }
    };
    Some(stored.into_iter().zip(kept).map(value).collect())
}

/// Stored code or scale that is not among the possible ones.
#[derive(Debug, Clone, PartialEq)]
pub struct WrongCode {
    /// Index of the element, or of the first element of a block.
    pub element: usize,
    /// True if it is the scale and not the code.
    pub is_scale: bool,
    /// Stored value.
    pub got: f64,
    /// Nearest possible value.
    pub expected: f64,
}

/// Compares a tensor's moment in a checkpoint after a step with the moment that the step computed before it was stored.
/// `first_element` is the index of the tensor's first element among the optimizer's elements.
///
/// # Panics
/// If the checkpoint contains no such codes.
pub fn wrong_codes(
    checkpoint: &Checkpoint,
    moment: Moment,
    tensor: &str,
    values: &[f64],
    (seed, step, first_element): (u32, u64, u32),
) -> Vec<WrongCode> {
    let (codes, scales) = stored(checkpoint, moment, tensor).expect("codes");
    assert_eq!((codes.len(), scales.len()), (values.len(), values.len().div_ceil(BLOCK)));
    // The paths round to f32, so that numbers below its range are 0.
    let values: Vec<f64> = values.iter().map(|&x| f64::from(x as f32)).collect();
    let mut wrong = Vec::new();
    let mut compare = |element, is_scale, got: f64, (low, high): (f64, f64)| {
        if !(low..=high).contains(&got) {
            wrong.push(WrongCode { element, is_scale, got, expected: got.clamp(low, high) });
        }
    };
    for (block, values) in values.chunks(BLOCK).enumerate() {
        let first = block * BLOCK;
        let scale = moment.scale_of(scales[block]);
        let largest = values.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        let expected = |share: f64| moment.scale(largest * (1.0 + share));
        compare(first, true, scale, (expected(-ROUNDING), expected(ROUNDING)));
        for (element, value) in (first..).zip(values) {
            // A device may flush denormal numbers to zero.
            let may_be_zero = value.abs() < f64::from(f32::MIN_POSITIVE);
            let random = random(moment, seed, step, first_element.wrapping_add(element as u32));
            let code = |share: f64| moment.code(value.abs() * (1.0 + share), scale, random);
            let got = moment.signed(codes[element]) * if *value < 0.0 { -1.0 } else { 1.0 };
            // Sums that nearly cancel have rounding errors larger than their own last place. Squares do not cancel.
            let tiny = if moment == Moment::First { largest * ROUNDING } else { 0.0 };
            let (low, high) = (code(-ROUNDING), code(ROUNDING));
            let zero = moment.code((value.abs() - tiny).max(0.0), scale, random);
            let zero = if may_be_zero { 0.0 } else { zero };
            compare(element, false, got, (low.min(zero), high.max(moment.code(value.abs() + tiny, scale, random))));
        }
    }
    wrong
}
