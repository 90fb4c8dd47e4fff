//! Regimes that use the loss, which the caller binds as a scalar on the device
//! ([`OptimizerBuilder::loss`](crate::OptimizerBuilder::loss)) or passes to
//! [`CpuOptimizer::step_with_loss`](crate::CpuOptimizer::step_with_loss).
//!
//! A loss that is not finite skips the step, like a gradient. For sign rules the rate of a step along the gradient is turned into that of
//! a step along the signs of the same length: `η ← η n/√d`.

/// `η = (f - f*)/(c n²)` (Polyak 1987; stochastic: Loizou et al. 2021, arXiv:2002.10542, eq. 2), at most `max_rate`.
///
/// Keeps no memory per parameter. The change of ln η in one step is limited to ±ln 10; if `f ≤ f*` the rate falls by that limit. In the record
/// `loss_term` is `ln` of the growth of `f - f*`, `norm_term` is `-2 ln(n_t/n_{t-1})`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub struct Polyak {
    /// `f* = 0`, the smallest loss there can be.
    pub optimum: f32,
    /// `c = 1/2`.
    pub factor: f32,
    /// The largest rate, infinite for none.
    pub max_rate: f32,
}

impl Default for Polyak {
    fn default() -> Self {
        Polyak { optimum: 0.0, factor: 0.5, max_rate: f32::INFINITY }
    }
}

/// `η = σ/(1 + σ n²/(2 f))` for losses of 0 and above (Orvieto & Xiao 2024, arXiv:2407.04358, eq. 4).
///
/// Keeps no memory per parameter. σ is the largest rate, which is reached where the gradient vanishes. In the record `norm_term` is the effect
/// of the change of the norm at the previous loss, and `loss_term` the effect of the change of the loss after that.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub struct Ngn {
    /// `σ = 1`.
    pub rate: f32,
}

impl Default for Ngn {
    fn default() -> Self {
        Ngn { rate: 1.0 }
    }
}
