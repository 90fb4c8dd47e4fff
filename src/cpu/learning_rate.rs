//! Pass 3. Twin of `shaders/learning_rate.wgsl`, function by function.

use crate::cpu::controls::{absence_of, control_at, follow_controls};
use crate::cpu::count_steps::{
    average_weight, bias_corrections, schedule_free_weight, square_shares, steps_moved, steps_taken,
};
use crate::cpu::outliers::judge_norm;
use crate::cpu::schedule::schedule_factor;
use crate::element::rounding_key;
use crate::layout::numbers::{LEAST_RISE, SMALLEST_CLIP};
use crate::layout::terms::{SCHEDULE_TERM, TRUST_TERM};
use crate::layout::{
    GroupConstants, GroupState, LOSS_ELEMENT, MEAN_OUTLIER, MEAN_STEPS, NO_ELEMENT, RawRecord, Scaled, ScopeSums,
    Update, average_kinds, group_flags, record_flags, schedule_kinds,
};
use crate::regime::Kernel;
use crate::regime::gradient::{Gradient, Turn, direction_length_of};
use crate::scaled::power_of_two;
use crate::trust::trust_of;

/// Output of one invocation of the pass, beside the state.
pub(crate) struct Outcome {
    /// `None` if the step is skipped or leaves the group out. The previous update then stays, except for its skip flag.
    pub(crate) update: Option<Update>,
    /// Exchange of the streams. It also takes place if the step is skipped.
    pub(crate) turn: Turn,
    pub(crate) record: RawRecord,
}

/// Computes one group's step.
///
/// `last_overflow` is [`RawRecord::overflow_key`] of the previous step. `factors` are those of all schedule tables.
pub(crate) fn learning_rate(
    group: u32,
    c: &GroupConstants,
    sums: &[ScopeSums],
    last_overflow: u32,
    factors: &[f32],
    s: &mut GroupState,
) -> Outcome {
    count_overflow(c, last_overflow, s);
    let measured = &sums[c.scope as usize];
    let mut nonfinite = 0u32;
    let mut first_nonfinite = u32::MAX;
    for scope in sums {
        nonfinite = nonfinite.wrapping_add(scope.nonfinite);
        first_nonfinite = first_nonfinite.min(scope.first_nonfinite);
    }

    let mut r = RawRecord {
        step_low: s.steps_low,
        step_high: s.steps_high,
        group,
        flags: record_flags::WRITTEN,
        nonfinite,
        first_nonfinite,
        clip_factor: 1.0,
        trust_ratio: s.trust,
        loss_scale_exponent: s.loss_scale_exponent,
        ..RawRecord::default()
    };
    let skip = first_nonfinite != u32::MAX || s.halted != 0;
    let halted = s.halted != 0;
    if skip {
        skip_step(c, s, &mut r);
        r.overflow_key = s.halt_overflow_key;
    }
    let turn = (Kernel::of(c).begin_step)(c, measured.loss, skip, halted, s, &mut r);
    let update = if skip { None } else { set_rate(c, sums, factors, &turn, s, &mut r) };

    let ln_rate = s.ln_first_rate.add(s.change);
    let ln_rate = ln_rate.add_float(s.ln_schedule).add_float(s.ln_trust).add_float(s.ln_control);
    if s.learning_rate == 0.0 {
        r.flags |= record_flags::WAITING;
    }
    r.smoothed_norm = s.smoothed.to_float();
    r.learning_rate = s.learning_rate;
    r.ln_rate = ln_rate;
    r.skipped = s.skipped;
    r.skips_in_row = s.skips_in_row;

    let (low, carry) = s.steps_low.overflowing_add(1);
    s.steps_low = low;
    s.steps_high = s.steps_high.wrapping_add(u32::from(carry));
    Outcome { update, turn, record: r }
}

/// Counts consecutive steps in which an element was out of range. All groups get the same result.
fn count_overflow(c: &GroupConstants, key: u32, s: &mut GroupState) {
    if s.halted != 0 {
        return;
    }
    s.halt_overflow_key = 0;
    if key == 0 {
        s.overflows_in_row = 0;
        return;
    }
    s.overflows_in_row = s.overflows_in_row.saturating_add(1);
    if c.halt_after_overflows != 0 && s.overflows_in_row >= c.halt_after_overflows {
        s.halted = 1;
        s.halt_overflow_key = key;
        s.skips_in_row = 0;
        s.last_nonfinite = 0;
        s.last_first_nonfinite = NO_ELEMENT;
    }
}

