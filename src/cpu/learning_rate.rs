//! Pass 3: twin of `shaders/learning_rate.wgsl`, function by function.

use crate::cpu::count_steps::{average_weight, bias_corrections, schedule_free_weight, steps_taken};
use crate::cpu::regimes::{first_rate_is_a_formula, hold_rate, schedule_factor, set_rate};
use crate::cpu::scaled::{Fixed, Scaled};
use crate::cpu::streams::{Turn, enter_episode, take_turn};
use crate::element::rounding_key;
use crate::layout::{
    GroupConstants, GroupState, LOSS_ELEMENT, MEAN_OUTLIER, MEAN_STEPS, RawRecord, ScopeSums, Squares, Update,
    average_kinds, group_flags, record_flags, regime_kinds, schedule_kinds, unscale,
};
use crate::regime::{MAX_CHANGE, RATE_MAX, RATE_MIN};

/// Bounds of the trust ratio.
const TRUST_MIN: f32 = 1e-8;
const TRUST_MAX: f32 = 1e8;

/// ln of [`RATE_MAX`].
const LN_RATE_LIMIT: f32 = 69.077_55;

/// The largest magnitude of A: as far as from one limit of ln η to the other.
const AGREEMENT_LIMIT: f32 = 2.0 * LN_RATE_LIMIT;

/// The share of the old value in the moving average of a_fast.
const FAST_KEEP: f32 = 0.8;

/// What one invocation of the pass writes, beside the state.
pub(crate) struct Outcome {
    /// `None` where the step is skipped: the update is then left as it was, but for its skip flag.
    pub(crate) update: Option<Update>,
    /// What becomes of the streams, also where the step is skipped.
    pub(crate) turn: Turn,
    pub(crate) record: RawRecord,
}

/// One group's step.
pub(crate) fn learning_rate(group: u32, c: &GroupConstants, sums: &[ScopeSums], s: &mut GroupState) -> Outcome {
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
    let mut turn = Turn::NONE;
    let has_streams = c.regime == regime_kinds::AUTO_SGD;
    let update = if skip {
        let halted = s.halted != 0;
        skip_step(c, s, &mut r);
        // After a halt nothing changes any more.
        if has_streams && !halted {
            turn = take_turn(c, measured.loss, skip, &mut s.streams, &mut r);
        }
        None
    } else {
        if has_streams {
            enter_episode(c, s, &mut r);
            turn = take_turn(c, measured.loss, skip, &mut s.streams, &mut r);
        }
        Some(take_step(c, measured, &turn, s, &mut r))
    };

    let ln_rate = ln_first_rate(s).add(change(s)).add_float(s.ln_schedule).add_float(s.ln_trust);
    if s.learning_rate == 0.0 {
        r.flags |= record_flags::WAITING;
    }
    r.smoothed_norm = smoothed(s).to_float();
    r.learning_rate = s.learning_rate;
    r.ln_rate_int = ln_rate.whole;
    r.ln_rate_fraction = ln_rate.fraction;
    r.skipped = s.skipped;
    r.skips_in_row = s.skips_in_row;

    let (low, carry) = s.steps_low.overflowing_add(1);
    s.steps_low = low;
    s.steps_high = s.steps_high.wrapping_add(u32::from(carry));
    Outcome { update, turn, record: r }
}

/// Nothing changes but the counters and the loss scale; all groups come to the same.
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
            // The scale may be all that is wrong.
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

fn smoothed(s: &GroupState) -> Scaled {
    Scaled { mantissa: s.smoothed_mantissa, exponent: s.smoothed_exponent }
}

fn ln_first_rate(s: &GroupState) -> Fixed {
    Fixed { whole: s.ln_first_rate_int, fraction: s.ln_first_rate_fraction }
}

fn change(s: &GroupState) -> Fixed {
    Fixed { whole: s.change_int, fraction: s.change_fraction }
}

pub(crate) fn from_squares(squares: Squares) -> Scaled {
    Scaled::new(squares.sum, 2 * squares.exponent)
}

