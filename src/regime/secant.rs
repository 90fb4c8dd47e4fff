//! Last secant, which BarzilaiBorwein, AdGd and Curvature use. Twin of `shaders/learning_rate/secant.wgsl`.
//!
//! The last step is `s = -η u_{t-1}`, and the change of the gradient is `y = g_t - g_{t-1}`. The regimes keep the last
//! gradient (4 bytes per parameter) and read it in pass 1, so that `y` is exact. If the two gradients are of different
//! mini-batches, `y` is mostly noise, which makes the rate shrink. BarzilaiBorwein and AdGd are therefore for full
//! batches, or for comparison. Curvature takes `g_t` from the same batch.
//!
//! Decoupled weight decay is not part of `s`. With a clip, `u` is the clipped last gradient. Coupled weight decay is
//! not clipped in the step, so that the combination of both is an approximation.

use crate::layout::{GroupConstants, GroupState, Scaled, ScopeSums};
use crate::regime::gradient::{Gradient, is_sign_rule};

/// Sums u·y, u·u and y·y of pass 1, with u and y scaled by powers of two.
pub(crate) struct Secant {
    pub(crate) u_dot_y: f32,
    pub(crate) u_square: f32,
    pub(crate) y_square: f32,
    /// log2 of the scale of u divided by that of y.
    pub(crate) shift: i32,
    /// log2 of the scale of y.
    pub(crate) scale: i32,
}

/// Returns the secant of the last step, or `None` if a sum overflows f32.
pub(crate) fn last_secant(c: &GroupConstants, g: &Gradient, s: &GroupState) -> Option<Secant> {
    secant_of(c, g.sums, g.scale_of_sums, s)
}

/// Returns the secant of the last step, or `None` if a sum overflows f32. The gradients in the sums are scaled by
/// 2^-`scale`.
pub(crate) fn secant_of(c: &GroupConstants, sums: &ScopeSums, scale: i32, s: &GroupState) -> Option<Secant> {
    let sums = [sums.slow_dot, sums.direction_square, sums.absolute];
    // u is scaled by the exponent of the momentum's bound, by that of the gradient, or not at all.
    let direction_exponent = if is_sign_rule(c) {
        0
    } else if c.rule.momentum > 0.0 {
        s.direction_exponent
    } else {
        scale
    };
    sums.iter().all(|sum| sum.is_finite()).then(|| Secant {
        u_dot_y: sums[0],
        u_square: sums[1],
        y_square: sums[2],
        shift: direction_exponent - scale,
        scale,
    })
}

/// Computes ‖u‖/‖y‖, or 0 if either is 0.
pub(crate) fn ratio_of_lengths(secant: &Secant) -> Scaled {
    if secant.u_square == 0.0 || secant.y_square == 0.0 {
        return Scaled::ZERO;
    }
    Scaled::new(secant.u_square, 2 * secant.shift).quotient(Scaled::new(secant.y_square, 0)).root()
}
