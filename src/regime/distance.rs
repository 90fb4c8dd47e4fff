//! Regimes that use the distance from the first parameters.

/// Distance over gradients: `η_t = r̄_t / √(Σ_{i≤t} ‖u_i‖²)`, `r̄_t = max(r_ε, max_{i≤t} ‖w_i - w_0‖)`, `r_ε = ε (1 + ‖w_0‖)` (Ivgi, Hinder
/// & Carmon 2023, arXiv:2302.12022, eq. 2 and 3; with `ε = 1e-6` as there, and without its averaging of the parameters).
///
/// Keeps `w_0`, 4 bytes per parameter, which the first pass reads together with the parameters. `‖u‖` is the norm n of the gradient, or √d for
/// sign rules; momentum is not taken into account. The change per step is limited as in every regime. In f32 the first distances are as coarse
/// as the last place of the parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub struct DoG {
    /// `ε = 1e-6`.
    pub initial_distance: f32,
}

impl Default for DoG {
    fn default() -> Self {
        DoG { initial_distance: 1e-6 }
    }
}

/// Distance over *weighted* gradients: `η_t = r̄_t² / √v_t`, `v_t = Σ_{i≤t} r̄_i² ‖u_i‖²` (Khaled, Mishchenko & Jin 2023, arXiv:2305.16284,
/// algorithm 1); otherwise as [`DoG`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub struct DoWG {
    /// `ε = 1e-6`.
    pub initial_distance: f32,
}

impl Default for DoWG {
    fn default() -> Self {
        DoWG { initial_distance: 1e-6 }
    }
}