/// `numerator / denominator` as a cosine: 0 where there is nothing to compare, or where a sum left the range of f32.
fn cosine(numerator: f32, denominator: f32) -> f32 {
    if !numerator.is_finite() || !denominator.is_finite() || denominator <= 0.0 {
        return 0.0;
    }
    (numerator / denominator).clamp(-1.0, 1.0)
}

/// The step of a finite gradient.
fn take_step(c: &GroupConstants, measured: &ScopeSums, turn: &Turn, s: &mut GroupState, r: &mut RawRecord) -> Update {
    let square = from_squares(measured.square);
    let norm = square.root();
    r.norm = norm.to_float();
    let raw_norm_clip = c.flags & group_flags::RAW_NORM != 0;
    let raw_norm = if raw_norm_clip { from_squares(measured.raw_square).root() } else { norm };
    let limit = Scaled::new(c.clip_norm, 0);
    if c.clip_norm < f32::MAX && limit.less(raw_norm) {
        r.flags |= record_flags::CLIPPED;
        r.clip_factor = limit.quotient(raw_norm).to_float();
    }

    if square.is_zero() {
        r.flags |= record_flags::ZERO_GRADIENT;
    } else {
        change_rate(c, measured, square, norm, s, r);
    }
    s.learning_rate = s.regime_rate;
    if c.schedule != schedule_kinds::CONSTANT {
        follow_schedule(c, s, r);
    }
    if c.trust_coefficient > 0.0 {
        follow_trust(c, measured, square, norm, s, r);
    }

    // How large the momentum can be at the next step: μ ‖m_{t-1}‖ and what this step adds.
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
    s.direction_exponent = if bound.is_zero() { 0 } else { (bound.exponent + 1).clamp(-126, 126) };

    let first_momentum = c.flags & group_flags::MOMENTUM_FROM_GRADIENT != 0 && s.momentum_started == 0;
    if c.epsilon > 0.0 {
        (s.first_correction, s.second_correction) = bias_corrections(c, steps_taken(s));
    }
    count_good_step(c, s, r);
    let first = if c.regime == regime_kinds::AUTO_SGD { turn.begins } else { 1 - s.momentum_started };
    s.momentum_started = 1;
    s.last_clip = r.clip_factor;
    let rate = turn.factor * s.learning_rate;
    Update {
        skip: 0,
        learning_rate: rate,
        gradient_factor: c.gradient_factor * r.clip_factor,
        micro_share: c.gradient_factor.abs(),
        unscale: unscale(r.loss_scale_exponent),
        coupled_decay: c.coupled_decay,
        shrink: 1.0 - rate * c.decoupled_decay,
        momentum_keep: c.momentum,
        gradient_share: if first_momentum { 1.0 } else { c.gradient_share },
        momentum: c.direction_momentum,
        square_keep: c.square_keep,
        first_correction: s.first_correction,
        second_correction: s.second_correction,
        epsilon: c.epsilon,
        first,
        average_weight: if c.average == average_kinds::SCHEDULE_FREE {
            schedule_free_weight(s, s.learning_rate, steps_taken(s))
        } else {
            average_weight(c, steps_taken(s))
        },
        put: turn.put,
        take: turn.take,
        rounding_key: rounding_key(c.rounding_seed, s.steps_low, s.steps_high),
    }
}

