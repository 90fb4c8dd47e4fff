//! Regimes that ask whether steps agree.

use crate::averaging::Averaging;
use crate::rule::Rule;

/// Norm and alignment, anchored to the first step. This is the default regime.
///
/// The learning rate rises as the gradient norm falls and falls as it rises. Z. Yang, arXiv:2508.13639, gives the idea. The formula is
/// this project's own derivation from the secant equation, not the paper's:
///
/// ```text
/// ln η_t = ln η_0 + p ln(n̂_1 / n̂_t) + A_t  rules whose step shrinks with the gradient: p' for p where n̂_t > n̂_1
/// η_0    = ε (1 + ‖w_0‖) / n_1             rules whose step does not shrink with the gradient: / √d
/// r      = A_{t-1} + κ_k (n_t / n̂_t) a_t   κ_k = max(κ, h / (h + k - 2)) at the k-th non-zero gradient
/// F      = the least A so far, at most 0
/// A_t    = r                               where r ≥ F
///          F + x (r - F)                   elsewhere, with x = clamp(log2(n̂_t / n̂_1) - 1, 0, 1)
/// ```
///
/// In words: the first step is a fixed share of the parameters' length. From there on the rate follows the smoothed norm n̂. Steps that
/// agree raise the rate above this anchor, and steps that contradict each other take back what agreement gave. They lower the rate
/// below its anchor only while the smoothed norm stands above twice its first value, and in full from four times on.
///
/// The alignment `a_t` is a cosine of the gradient with where the optimizer has been going:
/// - Rules with momentum compare it with the momentum: `a = ⟨g, m⟩ / (‖g‖ ‖m‖)`. They have no brake.
/// - Rules without momentum keep a direction memory of one byte per parameter: `q ← clamp(q + sign g, -7, 7)` and the sign of the last
///   step. With `f` the bias-corrected moving average (weight 0.8 on the past) of `⟨g, sign u_{t-1}⟩ / ‖g‖₁`,
///   `a = ⟨g, q⟩ / (‖g‖ ‖q‖) + min(0, f + slack)`. The second part is the brake.
/// - `Sgd` and `SignSgd` in [schedule-free training](Averaging::ScheduleFree) need neither memory nor brake:
///   `a = ⟨g, y - z⟩ / (‖g‖ ‖y - z‖)`, the slope along the line from `z`, which takes the steps, to the average. It is 0 up to the second
///   gradient, where `y = z`. Where they share a norm with a group of another kind, they are compared with the direction memory too.
///
/// [`Record`](crate::Record) has each part as a term: `norm_term`, `alignment_term`, `brake_term` and `held_term`, which is what the
/// floor `F` kept back of a fall. A rise of ln η by more than ln 10 in one step is clamped, η is clamped to `[1e-30, 1e30]`, and A to
/// twice the logarithm of that, so that a rate at its limit comes back soon after gradients turn.
///
/// On mini-batches the alignment is negative on average whatever the rate is: along a direction of curvature `h` that is dominated by
/// noise the expected cosine of successive gradients is `-ηh/2` (the short-horizon bias of Wu et al. 2018, arXiv:1803.02021). That is why
/// steps that contradict each other cannot lower the rate below its anchor while the norm has not risen: otherwise the rate would decay
/// like `1/t`, paced by the sharpest noisy direction.
///
/// The defaults are constants of the method. They are fields so that they can be studied, not so that they must be tuned.
/// [`guide::tried`](crate::guide::tried) says how they were chosen and what did not help, and [`guide::results`](crate::guide::results) how the
/// regime compares with tuned rates.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub struct Seesaw {
    /// `p = 1/2`, between a fixed rate (0) and a fixed step length (1).
    pub exponent: f32,
    /// `p' = 3/2`, which takes the place of `p` while `n̂` is above its first value, for the rules whose step shrinks with the gradient
    /// (`Sgd`, `Sgdm`). Their steps grow with the gradient, so that with an exponent of 1/2 a first step that is too long is followed by
    /// longer ones.
    pub exponent_above: f32,
    /// `κ = 0.1`. With 0 there is no alignment, and no memory is kept for it.
    pub gain: f32,
    /// `h = 5`: how slowly the gain falls from 1 to κ. The first step's length is a guess, and a rate that may change by 10 % a step
    /// needs dozens of steps to leave it. With 0 the gain is κ from the start.
    pub early_steps: f32,
    /// `β = 0.9`, of the moving average in the smoothed norm.
    pub smoothing: f32,
    /// `φ = 1e-4`: n̂ never falls below this share of the mean norm, so that the rate stops rising once a problem is solved to the last
    /// bit.
    pub norm_floor: f32,
    /// `slack = 0.5`: by how much successive steps may contradict each other before the brake acts.
    pub brake_slack: f32,
    /// ε: the first step has length `ε (1 + ‖w₀‖)`. `None` takes [`Rule::first_step`].
    pub first_step: Option<f32>,
}

impl Default for Seesaw {
    fn default() -> Self {
        Seesaw {
            exponent: 0.5,
            exponent_above: 1.5,
            gain: 0.1,
            early_steps: 5.0,
            smoothing: 0.9,
            norm_floor: 1e-4,
            brake_slack: 0.5,
            first_step: None,
        }
    }
}

impl Rule {
    /// ε of the first step under [`Seesaw`], [`NormRatio`](crate::NormRatio) and [`Hypergradient`]: the share of the parameters' length
    /// `1 + ‖w₀‖` that it covers.
    ///
    /// | rule | ε |
    /// |---|---|
    /// | `Sgd` | 0.05, schedule-free 0.15 |
    /// | `Sgdm` with momentum μ and dampening δ | 0.105 (1 - μ)/(1 - δ), 0.05 at most: 0.0105 at μ = 0.9 |
    /// | `SignSgd`, `Signum` | 0.03 |
    /// | `AdamW` | 0.05 |
    /// | `Lion` | 0.01 |
    ///
    /// With momentum a gradient moves the parameters (1 - δ)/(1 - μ) times as far as its first step does.
    pub fn first_step(&self, averaging: &Averaging) -> f32 {
        match *self {
            Rule::Sgd if *averaging == Averaging::ScheduleFree => 0.15,
            Rule::Sgd | Rule::AdamW { .. } => 0.05,
            Rule::Sgdm { momentum, dampening, .. } => (0.105 * (1.0 - momentum) / (1.0 - dampening)).min(0.05),
            Rule::SignSgd | Rule::Signum { .. } => 0.03,
            Rule::Lion { .. } => 0.01,
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
    /// `h = 5`, as in [`Seesaw`].
    pub early_steps: f32,
    /// `β = 0.9`, of the smoothed norm in the weight `n/n̂`.
    pub smoothing: f32,
    /// `φ = 1e-4`, as in [`Seesaw`].
    pub norm_floor: f32,
    /// ε, as in [`Seesaw`].
    pub first_step: Option<f32>,
}

impl Default for Hypergradient {
    fn default() -> Self {
        Hypergradient { gain: 0.1, early_steps: 5.0, smoothing: 0.9, norm_floor: 1e-4, first_step: None }
    }
}
