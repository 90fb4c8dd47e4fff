//! Regimes from the secant equation `B s = y`, `s = w_t - w_{t-1} = -η u_{t-1}`, `y = g_t - g_{t-1}`.
//!
//! Both keep the last gradient (4 bytes per parameter) and read it in the first pass, so that `y` is exact. With mini-batches `y` is mostly
//! noise, which makes the rate shrink: these regimes are for full batches, or for comparison. The first step has length `ε (1 + ‖w₀‖)` unless a
//! first rate is given. Decoupled weight decay is not part of `s`. With a clip, `u` is the last gradient after the clip; together with coupled
//! weight decay, which the step does not clip, this is an approximation.
//!
//! A secant gives the rate of a step along the gradient. For sign rules it is converted to a step along the signs of the same length:
//! `η ← η n/√d`.

/// `s·s/s·y`, `s·y/y·y` or their geometric mean `‖s‖/‖y‖` (Barzilai & Borwein 1988; for stochastic gradients Tan et al. 2016,
/// arXiv:1605.04131, eq. 6 and 7).
///
/// Safeguards: the rate changes by at most a factor of `max_change` per step; where `y = 0`, and in Long and Short where
/// `s·y ≤ 0` (no curvature to go by), it is carried over; where a sum left the range of f32 it falls by that factor. In the record `norm_term` is what the norm alone explains (`0`,
/// `-x` and `-x/2` with `x = ln(n_t/n_{t-1})`), `curvature_term` the rest, `clamp_term` the bound.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub struct BarzilaiBorwein {
    /// Formula of the rate.
    pub form: SecantForm,
    /// `2`: the largest growth per step, and its inverse the largest shrink; above 1.
    pub max_change: f32,
    /// η of the first step; `None` takes it from the first step's length.
    pub initial_rate: Option<f32>,
    /// `ε = 1e-2`, used where `initial_rate` is `None`.
    pub first_step: f32,
}

impl BarzilaiBorwein {
    /// This form, with the default constants.
    pub fn new(form: SecantForm) -> Self {
        BarzilaiBorwein { form, max_change: 2.0, initial_rate: None, first_step: 1e-2 }
    }
}

/// Formula that turns a secant into a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub enum SecantForm {
    /// `s·s/s·y`, the long one: least squares in `s`.
    Long,
    /// `s·y/y·y`, the short one: least squares in `y`.
    Short,
    /// `‖s‖/‖y‖`, their geometric mean.
    Geometric,
}

/// `η = min(√(1 + θ_{t-1}) η_{t-1}, ‖s‖/(2‖y‖))`, `θ_{t-1} = η_{t-1}/η_{t-2}` (Malitsky & Mishchenko 2020, arXiv:1910.09529,
/// algorithm 1; `θ_0 = ∞`).
///
/// In the record `norm_term` is `-x/2`, `curvature_term` the rest of the secant, and `gate_term` what the bound on growth held back.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub struct AdGd {
    /// η of the first step; `None` takes it from the first step's length.
    pub initial_rate: Option<f32>,
    /// `ε = 1e-2`, used where `initial_rate` is `None`.
    pub first_step: f32,
}

impl Default for AdGd {
    fn default() -> Self {
        AdGd { initial_rate: None, first_step: 1e-2 }
    }
}
