//! Inputs of the regimes' formulas. Twin of `shaders/learning_rate/gradient.wgsl`.

use crate::layout::{GroupConstants, GroupState, Scaled, ScopeSums, group_flags, skips, slots};

/// Gradient that is finite and not zero, with the values of the state that it has replaced.
pub(crate) struct Gradient<'a> {
    pub(crate) sums: &'a ScopeSums,
    pub(crate) square: Scaled,
    pub(crate) norm: Scaled,
    /// Norm of the previous gradient, 0 at the first one.
    pub(crate) last_norm: Scaled,
    /// Smoothed norm n̂.
    pub(crate) smoothed: Scaled,
    pub(crate) last_smoothed: Scaled,
    /// Exponent of the scale: gradients in the inner products are multiplied by 2^-scale.
    pub(crate) scale_of_sums: i32,
    pub(crate) first: bool,
    /// Rise of ln η by schedule and controls in this step, 0 if they do not raise it.
    pub(crate) scheduled_rise: f32,
}

/// Exchange of parameter streams that the update does after the step or in place of it.
pub(crate) struct Turn {
    /// Factor of η for the stream.
    pub(crate) factor: f32,
    /// 1 if the step is the first of its stream.
    pub(crate) begins: u32,
    /// Value of [`Update::skip`](crate::layout::Update::skip) if the step is skipped.
    pub(crate) skip: u32,
    pub(crate) put: u32,
    pub(crate) take: u32,
}

impl Turn {
    /// Turn that exchanges no stream.
    pub(crate) const NONE: Turn =
        Turn { factor: 1.0, begins: 0, skip: skips::SKIP_ALL, put: slots::NO_SLOT, take: slots::NO_SLOT };
}

/// Sets the rate that later changes are relative to.
pub(crate) fn hold_rate(rate: Scaled, s: &mut GroupState) {
    s.first_rate = rate;
    s.ln_first_rate = rate.ln_fixed();
    s.regime_rate = rate.to_float();
}

pub(crate) fn is_sign_rule(c: &GroupConstants) -> bool {
    c.flags & group_flags::SIGN_RULE != 0
}

pub(crate) fn direction_length(c: &GroupConstants) -> Scaled {
    Scaled::new(c.direction_length, 0)
}

/// Returns the length of the step's direction before momentum: that of the gradient or of its signs.
pub(crate) fn direction_length_of(c: &GroupConstants, norm: Scaled) -> Scaled {
    if is_sign_rule(c) { direction_length(c) } else { norm }
}
