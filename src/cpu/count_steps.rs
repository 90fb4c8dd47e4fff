//! Values of pass 3 that depend on the exact number of steps taken. Twin of `average_share.wgsl` and
//! `second_moment.wgsl` in `shaders/learning_rate/`.

use crate::layout::{GroupConstants, GroupState, Scaled, average_kinds};
use crate::scaled::{LN_2_HIGH, LN_2_LOW, power_of_two};

/// Returns the number of previous steps that were not skipped, at most the largest u32.
pub(crate) fn steps_taken(s: &GroupState) -> u32 {
    let (low, borrow) = s.steps_low.overflowing_sub(s.skipped);
    if s.steps_high > u32::from(borrow) { u32::MAX } else { low }
}

/// Returns the number of previous steps that moved the group. Skipped steps do not count, and neither do steps in which
/// the group was frozen, had no gradients, or was left out as an outlier.
pub(crate) fn steps_moved(s: &GroupState) -> u32 {
    match steps_taken(s) {
        u32::MAX => u32::MAX,
        taken => taken.wrapping_sub(s.left_out),
    }
}

/// Returns the weight of this step's parameters in their average ([`Averaging`](crate::Averaging)). It is 0 before the
/// first step that counts and exactly 1 at that step. With j = k - 1 steps since, (1 + η)/(k + η) = (1 + η)/(j + (1 +
/// η)).
pub(crate) fn average_weight(c: &GroupConstants, taken: u32) -> f32 {
    match taken.checked_sub(c.average_start) {
        _ if c.average == average_kinds::OFF => 0.0,
        None => 0.0,
        Some(0) => 1.0,
        Some(_) if c.average == average_kinds::EXPONENTIAL => c.average_gain,
        Some(since) => c.average_gain / (since as f32 + c.average_gain),
    }
}

/// Returns the weight c_k of z in the average of schedule-free training
/// ([`Averaging::ScheduleFree`](crate::Averaging::ScheduleFree)): w_k = (η_k k)² at the k-th step that is not skipped,
/// divided by the sum of all weights so far. It is 0 before the first step with a rate, 1 at that step, and above 0
/// afterwards.
pub(crate) fn schedule_free_weight(s: &mut GroupState, rate: f32, taken: u32) -> f32 {
    let length = Scaled::new(rate, 0).times(taken.saturating_add(1) as f32);
    let weight = length.product(length);
    let total = s.weight_sum.sum(weight);
    s.weight_sum = total;
    if total.is_zero() {
        0.0
    } else if total == weight {
        // This case avoids a division, which need not be exact on a device.
        1.0
    } else {
        weight.quotient(total).to_float().max(power_of_two(-126))
    }
}

/// Returns 1/(1 - β₁ᵏ) and 1/√(1 - β₂ᵏ) of AdamW, which correct moments that began at zero.
pub(crate) fn bias_corrections(c: &GroupConstants, taken: u32) -> (f32, f32) {
    let k = taken.saturating_add(1);
    (1.0 / one_less_power(c.rule.first_decay, k), 1.0 / one_less_power(c.rule.second_decay, k).sqrt())
}

/// Returns the weights of the old v and of g² in v: those of the rule, or with k^-c for g².
pub(crate) fn square_shares(c: &GroupConstants, taken: u32) -> (f32, f32) {
    if c.rule.square_fall == 0.0 {
        return (c.rule.square_keep, c.rule.square_share);
    }
    let k = Scaled::new(taken.saturating_add(1) as f32, 0);
    let share = k.ln_fixed().times(-c.rule.square_fall).exp().to_float();
    (1.0 - share, share)
}

/// Computes 1 - βᵏ with decay = -ln β, to about two ulps even if βᵏ is close to 1. With k ln β = -(h ln 2 + r) it is
/// (1 - 2^-h) + 2^-h (1 - e^-r).
fn one_less_power(decay: f32, k: u32) -> f32 {
    // Above 2^24 k is rounded, as the product is in any case.
    let x = k as f32 * decay;
    // The error is less than half a unit in the last place.
    if x > 18.0 {
        return 1.0;
    }
    let halvings = (x * std::f32::consts::LOG2_E).round();
    let r = (x - halvings * LN_2_HIGH) - halvings * LN_2_LOW;
    let tail = r
        * r
        * (0.5
            - r * (0.166_666_67 - r * (0.041_666_668 - r * (0.008_333_334 - r * (0.001_388_889 - r * 1.984_127e-4)))));
    let power = power_of_two(-(halvings as i32));
    (1.0 - power) + power * (r - tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_less_a_power_is_right_for_every_count() {
        let mut worst = 0.0f64;
        for beta in [0.0f32, 1e-30, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 0.999_9, 0.999_999, 1f32.next_down()] {
            let decay = crate::rule::decay_of(beta);
            let counts = (1..3000)
                .chain((0..32).flat_map(|e| [(1u32 << e) - 1, 1 << e, (1 << e) + 1]))
                .chain([u32::MAX])
                .filter(|&k| k > 0);
            for k in counts {
                let exact = -(f64::from(k) * f64::from(beta).ln()).exp_m1();
                let unit = f64::from(f32::EPSILON) * 2f64.powf(exact.log2().floor());
                let ulps = (f64::from(one_less_power(decay, k)) - exact).abs() / unit;
                assert!(ulps <= 2.0, "{beta}, {k}: {ulps} ulps");
                worst = worst.max(ulps);
            }
        }
        println!("{worst:.2} ulps");
    }
}
