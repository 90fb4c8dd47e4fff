//! Element types of parameters and gradients, and the rounding of 16-bit parameters.

use crate::error::{Error, require};

/// Element type of a tensor. All sums and steps are computed in f32. The optimizer's own memory is f32 unless [`State`](crate::State) or
/// [`Rounding`](crate::Rounding) say otherwise.
///
/// The shaders convert 16-bit elements by bit manipulation in u32 and f32. No adapter feature is needed (not even `SHADER_F16`), and the same f32
/// becomes the same 16 bits on every driver. Two elements share a 32-bit word: a 16-bit tensor starts at a multiple of 4 bytes. Steps do not change
/// the 2 bytes behind a tensor of odd length, and nothing else may use these bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
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
    /// Returns the size of an element in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Element::F32 => 4,
            Element::F16 | Element::Bf16 => 2,
        }
    }

    /// Returns `f32`, `f16` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::Bf16 => "bf16",
        }
    }

    /// Returns the element type of a name.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Element::F32, Element::F16, Element::Bf16].into_iter().find(|element| element.name() == name)
    }

    /// Returns true for 16-bit types, two of which share a 32-bit word.
    pub(crate) fn is_half(self) -> bool {
        self != Element::F32
    }
}

/// Rounding of 16-bit parameters. A step is computed in f32 and is usually smaller than the spacing of 16-bit numbers. The rounding determines how
/// such a step is stored. f32 parameters are not affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Rounding {
    /// Master weights (Micikevicius et al., arXiv:1710.03740, section 3.1): the update is applied to an f32 master copy, and the caller's buffer
    /// holds its nearest 16-bit number, ties to even. The optimizer stores only the remainder: 2 bytes per parameter instead of 4. With
    /// [`State::Bits8`](crate::State::Bits8), which documents the precision of master weights in that case, it is 1 byte.
    ///
    /// A master weight is exact to f32's last place, with these exceptions. For bf16 it is 1 f32 ulp too small if it lies exactly between two bf16
    /// numbers and the lower one is even, which happens once in 2¹⁷. For f16 it is a multiple of 2⁻³⁸ below 2⁻¹⁴, where f32 is finer, and it is
    /// infinite beyond 65520, as its f16 is. If the caller writes other parameters between steps, the master follows to within half a unit in the
    /// last place of 16 bits, or a whole unit if an f16 parameter was below 2⁻¹⁴.
    #[default]
    Masters,
    /// Rounds to the nearest 16-bit number, ties to even, and keeps nothing. A step smaller than half a unit in the parameter's last place is lost.
    Nearest,
    /// Rounds up or down at random, with the probability that makes the mean right (Gupta et al., arXiv:1502.02551, section 3), and keeps
    /// nothing. Small steps count on average.
    ///
    /// The random bits are a hash of the seed, the step's number and the element's place in the order of declaration. They are the same on every
    /// adapter and on the CPU path, for every geometry, and after resuming from a checkpoint. Ranks ([`sharded`](crate::OptimizerBuilder::sharded))
    /// draw different bits. An f16 parameter may become infinite from 65504 on. With rounding to nearest it does so from 65520.
    Stochastic {
        /// Seed of the random bits, which may be any number.
        seed: u32,
    },
}

impl Rounding {
    /// Returns `masters`, `nearest` or `stochastic`.
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

/// Returns an error for settings that a tensor's element type does not support.
pub(crate) fn check(tensor: &str, params: Element, averages: bool, rounding: Rounding) -> Result<(), Error> {
    require(
        !(averages && params.is_half()) || rounding == Rounding::Masters,
        || format!("tensor \"{tensor}\""),
        "rounding",
        rounding.name(),
        "masters where an average is kept, which must come back from the parameters' place as it was",
    )
}

/// Computes a 32-bit hash, of which every output bit depends on every input bit: lowbias32 of C. Wellons' "hash-prospector".
#[inline(always)]
pub(crate) fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

/// Returns the key of one step's random bits. The bits of element i are `mix(key + 0x9e3779b9 i)`.
pub(crate) fn rounding_key(seed: u32, steps_low: u32, steps_high: u32) -> u32 {
    mix(mix(mix(seed) ^ steps_low) ^ steps_high)
}

/// Returns the seed of one rank.
pub(crate) fn seed_of_rank(seed: u32, rank: u32) -> u32 {
    match rank {
        0 => seed,
        rank => seed ^ mix(rank),
    }
}
