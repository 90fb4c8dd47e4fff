//! Storage of the memory of rules: in f32, or in 8 bits with block scales.

/// Storage of a rule's memory, the momentum m and the second moment v, and of the remainders of master weights
/// ([`Rounding::Masters`](crate::Rounding::Masters)). [`Group::state`](crate::Group::state) and
/// [`OptimizerBuilder::state`](crate::OptimizerBuilder::state) set it. Steps are computed in f32 in either case.
///
/// It does not affect averages, the base iterates of schedule-free training, or the memory of regimes. For rules without memory ([`Sgd`](crate::Sgd),
/// [`SignSgd`](crate::SignSgd)) it affects only the remainders, and with f32 parameters nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum State {
    /// 4 bytes per parameter for each of m and v, and 2 for the remainder of a master weight.
    #[default]
    F32,
    /// 1 byte per parameter for each of m and v, and 4 bytes for every 32 parameters: 1.125 bytes per parameter for a rule with one of them, 2.125
    /// for AdamW. The remainder of a master weight takes 1 byte: AdamW with bf16 parameters and gradients takes 7.125 bytes per parameter in all.
    /// This is similar to the 8-bit optimizers of other libraries (Dettmers et al., arXiv:2110.02861; FlashOptim, arXiv:2602.23349), but the codes
    /// are this crate's own.
    ///
    /// 32 neighbouring parameters of a tensor, counted from its first element, are a block with one scale `s` for m and one for `√v`. A code q from
    /// -127 to 127 stands for `m = q·|q|·s`, and a code c from 0 to 255 for `√v = c²·s`. A scale is the smallest number with 8 significant bits for
    /// which the block's largest magnitude has a code. Codes are closest together near zero: the smallest m is 1/16129 of the block's largest, the
    /// smallest `√v` is 1/65025 of it. A v above 0 never becomes 0, because steps divide by `√v`.
    ///
    /// **Error of a code**: less than the distance to the next code, `2√(x/X)/127` of the block's largest `X` at the magnitude x for m (1.6 % at
    /// most), and `2/c` of `√v` itself (0.8 % at the largest). One of the two neighbouring codes is chosen at random, with the probability that makes
    /// the mean right. Rounding to the nearest code would lose small changes in every step: with β₂ = 0.999 a step lowers `√v` by 0.05 % at most. The
    /// random bits are a hash of the step's number, the element's place in the order of declaration and the seed of
    /// [`Rounding::Stochastic`](crate::Rounding::Stochastic) (else 0). They are the same on every adapter and on the CPU path, and after resuming
    /// from a checkpoint. A number has the same code on every path. A path that computes another last bit of m may choose the neighbouring code,
    /// about once in 10⁵ times, and continues from it.
    ///
    /// **Master weights have 24 bits** instead of 32. They have the exponent of the 16-bit parameter and 8 more bits of precision, which makes 16
    /// significant bits for bf16 and 19 for f16 (multiples of 2⁻³² below 2⁻¹⁴). A step rounds the new master up or down at random, with the
    /// probability that makes the mean right, so that steps smaller than its last place count on average. A step of 0 changes nothing. The random
    /// bits are a hash of the same kind as for m and v, and independent of those bits. The caller's buffer holds the 16-bit number that is nearest to
    /// the master. In a tie it is the one that is larger in magnitude. The byte is the difference of the two, from -128 to 127, in 256ths of the
    /// parameter's last place. Groups with an [`Averaging`](crate::Averaging) keep remainders of 16 bits, because averages and parameters are
    /// exchanged there without loss.
    ///
    /// If the largest magnitude of m in a block is below 2⁻⁹⁶, or that of `√v` below 2⁻⁴⁴ (5.7e-14), codes stay unused and precision is lost.
    ///
    /// - An element that takes no step, because its parameter or its momentum would leave the range of its type, keeps its decoded m, which is
    ///   encoded again with the block's new scale.
    /// - A step that is skipped, and a tensor without gradients, keep every bit.
    /// - Regimes that measure the alignment with the momentum, or the last step, use the decoded m and v.
    /// - On the device, a tensor whose parameters or gradients do not start at a multiple of 4 elements is loaded one element at a time. If the
    ///   length of a tensor is not a multiple of 4, so are its elements after the last block of 32. The workgroup size of the
    ///   [`Tuning`](crate::gpu::Tuning) must be at least 8.
    /// - It is refused with [`Muon`](crate::Muon) (the passes over its matrices take 8 bytes per parameter beside the momentum),
    ///   [`Adafactor`](crate::Adafactor) (what it keeps is small), [`Group::lazy_rows`](crate::Group::lazy_rows) (rows share scales),
    ///   [`AmsGrad`](crate::AmsGrad) (its largest v would include the rounding errors and never fall again) and [`Adagrad`](crate::Adagrad) (no code
    ///   could add to its sum of squares).
    Bits8,
}

impl State {
    /// Returns `f32` or `8bit`, the name that the command line uses.
    pub fn name(self) -> &'static str {
        match self {
            State::F32 => "f32",
            State::Bits8 => "8bit",
        }
    }

    /// Returns both kinds, to iterate over.
    pub fn all() -> [Self; 2] {
        [State::F32, State::Bits8]
    }
}

/// Number of elements that share a scale.
pub(crate) const BLOCK: u32 = 32;