/// The regime proper: a finite, non-zero gradient changes the rate.
fn change_rate(
    c: &GroupConstants,
    measured: &ScopeSums,
    square: Scaled,
    norm: Scaled,
    s: &mut GroupState,
    r: &mut RawRecord,
) {
    let mean_square = Scaled { mantissa: s.mean_square_mantissa, exponent: s.mean_square_exponent }
        .times(c.smoothing)
        .sum(square.times(1.0 - c.smoothing));
    s.mean_square_mantissa = mean_square.mantissa;
    s.mean_square_exponent = mean_square.exponent;
    s.smoothing_power *= c.smoothing;
    let unbiased = mean_square.quotient(Scaled::new(1.0 - s.smoothing_power, 0));
    let last_smoothed = smoothed(s);
    // The norm of a problem that is solved may vanish, and a rate that follows it without end makes the next ordinary gradient a
    // disaster: relative to its mean the norm counts as no smaller than this. One outlier must not raise that mean for good.
    let counted = if s.started == 0 { norm } else { norm.smaller(last_smoothed.times(MEAN_OUTLIER as f32)) };
    s.mean_steps = (s.mean_steps + 1).min(MEAN_STEPS);
    let share = 1.0 / s.mean_steps as f32;
    let mean_norm = Scaled { mantissa: s.mean_norm_mantissa, exponent: s.mean_norm_exponent }
        .times(1.0 - share)
        .sum(counted.times(share));
    s.mean_norm_mantissa = mean_norm.mantissa;
    s.mean_norm_exponent = mean_norm.exponent;
    let smoothed = unbiased.root().larger(norm).larger(mean_norm.times(c.norm_floor));
    s.smoothed_mantissa = smoothed.mantissa;
    s.smoothed_exponent = smoothed.exponent;
    // The sums are of gradients scaled by this. It falls slowly, so that one tiny gradient does not push the next out of range,
    // and depends on the norm alone, so that groups of one scope agree on it.
    let scale_of_sums = Scaled { mantissa: 1.0, exponent: s.gradient_exponent };
    s.gradient_exponent = norm.exponent.clamp(-126, 126);
    if s.started != 0 {
        s.gradient_exponent = s.gradient_exponent.max(scale_of_sums.exponent - 1);
    }

    let last_norm = Scaled { mantissa: s.last_norm_mantissa, exponent: s.last_norm_exponent };
    s.last_norm_mantissa = norm.mantissa;
    s.last_norm_exponent = norm.exponent;
    let first = s.started == 0;
    if first {
        s.started = 1;
        s.anchor_norm_mantissa = smoothed.mantissa;
        s.anchor_norm_exponent = smoothed.exponent;
        r.flags |= record_flags::FIRST;
    }
    // Only an episode's outcome changes the rate of streams.
    if c.regime == regime_kinds::AUTO_SGD && !first {
        return;
    }
    if c.regime != regime_kinds::SEESAW && (!first || first_rate_is_a_formula(c.regime)) {
        let exponent = scale_of_sums.exponent;
        set_rate(c, measured, square, norm, last_norm, exponent, first, s, r);
        return;
    }
    if first {
        if c.flags & group_flags::INITIAL_RATE == 0 {
            set_first_rate(c, measured, norm, s, r);
        }
        return;
    }

    let anchor = Scaled { mantissa: s.anchor_norm_mantissa, exponent: s.anchor_norm_exponent };
    let from_last_norm = from_norm_ratio(c, anchor.ln_ratio_fixed(last_smoothed));
    let from_norm = from_norm_ratio(c, anchor.ln_ratio_fixed(smoothed));
    let wanted_before = agreement(s).add(from_last_norm);
    r.norm_term = from_norm.subtract(from_last_norm).to_float();
    let mut lost = 0.0;
    if c.gain > 0.0 {
        lost = follow_alignment(c, measured, norm, smoothed, scale_of_sums, anchor, s, r);
    }
    let wanted = agreement(s).add(from_norm);
    let before = change(s);
    let mut total = wanted;
    // Only a rise is clamped. A fall protects the run, and takes effect at once.
    if total.subtract(before).to_float() > MAX_CHANGE {
        r.flags |= record_flags::CLAMPED_CHANGE;
        total = before.add_float(MAX_CHANGE);
    }
    let ln_rate = ln_first_rate(s).add(total);
    let falling = ln_rate.whole < 0;
    let limit = Fixed::default().add_float(if falling { -LN_RATE_LIMIT } else { LN_RATE_LIMIT });
    let excess = ln_rate.subtract(limit).to_float();
    // Closer than f32 can tell is not beyond.
    if (falling && excess < -1e-5) || (!falling && excess > 1e-5) {
        r.flags |= record_flags::CLAMPED_RATE;
        total = limit.subtract(ln_first_rate(s));
    }
    s.change_int = total.whole;
    s.change_fraction = total.fraction;
    let growth = total.exp();
    s.regime_rate = Scaled::new(s.first_rate_mantissa * growth.mantissa, s.first_rate_exponent + growth.exponent)
        .to_float()
        .clamp(RATE_MIN, RATE_MAX);

    // η hangs on its first value, so that a later step gives back what a clamp takes away now.
    let taken_before = before.subtract(wanted_before);
    r.clamp_term = total.subtract(wanted).subtract(taken_before).to_float() - lost;
}

