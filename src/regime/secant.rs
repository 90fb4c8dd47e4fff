//! What BarzilaiBorwein and AdGd share: the last secant. Twin of `shaders/learning_rate/secant.wgsl`.
//!
//! The last step is `s = -η u_{t-1}`, and the change of the gradient `y = g_t - g_{t-1}`. Both regimes keep the last gradient (4 bytes per
//! parameter) and read it in the first pass, so that `y` is exact. With mini-batches `y` is mostly noise, which makes the rate shrink: these
//! regimes are for full batches, or for comparison. Decoupled weight decay is not part of `s`. With a clip, `u` is the last gradient after the
//! clip; together with coupled weight decay, which the step does not clip, this is an approximation.

use crate::layout::{GroupConstants, GroupState, Scaled};
use crate::regime::gradient::{Gradient, is_sign_rule};

/// The sums u·y, u·u and y·y of the first pass, of u and y scaled by powers of two.
pub(crate) struct Secant {
    pub(crate) u_dot_y: f32,
    pub(crate) u_square: f32,
    pub(crate) y_square: f32,
    /// log2 of the scale of u over that of y.
    pub(crate) shift: i32,
}

/// `None` where a sum left the range of f32.
pub(crate) fn last_secant(c: &GroupConstants, g: &Gradient, s: &GroupState) -> Option<Secant> {
    let sums = [g.sums.slow_dot, g.sums.direction_square, g.sums.absolute];
    // u is scaled by the exponent of the momentum's bound, by that of the gradient, or not at all.
    let direction_exponent = if is_sign_rule(c) {
        0
    } else if c.rule.momentum > 0.0 {
        s.direction_exponent
    } else {
        g.scale_of_sums
    };
    sums.iter().all(|sum| sum.is_finite()).then(|| Secant {
        u_dot_y: sums[0],
        u_square: sums[1],
        y_square: sums[2],
        shift: direction_exponent - g.scale_of_sums,
    })
}

/// ‖u‖/‖y‖; 0 where either is 0.
pub(crate) fn ratio_of_lengths(secant: &Secant) -> Scaled {
    if secant.u_square == 0.0 || secant.y_square == 0.0 {
        return Scaled::ZERO;
    }
    Scaled::new(secant.u_square, 2 * secant.shift).quotient(Scaled::new(secant.y_square, 0)).root()
}
