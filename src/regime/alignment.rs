//! Regimes that ask whether steps agree.

/// Norm and alignment: `ln η ← ln η + p ln(n̂_{t-1}/n̂_t) + κ_t (n/n̂) a`.
///
/// The learning rate rises as the gradient norm falls and falls as it rises (Z. Yang, arXiv:2508.13639, gives the idea; the
/// formula is this project's own derivation from the secant equation). `a = a_slow + min(0, a_fast + slack)`:
/// - rules with momentum: `a_slow = ⟨g, m⟩ / (‖g‖ ‖m‖)` and no brake;
/// - rules without: a direction memory of one byte per parameter, `q ← clamp(q + sign g, -7, 7)` and the sign of the last
///   step; `a_slow = ⟨g, q⟩ / (‖g‖ ‖q‖)`, `a_fast = ⟨g, sign u_{t-1}⟩ / ‖g‖₁`.
///
/// The gain of the k-th non-zero gradient is `κ_t = max(κ, h/(h + k - 2))`: 1 for the second, which is the first that can be compared with
/// another, and κ from the 92nd on. A rise of ln η is clamped to ln 10, a fall is not. A fall by alignment (`a < 0`) takes place in full
/// down to a tenth of the geometric mean of η so far, and fades from there to a hundredth; not so for sign rules, whose steps shrink by
/// nothing but the rate.
///
/// The defaults are constants of the method, chosen once; they are fields so that they can be studied.
///
#[doc = include_str!("TRIED.md")]
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub struct Seesaw {
    /// `p = 1/2`, between a fixed rate (0) and a fixed step length (1).
    pub exponent: f32,
    /// `κ = 0.1`; with 0 there is no alignment, and nothing is kept for it.
    pub gain: f32,
    /// `h = 10`: how slowly the gain falls from 1 to κ. The first step's length is a guess, and a rate that may change by 10 % a step
    /// needs dozens of steps to leave it; with 0 the gain is κ from the start.
    pub early_steps: f32,
    /// `β = 0.9`.
    pub smoothing: f32,
    /// `φ = 1e-4`: n̂ never falls below this share of the mean norm, so that the rate stops rising once a problem is solved to the last bit.
    pub norm_floor: f32,
    /// `slack = 0.5`: what two successive steps may contradict each other before the brake acts.
    pub brake_slack: f32,
    /// `ε = 1e-2`: the first step has length `ε (1 + ‖w₀‖)`.
    pub first_step: f32,
}

impl Default for Seesaw {
    fn default() -> Self {
        Seesaw {
            exponent: 0.5,
            gain: 0.1,
            early_steps: 10.0,
            smoothing: 0.9,
            norm_floor: 1e-4,
            brake_slack: 0.5,
            first_step: 1e-2,
        }
    }
}

/// The alignment alone: [`Seesaw`] with `p = 0`, in the spirit of hypergradient descent (Baydin et al. 2018,
/// arXiv:1703.04782), multiplicative and with the cosine weighted by `n/n̂`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub struct Hypergradient {
    /// `κ = 0.1`.
    pub gain: f32,
    /// `h = 10`, as in [`Seesaw`].
    pub early_steps: f32,
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
            early_steps: 10.0,
            smoothing: 0.9,
            norm_floor: 1e-4,
            first_step: 1e-2,
        }
    }
}