/// What the smoothed norm has changed ln η by since the first step: p ln(n̂_1 / n̂), with a p of its own where the norm has risen.
fn from_norm_ratio(c: &GroupConstants, fallen: Fixed) -> Fixed {
    fallen.times(if fallen.whole < 0 { c.exponent_above } else { c.exponent })
}

/// A: what agreement has raised ln η by, and contradiction lowered it.
fn agreement(s: &GroupState) -> Fixed {
    Fixed { whole: s.agreement_int, fraction: s.agreement_fraction }
}

/// Steps that agree raise A. Steps that contradict each other take back what agreement gave; what would carry A below its least value so
/// far counts only while n̂ stands above twice its first value, and in full at four times. Returns what the bounds of A took away.
#[expect(clippy::too_many_arguments, reason = "the shader's function has the same")]
fn follow_alignment(
    c: &GroupConstants,
    measured: &ScopeSums,
    norm: Scaled,
    smoothed: Scaled,
    scale_of_sums: Scaled,
    anchor: Scaled,
    s: &mut GroupState,
    r: &mut RawRecord,
) -> f32 {
    let norm_in_sums = norm.quotient(scale_of_sums).to_float();
    // Before the third gradient y equals z up to rounding, so that their difference has no direction yet.
    if c.flags & group_flags::ITERATES == 0 || s.mean_steps > 2 {
        r.slow_alignment = cosine(measured.slow_dot, norm_in_sums * measured.direction_square.sqrt());
    }
    let mut brake = 0.0;
    if c.flags & group_flags::BRAKE != 0 {
        r.fast_alignment = cosine(measured.fast_dot, measured.absolute);
        // The brake goes by an average. One step's value is noisy, and noise in a brake only ever lowers the rate.
        s.mean_fast = FAST_KEEP * s.mean_fast + (1.0 - FAST_KEEP) * r.fast_alignment;
        s.mean_fast_weight = FAST_KEEP * s.mean_fast_weight + (1.0 - FAST_KEEP);
        brake = (s.mean_fast / s.mean_fast_weight + c.brake_slack).min(0.0);
    }
    let weight = gain(c, s) * norm.quotient(smoothed).to_float();
    r.alignment_term = weight * r.slow_alignment;
    r.brake_term = weight * brake;

    let least = Fixed { whole: s.least_agreement_int, fraction: s.least_agreement_fraction };
    let mut next = agreement(s).add_float(r.alignment_term + r.brake_term);
    let below = least.subtract(next).to_float();
    if below > 0.0 {
        let doublings = smoothed.ln_ratio(anchor) * std::f32::consts::LOG2_E;
        let held = 1.0 - (doublings - 1.0).clamp(0.0, 1.0);
        r.held_term = held * below;
        // Where all of the fall is held, A is exactly its floor, so that rounding cannot wear the floor down.
        next = if held == 1.0 { least } else { next.add_float(r.held_term) };
        s.least_agreement_int = next.whole;
        s.least_agreement_fraction = next.fraction;
    }
    // Beyond this the rate is at its limit whatever the norm does, and a rate that is clamped for long must not take as long to come back.
    let bound = next.to_float().clamp(-AGREEMENT_LIMIT, AGREEMENT_LIMIT);
    let lost = next.to_float() - bound;
    if lost != 0.0 {
        r.flags |= record_flags::CLAMPED_RATE;
        next = Fixed::default().add_float(bound);
    }
    s.agreement_int = next.whole;
    s.agreement_fraction = next.fraction;
    lost
}

