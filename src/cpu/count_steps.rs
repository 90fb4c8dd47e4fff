//! Pass 3, what follows from the exact number of steps that were taken: twin of `shaders/shared/count_steps.wgsl`.

use crate::layout::{GroupConstants, GroupState, average_kinds};

/// Steps that were not skipped, this one not counted; the largest u32 where there are more.
pub(crate) fn steps_taken(s: &GroupState) -> u32 {
    let (low, borrow) = s.steps_low.overflowing_sub(s.skipped);
    if s.steps_high > u32::from(borrow) {
        u32::MAX
    } else {
        low
    }
}

/// The share of this step's parameters in their average ([`Averaging`](crate::Averaging)): all of it at the first step that counts,
/// bit for bit, and nothing before. With j = k - 1 steps since, (1 + η)/(k + η) = (1 + η)/(j + (1 + η)).
pub(crate) fn average_weight(c: &GroupConstants, taken: u32) -> f32 {
    match taken.checked_sub(c.average_start) {
        _ if c.average == average_kinds::OFF => 0.0,
        None => 0.0,
        Some(0) => 1.0,
        Some(_) if c.average == average_kinds::EXPONENTIAL => c.average_gain,
        Some(since) => c.average_gain / (since as f32 + c.average_gain),
    }
}