/// Skips the step: only the counters and the loss scale change. All groups get the same result.
fn skip_step(c: &GroupConstants, s: &mut GroupState, r: &mut RawRecord) {
    r.flags |= record_flags::SKIPPED;
    s.skipped = s.skipped.wrapping_add(1);
    if s.halted != 0 {
        s.skips_in_row = s.skips_in_row.saturating_add(1);
        r.flags |= record_flags::HALTED;
        r.nonfinite = s.last_nonfinite;
        r.first_nonfinite = s.last_first_nonfinite;
    } else {
        s.last_nonfinite = r.nonfinite;
        s.last_first_nonfinite = r.first_nonfinite;
        s.good_steps = 0;
        if r.first_nonfinite < LOSS_ELEMENT && s.loss_scale_exponent > c.loss_scale_least {
            // The overflow may be due to the loss scale alone.
            s.loss_scale_exponent -= 1;
            s.skips_in_row = 0;
            r.flags |= record_flags::SCALE_CHANGED;
        } else {
            s.skips_in_row = s.skips_in_row.saturating_add(1);
        }
        if c.halt_after != 0 && s.skips_in_row >= c.halt_after {
            s.halted = 1;
            r.flags |= record_flags::HALTED;
        }
    }
    if r.first_nonfinite == LOSS_ELEMENT {
        r.flags |= record_flags::NONFINITE_LOSS;
    }
}

fn count_good_step(c: &GroupConstants, s: &mut GroupState, r: &mut RawRecord) {
    s.skips_in_row = 0;
    if c.growth_interval == 0 {
        return;
    }
    s.good_steps += 1;
    if s.good_steps >= c.growth_interval {
        s.good_steps = 0;
        if s.loss_scale_exponent < c.loss_scale_most {
            s.loss_scale_exponent += 1;
            r.flags |= record_flags::SCALE_CHANGED;
        }
    }
}

/// Computes a step with finite gradients. Returns `None` if the step leaves the group out.
fn set_rate(
    c: &GroupConstants,
    sums: &[ScopeSums],
    factors: &[f32],
    turn: &Turn,
    s: &mut GroupState,
    r: &mut RawRecord,
) -> Option<Update> {
    let measured = &sums[c.scope as usize];
    let square = Scaled::of_squares(measured.square);
    let norm = square.root();
    r.norm = norm.to_float();
    let raw_norm_clip = c.flags & group_flags::RAW_NORM_CLIP != 0;
    let raw_norm = if raw_norm_clip { Scaled::of_squares(measured.raw_square).root() } else { norm };
    let absence = absence_of(c);
    r.flags |= absence;
    // An outlier that is not clipped: the step leaves all groups of the norm out.
    let mut waits = false;
    let limit = Scaled::new(c.controls.clip_norm, 0);
    let mut clips = c.controls.clip_norm < f32::MAX && limit.less(raw_norm);
    let mut clip = if clips { limit.quotient(raw_norm) } else { Scaled::ONE };
    if c.global_clip < f32::MAX {
        let (norm_of_all, most) = (total_norm(c, sums), Scaled::new(c.global_clip, 0));
        if most.less(norm_of_all) {
            clip = clip.smaller(most.quotient(norm_of_all));
            clips = true;
        }
    }
    if let Some(limit) = judge_norm(c, norm, s) {
        r.flags |= record_flags::OUTLIER;
        waits = c.flags & group_flags::OUTLIER_CLIPS == 0;
        clips = true;
        clip = clip.smaller(limit.quotient(norm));
    }
    let left_out = absence != 0 || waits;
    if clips && !left_out {
        r.flags |= record_flags::CLIPPED;
        r.clip_factor = clip.to_float().max(f32::MIN_POSITIVE);
    }

    let controlled = control_at(c, s);
    let factor = schedule_factor(c, factors, steps_taken(s));
    let scheduled = (factor, Scaled::new(factor, 0).ln_ratio(Scaled::ONE));
    let mut gradient = None;
    if square.is_zero() {
        if !left_out {
            r.flags |= without_norm(c, s);
        }
    } else if !waits {
        let mut g = smooth_norm(c, measured, square, norm, s);
        g.scheduled_rise = rise_of(controlled.1 - s.ln_control + (scheduled.1 - s.ln_schedule));
        if g.first {
            r.flags |= record_flags::FIRST;
        }
        (Kernel::of(c).follow)(c, &g, s, r);
        gradient = Some(g);
    }
    s.learning_rate = s.regime_rate;
    if c.schedule != schedule_kinds::CONSTANT {
        follow_schedule(scheduled, s, r);
    }
    if c.trust_coefficient > 0.0 {
        follow_trust(c, measured, norm, s, r);
    }
    follow_controls(controlled, s, r);
    if let (Some(settle), Some(g)) = (Kernel::of(c).settle, &gradient) {
        settle(c, g, bias_corrections(c, steps_moved(s)), s);
    }

    // Bound on the momentum at the next step: μ ‖m_{t-1}‖ plus the norm that this step adds. All groups of the scope get the same bound.
    let clipped = raw_norm.smaller(Scaled::new(c.scope_clip, 0));
    let added = if raw_norm_clip {
        norm.sum(clipped)
    } else if c.scope_clip >= f32::MAX {
        norm
    } else {
        clipped
    };
    let old = Scaled::new(measured.direction_square, 2 * s.direction_exponent).root().times(c.scope_momentum);
    let bound = old.sum(added);
    if !waits && !bound.is_zero() {
        s.direction_exponent = (bound.exponent + 1).clamp(-126, 126);
    }
    count_good_step(c, s, r);
    if left_out {
        s.left_out = s.left_out.wrapping_add(1);
        return None;
    }
    Some(take_step(c, clip, turn, s, r))
}