/// κ_t = max(κ, h/(h + k - 2)) at the k-th gradient, which is 1 at the first that can be compared with another: as in stochastic
/// approximation the first steps, which know least, move the rate most.
fn gain(c: &GroupConstants, s: &GroupState) -> f32 {
    let steps = c.early_steps + (s.mean_steps as f32 - 2.0);
    c.gain.max(c.early_steps / steps.max(1.0))
}

/// The schedule's factor, at the step that follows those that were taken.
fn follow_schedule(c: &GroupConstants, s: &mut GroupState, r: &mut RawRecord) {
    let factor = schedule_factor(c, steps_taken(s));
    let ln_factor = Scaled::new(factor, 0).ln_ratio(Scaled::ONE);
    if r.flags & record_flags::FIRST == 0 {
        r.schedule_term = ln_factor - s.ln_schedule;
    }
    s.ln_schedule = ln_factor;
    s.learning_rate *= factor;
}

/// η_0 = ε (1 + ‖w_0‖) / n_0, or over √d where the direction is a vector of signs.
fn set_first_rate(c: &GroupConstants, measured: &ScopeSums, norm: Scaled, s: &mut GroupState, r: &mut RawRecord) {
    let initial_norm = from_squares(measured.initial_square).root();
    let length = Scaled::ONE.sum(initial_norm).times(c.first_step);
    let direction = if c.flags & group_flags::SIGN_RULE != 0 { Scaled::new(c.sqrt_elements, 0) } else { norm };
    let mut wanted = length.quotient(direction);
    if c.trust_coefficient > 0.0 {
        // The trust ratio follows, and the step is to have this length with it.
        wanted = wanted.quotient(trust_of(c, measured, norm, s));
    }
    let rate = wanted.larger(Scaled::new(RATE_MIN, 0)).smaller(Scaled::new(RATE_MAX, 0));
    if rate != wanted {
        r.flags |= record_flags::CLAMPED_RATE;
    }
    hold_rate(rate, s);
}

/// LARS: coefficient ‖w‖ / ‖u‖ ([`TrustRatio`](crate::TrustRatio)), of the parameters as they were after the last step, and 1 where either
/// is 0.
fn trust_of(c: &GroupConstants, measured: &ScopeSums, norm: Scaled, s: &GroupState) -> Scaled {
    let parameters = if s.momentum_started == 0 {
        from_squares(measured.initial_square).root()
    } else {
        Scaled { mantissa: s.parameter_mantissa, exponent: s.parameter_exponent }
    };
    let direction = if c.flags & group_flags::SIGN_RULE != 0 { Scaled::new(c.sqrt_elements, 0) } else { norm };
    if parameters.is_zero() || direction.is_zero() {
        return Scaled::ONE;
    }
    parameters
        .times(c.trust_coefficient)
        .quotient(direction)
        .larger(Scaled::new(TRUST_MIN, 0))
        .smaller(Scaled::new(TRUST_MAX, 0))
}

/// The trust ratio, over what regime and schedule say. A gradient of zero carries it over, as it does the rate.
fn follow_trust(
    c: &GroupConstants,
    measured: &ScopeSums,
    square: Scaled,
    norm: Scaled,
    s: &mut GroupState,
    r: &mut RawRecord,
) {
    if !square.is_zero() {
        let trust = trust_of(c, measured, norm, s);
        let ln_trust = trust.ln_ratio(Scaled::ONE);
        if r.flags & record_flags::FIRST == 0 {
            r.trust_term = ln_trust - s.ln_trust;
        }
        s.ln_trust = ln_trust;
        s.trust = trust.to_float();
    }
    r.trust_ratio = s.trust;
    s.learning_rate *= s.trust;
}
