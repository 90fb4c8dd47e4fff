//! Code shared by the regimes whose formula gives the rate itself and not its change. Twin of
//! `shaders/learning_rate/formula.wgsl`.

pub(crate) use crate::layout::numbers::MAX_FACTOR;
use crate::layout::terms::{CLAMP_TERM, CURVATURE_TERM, DISTANCE_TERM, GATE_TERM, HISTORY_TERM, LOSS_TERM, NORM_TERM};
use crate::layout::{GroupConstants, GroupState, RawRecord, Scaled, record_flags};
use crate::regime::RATE_MIN;
use crate::regime::gradient::{Gradient, direction_length, hold_rate, is_sign_rule};

/// Sets the rate that a formula gives, within its limits. A wanted rate of 0 gives the lowest rate that they allow.
/// Returns η_t / η_{t-1}, or 0 at the first gradient.
pub(crate) fn set_rate(
    wanted: Scaled,
    max_change: f32,
    max_rate: f32,
    g: &Gradient,
    s: &mut GroupState,
    r: &mut RawRecord,
) -> f32 {
    let old = Scaled::new(s.regime_rate, 0);
    let mut rate = wanted;
    if !g.first {
        rate = rate.smaller(old.times(max_change)).larger(old.quotient(Scaled::new(max_change, 0)));
        if rate != wanted {
            r.flags |= record_flags::CLAMPED_CHANGE;
        }
    }
    let within = rate.smaller(Scaled::new(max_rate, 0)).larger(Scaled::new(RATE_MIN, 0));
    if rate != within {
        r.flags |= record_flags::CLAMPED_RATE;
    }
    hold_rate(within, s);
    if g.first {
        return 0.0;
    }
    let of_formulas = [NORM_TERM, CURVATURE_TERM, GATE_TERM, DISTANCE_TERM, HISTORY_TERM, LOSS_TERM];
    let explained: f32 = of_formulas.map(|term| r.terms[term as usize]).iter().sum();
    // The clamp also includes what earlier clamps took away, if the formula depends only on this step. A remainder
    // within the rounding of the terms is not a clamp.
    let clamped = within.ln_ratio(old) - explained;
    r.terms[CLAMP_TERM as usize] = if clamped.abs() < 4e-6 * explained.abs().max(1.0) { 0.0 } else { clamped };
    within.quotient(old).to_float()
}

/// Returns the squared length of the step's direction as these regimes assume it: that of the gradient or of its signs.
pub(crate) fn direction_square_of(c: &GroupConstants, square: Scaled) -> Scaled {
    if is_sign_rule(c) { direction_length(c).product(direction_length(c)) } else { square }
}

/// Returns ln(a / b), or 0 if either is 0.
pub(crate) fn ln_ratio_or_0(a: Scaled, b: Scaled) -> f32 {
    if a.is_zero() || b.is_zero() { 0.0 } else { a.ln_ratio(b) }
}

/// Returns the rate of a step along the signs that is as long as a step along the gradient at this rate.
pub(crate) fn rate_along_signs(c: &GroupConstants, rate: Scaled, norm: Scaled) -> Scaled {
    rate.product(norm).quotient(direction_length(c))
}