/// Returns the flags of a step whose gradient is zero or not measured.
fn without_norm(c: &GroupConstants, s: &mut GroupState) -> u32 {
    if c.flags & group_flags::NOT_MEASURED == 0 {
        return record_flags::ZERO_GRADIENT;
    }
    let first = std::mem::replace(&mut s.started, 1) == 0;
    record_flags::UNMEASURED | if first { record_flags::FIRST } else { 0 }
}

/// Returns the norm of the gradients of all groups, without weight decay.
fn total_norm(c: &GroupConstants, sums: &[ScopeSums]) -> Scaled {
    let raw = c.flags & group_flags::RAW_NORM_CLIP != 0;
    let squares = sums.iter().map(|sums| Scaled::of_squares(if raw { sums.raw_square } else { sums.square }));
    squares.fold(Scaled::ZERO, Scaled::sum).root()
}

/// Returns the input of pass 4 for a step that moves the group.
fn take_step(c: &GroupConstants, clip: Scaled, turn: &Turn, s: &mut GroupState, r: &mut RawRecord) -> Update {
    let first_momentum = c.flags & group_flags::MOMENTUM_FROM_GRADIENT != 0 && s.momentum_started == 0;
    let (square_keep, square_share) = square_shares(c, steps_moved(s));
    if c.rule.epsilon > 0.0 {
        (s.first_correction, s.second_correction) = bias_corrections(c, steps_moved(s));
    }
    s.momentum_started = 1;
    s.last_clip = r.clip_factor;
    let clip_exponent = (clip.exponent - SMALLEST_CLIP).min(0);
    let clip = Scaled { exponent: clip.exponent - clip_exponent, ..clip }.to_float();
    let rate = turn.factor * s.learning_rate;
    let decay = c.controls.weight_decay;
    let (coupled_decay, decoupled_decay) =
        if c.flags & group_flags::COUPLES_DECAY != 0 { (decay, 0.0) } else { (0.0, decay) };
    let mut update = Update {
        skip: 0,
        learning_rate: rate,
        gradient_factor: c.controls.gradient_factor * clip,
        micro_share: c.controls.gradient_factor.abs() * power_of_two(-clip_exponent),
        unscale: power_of_two(clip_exponent - r.loss_scale_exponent),
        // Not used on the host: the caller of pass 4 writes the record itself.
        overflow_word: 0,
        coupled_decay,
        shrink: 1.0 - rate * decoupled_decay,
        momentum_keep: c.rule.momentum,
        gradient_share: if first_momentum { 1.0 } else { c.rule.gradient_share },
        momentum: c.rule.direction_momentum,
        square_keep,
        square_share,
        first_correction: s.first_correction,
        second_correction: s.second_correction,
        epsilon: c.rule.epsilon,
        first: turn.begins,
        average_weight: if c.average == average_kinds::SCHEDULE_FREE {
            let rate = (Kernel::of(c).averaged_rate)(s);
            schedule_free_weight(s, rate, steps_moved(s))
        } else {
            average_weight(c, steps_moved(s))
        },
        // Set by regimes that use them.
        memory_keep: 0.0,
        memory_share: 0.0,
        put: turn.put,
        take: turn.take,
        rounding_key: rounding_key(c.rounding_seed, s.steps_low, s.steps_high),
    };
    (Kernel::of(c).amend)(c, s, &mut update);
    update
}

