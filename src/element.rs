//! What the elements of parameters and gradients are stored as, and how parameters get back into 16 bits.

use crate::error::{Error, require};
use crate::gpu::ElementSlice;

/// What an element is stored as. Whatever it is, every sum and every step is computed in f32, and what the optimizer remembers is f32.
///
/// 16-bit elements are decoded and encoded by their bits, in instructions of u32 and f32, so that no adapter feature is needed (`SHADER_F16`
/// is not), and the same f32 has the same code on every driver. Two of them share a word: a 16-bit tensor starts at a multiple of 4 bytes, and nothing else may be in the
/// 2 bytes behind one of odd length, which steps leave as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub enum Element {
    /// IEEE 754 binary32.
    #[default]
    F32,
    /// IEEE 754 binary16: 11 bits of precision, from 2⁻²⁴ to 65504.
    F16,
    /// The upper half of a binary32: 8 bits of precision, the range of f32.
    Bf16,
}

impl Element {
    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        match self {
            Element::F32 => 4,
            Element::F16 | Element::Bf16 => 2,
        }
    }

    /// `f32`, `f16` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::Bf16 => "bf16",
        }
    }

    /// A slice of a buffer with such elements, for [`Group::tensor`](crate::Group::tensor) and
    /// [`Optimizer::rebind`](crate::Optimizer::rebind). A plain [`wgpu::BufferSlice`] is one of f32.
    pub fn of(self, slice: wgpu::BufferSlice<'_>) -> ElementSlice<'_> {
        ElementSlice::new(self, slice)
    }

    /// Whether two of them share a word.
    pub(crate) fn is_half(self) -> bool {
        self != Element::F32
    }
}

/// How 16-bit parameters take a step: it is computed in f32, and mostly smaller than what 16 bits can tell. Parameters in f32 do not care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Rounding {
    /// Master weights (Micikevicius et al., arXiv:1710.03740, section 3.1): the optimizer goes by parameters of f32, of which the caller's are the nearest, ties to
    /// even. It keeps what they lack, 2 bytes per parameter, not a second copy of 4.
    ///
    /// A master is exact to f32's last place, but for two cases. Of bf16 it is 1 ulp of f32 too small where it lies exactly between two codes
    /// and the lower one is even, once in 2¹⁷. Of f16 it is a multiple of 2⁻³⁸ below 2⁻¹⁴, where f32 goes on to finer ones; and beyond 65520 it is infinite, as
    /// its f16 is. The caller may write other parameters between steps: masters follow, to within half a unit of 16 bits,
    /// or a whole one where a parameter of f16 was below 2⁻¹⁴.
    #[default]
    Masters,
    /// To the nearest, ties to even, with nothing kept: a step smaller than half a unit in the last place of the parameter is lost.
    Nearest,
    /// Up or down at random, with the probability that makes the mean right (Gupta et al., arXiv:1502.02551, section 3): small steps count on average, with nothing kept.
    ///
    /// The random bits are a hash of the seed, the step's number and the element's place in the order of declaration: the same on every
    /// adapter and on the CPU path, for every geometry, and after a resumed checkpoint. Ranks ([`sharded`](crate::OptimizerBuilder::sharded))
    /// draw different ones. What f16 cannot hold may become infinite from 65504 on, where the nearest does from 65520.
    Stochastic {
        /// Any number.
        seed: u32,
    },
}

impl Rounding {
    /// `masters`, `nearest` or `stochastic`.
    pub fn name(self) -> &'static str {
        match self {
            Rounding::Masters => "masters",
            Rounding::Nearest => "nearest",
            Rounding::Stochastic { .. } => "stochastic",
        }
    }

    pub(crate) fn seed(self) -> u32 {
        match self {
            Rounding::Stochastic { seed } => seed,
            _ => 0,
        }
    }
}

/// Refuses what a tensor's elements do not go together with.
pub(crate) fn check(
    tensor: &str,
    params: Element,
    averages: bool,
    rounding: Rounding,
) -> Result<(), Error> {
    require(
        !(averages && params.is_half()) || rounding == Rounding::Masters,
        || format!("tensor \"{tensor}\""),
        "rounding",
        rounding.name(),
        "masters where an average is kept, which must come back from the parameters' place as it was",
    )
}

/// A hash of 32 bits whose every output bit depends on every input bit: lowbias32 of C. Wellons' "hash-prospector".
#[inline(always)]
pub(crate) fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

/// What random bits of one step are drawn from: those of element i are `mix(key + 0x9e3779b9 i)`.
pub(crate) fn rounding_key(seed: u32, steps_low: u32, steps_high: u32) -> u32 {
    mix(mix(mix(seed) ^ steps_low) ^ steps_high)
}

/// The seed of one rank.
pub(crate) fn seed_of_rank(seed: u32, rank: u32) -> u32 {
    match rank {
        0 => seed,
        rank => seed ^ mix(rank),
    }
}
