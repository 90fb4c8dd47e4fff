//! Settings that the host changes between steps. Twin of `shaders/learning_rate/controls.wgsl`.

use crate::layout::numbers::{LARGEST_FACTOR_BITS, RATE_MAX};
use crate::layout::terms::CONTROL_TERM;
use crate::layout::{GroupConstants, GroupState, RawRecord, Scaled, record_flags};

/// Returns the caller's factor and its logarithm. If the factor is 0, the logarithm is the last one, with which the
/// next factor is compared.
pub(crate) fn control_at(c: &GroupConstants, s: &GroupState) -> (f32, f32) {
    let factor = c.controls.learning_rate_factor;
    if factor == 0.0 || factor.to_bits() > LARGEST_FACTOR_BITS {
        return (0.0, s.ln_control);
    }
    (factor, Scaled::new(factor, 0).ln_ratio(Scaled::ONE))
}

/// Multiplies the rate of regime, schedule and trust ratio by the factor.
pub(crate) fn follow_controls((factor, ln_factor): (f32, f32), s: &mut GroupState, r: &mut RawRecord) {
    if r.flags & record_flags::FIRST == 0 {
        r.terms[CONTROL_TERM as usize] = ln_factor - s.ln_control;
    }
    s.ln_control = ln_factor;
    s.learning_rate = (s.learning_rate * factor).min(RATE_MAX);
}

/// Returns the flags of a group that takes no part in the step, else 0.
pub(crate) fn absence_of(c: &GroupConstants) -> u32 {
    let flag = |set: bool, bit| if set { bit } else { 0 };
    flag(c.controls.frozen != 0, record_flags::FROZEN) | flag(c.controls.present == 0, record_flags::ABSENT)
}