/// Updates the norms in the state with a finite gradient that is not zero. The update is the same for all regimes.
fn smooth_norm<'a>(
    c: &GroupConstants,
    sums: &'a ScopeSums,
    square: Scaled,
    norm: Scaled,
    s: &mut GroupState,
) -> Gradient<'a> {
    s.mean_square = s.mean_square.times(c.smoothing).sum(square.times(1.0 - c.smoothing));
    s.smoothing_power *= c.smoothing;
    let unbiased = s.mean_square.quotient(Scaled::new(1.0 - s.smoothing_power, 0));
    let last_smoothed = s.smoothed;
    let first = s.started == 0;
    // The norm may vanish when a problem is solved. A rate that followed it without limit would be far too large for the next
    // ordinary gradient, so a fraction of the mean norm is a lower bound. One outlier must not raise that mean permanently.
    let counted = if first { norm } else { norm.smaller(last_smoothed.times(MEAN_OUTLIER as f32)) };
    s.mean_steps = (s.mean_steps + 1).min(MEAN_STEPS);
    let share = 1.0 / s.mean_steps as f32;
    s.mean_norm = s.mean_norm.times(1.0 - share).sum(counted.times(share));
    s.smoothed = unbiased.root().larger(norm).larger(s.mean_norm.times(c.norm_floor));
    // Exponent by which the gradients in the sums are scaled. It falls slowly, so that the gradient after a tiny one stays in range.
    // It depends on the norm alone, so that the groups of one scope agree on it.
    let scale_of_sums = s.gradient_exponent;
    s.gradient_exponent = norm.exponent.clamp(-126, 126);
    if !first {
        s.gradient_exponent = s.gradient_exponent.max(scale_of_sums - 1);
    }
    s.started = 1;
    let last_norm = std::mem::replace(&mut s.last_norm, norm);
    Gradient {
        sums,
        square,
        norm,
        last_norm,
        smoothed: s.smoothed,
        last_smoothed,
        scale_of_sums,
        first,
        scheduled_rise: 0.0,
    }
}

/// Returns the change of ln of the schedule's and the caller's factors if it is a rise beyond rounding, else 0.
fn rise_of(change: f32) -> f32 {
    if change < LEAST_RISE { 0.0 } else { change }
}

/// Multiplies the rate by the schedule's factor, which is given with its logarithm.
fn follow_schedule((factor, ln_factor): (f32, f32), s: &mut GroupState, r: &mut RawRecord) {
    if r.flags & record_flags::FIRST == 0 {
        r.terms[SCHEDULE_TERM as usize] = ln_factor - s.ln_schedule;
    }
    s.ln_schedule = ln_factor;
    s.learning_rate *= factor;
}

/// Multiplies the rate of regime and schedule by the trust ratio. A zero gradient carries the trust ratio over, like the rate.
fn follow_trust(c: &GroupConstants, measured: &ScopeSums, norm: Scaled, s: &mut GroupState, r: &mut RawRecord) {
    if !norm.is_zero() {
        let trust = trust_of(c, measured, direction_length_of(c, norm), s);
        let ln_trust = trust.ln_ratio(Scaled::ONE);
        if r.flags & record_flags::FIRST == 0 {
            r.terms[TRUST_TERM as usize] = ln_trust - s.ln_trust;
        }
        s.ln_trust = ln_trust;
        s.trust = trust.to_float();
    }
    r.trust_ratio = s.trust;
    s.learning_rate *= s.trust;
}
