//! Regimes that use the gradient norm alone.

/// Learning rate from the gradient norm alone: `ln η_t = ln η_0 + p ln(n̂_1/n̂_t)`. Keeps no memory per parameter.
///
/// The smoothed norm is the larger of average and present value, so that the rate drops at once when the norm jumps and recovers slowly.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub struct NormRatio {
    /// η of the first step; `None` takes it from the first step's length.
    pub initial_rate: Option<f32>,
    /// `p = 1`.
    pub exponent: f32,
    /// `β = 0.9`.
    pub smoothing: f32,
    /// `φ = 1e-4`, as in [`Seesaw`](crate::Seesaw).
    pub norm_floor: f32,
    /// ε of the first step, as in [`Seesaw`](crate::Seesaw). Used where `initial_rate` is `None`.
    pub first_step: Option<f32>,
}

impl Default for NormRatio {
    fn default() -> Self {
        NormRatio { initial_rate: None, exponent: 1.0, smoothing: 0.9, norm_floor: 1e-4, first_step: None }
    }
}

/// Learning rate from the sum of squared norms: `η = c / √(b₀² + Σ n²)` (Ward, Wu & Bottou 2019, arXiv:1806.01811, eq. 1, where c is η). Keeps
/// no memory per parameter.
///
/// The rate only falls. For sign rules Σ n² is Σ d, the squared length of the directions.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub struct AdaGradNorm {
    /// `c = 1`, in units of the parameters: with `b₀ = 0` the first step has this length.
    pub scale: f32,
    /// `b₀ = 0`, in units of the gradient.
    pub offset: f32,
}

impl Default for AdaGradNorm {
    fn default() -> Self {
        AdaGradNorm { scale: 1.0, offset: 0.0 }
    }
}
