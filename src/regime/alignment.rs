//! Regimes that ask whether steps agree.

/// Norm and alignment: `ln η ← ln η + p ln(n̂_{t-1}/n̂_t) + κ (n/n̂) a`.
///
/// The learning rate rises as the gradient norm falls and falls as it rises (Z. Yang, arXiv:2508.13639, gives the idea; the
/// formula is this project's own derivation from the secant equation). `a = a_slow + min(0, a_fast + slack)`:
/// - rules with momentum: `a_slow = ⟨g, m⟩ / (‖g‖ ‖m‖)` and no brake;
/// - rules without: a direction memory of one byte per parameter, `q ← clamp(q + sign g, -7, 7)` and the sign of the last
///   step; `a_slow = ⟨g, q⟩ / (‖g‖ ‖q‖)`, `a_fast = ⟨g, sign u_{t-1}⟩ / ‖g‖₁`.
///
/// The defaults are constants of the method, chosen once; they are fields so that they can be studied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seesaw {
    /// `p = 1/2`, between a fixed rate (0) and a fixed step length (1).
    pub exponent: f32,
    /// `κ = 0.1`.
    pub gain: f32,
    /// `β = 0.9`.
    pub smoothing: f32,
    /// `φ = 1e-4`: n̂ never falls below this share of the mean norm, so that the rate stops rising once a problem is solved to the last bit.
    pub norm_floor: f32,
    /// `slack = 0.4`.
    pub brake_slack: f32,
    /// `ε = 1e-2`: the first step has length `ε (1 + ‖w₀‖)`.
    pub first_step: f32,
}

impl Default for Seesaw {
    fn default() -> Self {
        Seesaw {
            exponent: 0.5,
            gain: 0.1,
            smoothing: 0.9,
            norm_floor: 1e-4,
            brake_slack: 0.4,
            first_step: 1e-2,
        }
    }
}

/// The alignment alone: [`Seesaw`] with `p = 0`, in the spirit of hypergradient descent (Baydin et al. 2018,
/// arXiv:1703.04782), multiplicative and with the cosine weighted by `n/n̂`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hypergradient {
    /// `κ = 0.1`.
    pub gain: f32,
    /// `β = 0.9`, of the smoothed norm in the weight `n/n̂`.
    pub smoothing: f32,
    /// `φ = 1e-4`, as in [`Seesaw`].
    pub norm_floor: f32,
    /// `ε = 1e-2`.
    pub first_step: f32,
}

impl Default for Hypergradient {
    fn default() -> Self {
        Hypergradient {
            gain: 0.1,
            smoothing: 0.9,
            norm_floor: 1e-4,
            first_step: 1e-2,
        }
    }
}
