//! What the formulas of the regimes are given: twin of `shaders/learning_rate/gradient.wgsl`.

use crate::layout::{GroupConstants, GroupState, Scaled, ScopeSums, group_flags, skips, slots};

/// A finite gradient that is not zero, and what of the state it has replaced.
pub(crate) struct Gradient<'a> {
    pub(crate) sums: &'a ScopeSums,
    pub(crate) square: Scaled,
    pub(crate) norm: Scaled,
    /// 0 at the first gradient.
    pub(crate) last_norm: Scaled,
    /// n̂
    pub(crate) smoothed: Scaled,
    pub(crate) last_smoothed: Scaled,
    /// The inner products among the sums are of gradients scaled by 2^-this.
    pub(crate) scale_of_sums: i32,
    pub(crate) first: bool,
    /// By how much schedule and controls raise ln η at this step; 0 where they do not.
    pub(crate) scheduled_rise: f32,
}

/// What the update does with streams of parameters after the step, or instead of it.
pub(crate) struct Turn {
    /// The stream's share of η.
    pub(crate) factor: f32,
    /// 1 where the step is the first of its stream.
    pub(crate) begins: u32,
    /// What [`Update::skip`](crate::layout::Update::skip) is where the step is skipped.
    pub(crate) skip: u32,
    pub(crate) put: u32,
    pub(crate) take: u32,
}

impl Turn {
    /// No stream changes places.
    pub(crate) const NONE: Turn =
        Turn { factor: 1.0, begins: 0, skip: skips::SKIP_ALL, put: slots::NO_SLOT, take: slots::NO_SLOT };
}

/// Sets the rate, from which later changes count.
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

/// The length of the step's direction, as far as it is known before momentum: that of the gradient, or of its signs.
pub(crate) fn direction_length_of(c: &GroupConstants, norm: Scaled) -> Scaled {
    if is_sign_rule(c) { direction_length(c) } else { norm }
}
