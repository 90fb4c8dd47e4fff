// Pass 3: from the sums of a step to its learning rate, and why.
//
// Reads:  groups, sums.
// Writes: states, updates (for pass 4), learning_rates and loss_scale (for the caller), records (the ring).
// Grid:   one invocation per group.
//
// A kernel is compiled with one file of regime/ and serves the groups with that regime. It skips the groups of other regimes, for which the
// step has other kernels. A file in regime/ has the function
//     follow_regime(c, g, s, r)    sets or changes the rate at a finite gradient that is not zero
// The files in learning_rate/ apply to every regime (schedule, trust ratio, averages, second moments) or are shared by several regimes.
//
// Rescaling the loss by a power of two changes no bit of any step.

import package::elements::random_bits::rounding_key;
@if(!whole_step) import package::geometry::WORKGROUP;
import package::layout::{
    GroupConstants, GroupState, RawRecord, Scaled, ScopeSums, Update, CLIPPED, COUPLES_DECAY, FIRST, HALTED, LOSS_ELEMENT, MEAN_OUTLIER,
    MEAN_STEPS, MOMENTUM_FROM_GRADIENT, NO_ELEMENT, NONFINITE_LOSS, NOT_MEASURED, OUTLIER, OUTLIER_CLIPS, OVERFLOW_KEY_WORD, RAW_NORM_CLIP,
    RECORD_WORDS, SCALE_CHANGED, SKIPPED, SMALLEST_CLIP, UNMEASURED, WAITING, WHOLE_STEP_SCOPES, WRITTEN, ZERO_GRADIENT,
};
import package::learning_rate::gradient::{Gradient, Turn, from_squares, rise_of};
import package::scaled::{
    add_fixed, add_float, choose, is_zero, larger, less, power_of_two, quotient, root, scaled, smaller, sum, times, to_float,
};
@if(seesaw) import package::regime::seesaw::follow_regime;
@if(adagrad_norm) import package::regime::adagrad_norm::follow_regime;
@if(wngrad) import package::regime::wngrad::follow_regime;
@if(barzilai_borwein) import package::regime::barzilai_borwein::follow_regime;
@if(adgd) import package::regime::adgd::follow_regime;
@if(curvature) import package::regime::curvature::follow_regime;
@if(dog) import package::regime::dog::follow_regime;
@if(dowg) import package::regime::dowg::follow_regime;
@if(polyak) import package::regime::polyak::follow_regime;
@if(ngn) import package::regime::ngn::follow_regime;
@if(schedule_free_plus) import package::regime::schedule_free_plus::follow_regime;
@if(prodigy) import package::regime::prodigy::{amend_update, follow_regime, settle_estimate};
@if(mechanic) import package::regime::mechanic::{amend_update, follow_regime};
@if(auto_sgd) import package::regime::auto_sgd::{begin_step, follow_regime};
@if(!auto_sgd) import package::learning_rate::one_stream::begin_step;
import package::learning_rate::controls::{absence_of, control_at, follow_controls};
@if(outliers) import package::learning_rate::outliers::judge_norm;
@if(schedule) import package::learning_rate::schedule::{follow_schedule, schedule_at};
@if(trust_ratio) import package::learning_rate::trust_ratio::follow_trust;
@if(average_shares) import package::learning_rate::average_share::average_share;
@if(squares) import package::learning_rate::second_moment::follow_moments;
import package::tables::{groups, states};

// Number of the regime that the kernel serves, as in GroupConstants.regime.
override REGIME: u32;

// If one workgroup does the whole step, the sums stay in its memory.
@if(!whole_step) @group(0) @binding(1) var<storage, read> sums: array<ScopeSums>;
@if(whole_step) var<workgroup> sums: array<ScopeSums, WHOLE_STEP_SCOPES>;
@group(0) @binding(3) var<storage, read_write> updates: array<Update>;
@group(0) @binding(4) var<storage, read_write> learning_rates: array<f32>;
@group(0) @binding(5) var<storage, read_write> records: array<RawRecord>;
@if(tells_scale) @group(0) @binding(6) var<storage, read_write> loss_scale: array<f32>;

const NO_CLIP = 3.4028234e38;

@if(!whole_step)
@compute @workgroup_size(WORKGROUP)
fn learning_rate(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < arrayLength(&groups) {
        lead_group(id.x);
    }
}

fn number_of_scopes() -> u32 {
    @if(!whole_step) return arrayLength(&sums);
    @if(whole_step) {
        var scopes = 0u;
        for (var group = 0u; group < arrayLength(&groups); group++) {
            scopes = max(scopes, groups[group].scope + 1u);
        }
        return scopes;
    }
}

fn lead_group(group: u32) {
    let c = groups[group];
    if c.regime != REGIME {
        return;
    }
    let measured = sums[c.scope];
    var s = states[group];

    // A gradient that is not finite, in any group, makes the whole step a no-op.
    var nonfinite = 0u;
    var first_nonfinite = NO_ELEMENT;
    let scopes = number_of_scopes();
    for (var scope = 0u; scope < scopes; scope++) {
        nonfinite += sums[scope].nonfinite;
        first_nonfinite = min(first_nonfinite, sums[scope].first_nonfinite);
    }
    let groups_here = arrayLength(&groups);
    let ring_steps = arrayLength(&records) / groups_here;
    // The overflow key of the previous step. The ring has at least two steps, so no invocation has written there yet.
    var last_overflow = 0u;
    if s.record_slot != 0u {
        let last = ((s.record_slot - 1u) % ring_steps) * groups_here;
        if (records[last].flags & SKIPPED) == 0u {
            last_overflow = records[last].overflow_key;
        }
    }
    count_overflow(c, last_overflow, &s);
    let skip = first_nonfinite != NO_ELEMENT || s.halted != 0u;

    var r = RawRecord();
    r.step_low = s.steps_low;
    r.step_high = s.steps_high;
    r.group = group;
    r.flags = WRITTEN;
    r.nonfinite = nonfinite;
    r.first_nonfinite = first_nonfinite;
    r.clip_factor = 1.0;
    r.trust_ratio = s.trust;
    r.loss_scale_exponent = s.loss_scale_exponent;

    let halted = s.halted != 0u;
    if skip {
        skip_step(c, &s, &r);
        r.overflow_key = s.halt_overflow_key;
    }
    let turn = begin_step(c, measured.loss, skip, halted, &s, &r);
    var left_out = false;
    if !skip {
        let square = from_squares(measured.square);
        let norm = root(square);
        r.norm = to_float(norm);
        var raw_norm = norm;
        if (c.flags & RAW_NORM_CLIP) != 0u {
            raw_norm = root(from_squares(measured.raw_square));
        }
        r.flags |= absence_of(c);
        left_out = absence_of(c) != 0u;
        // An outlier that is not clipped: the step leaves all groups of the norm out.
        var waits = false;
        let limit = scaled(c.controls.clip_norm, 0);
        var clip = Scaled(1.0, 0);
        var clips = c.controls.clip_norm < NO_CLIP && less(limit, raw_norm);
        if clips {
            clip = quotient(limit, raw_norm);
        }
        @if(global_clip) {
            let norm_of_all = total_norm(c);
            let most = scaled(c.global_clip, 0);
            if less(most, norm_of_all) {
                clip = smaller(clip, quotient(most, norm_of_all));
                clips = true;
            }
        }
        @if(outliers) {
            let judgement = judge_norm(c, norm, &s);
            if judgement.outlier {
                r.flags |= OUTLIER;
                waits = (c.flags & OUTLIER_CLIPS) == 0u;
                clips = true;
                clip = smaller(clip, quotient(judgement.limit, norm));
            }
        }
        left_out |= waits;
        if clips && !left_out {
            r.flags |= CLIPPED;
            r.clip_factor = max(to_float(clip), power_of_two(-126));
        }

        var g = Gradient();
        g.sums = measured;
        g.square = square;
        g.norm = norm;
        let controlled = control_at(c, s);
        var rise = controlled.ln_factor - s.ln_control;
        @if(schedule) let scheduled = schedule_at(c, s);
        @if(schedule) rise += scheduled.ln_factor - s.ln_schedule;
        if is_zero(square) {
            if !left_out {
                r.flags |= without_norm(c, &s);
            }
        } else if !waits {
            smooth_norm(c, &g, &s);
            if g.first {
                r.flags |= FIRST;
            }
            g.scheduled_rise = rise_of(rise);
            follow_regime(c, g, &s, &r);
        }
        s.learning_rate = s.regime_rate;
        @if(schedule) follow_schedule(scheduled, &s, &r);
        @if(trust_ratio) follow_trust(c, g, &s, &r);
        follow_controls(controlled, &s, &r);
        @if(prodigy) if !is_zero(square) && !waits {
            settle_estimate(c, g, &s);
        }
        learning_rates[group] = s.learning_rate;

        // Bound on the momentum at the next step: μ ‖m_{t-1}‖ plus the norm that this step adds. All groups of the scope get the same bound.
        let clipped = smaller(raw_norm, scaled(c.scope_clip, 0));
        var added = choose(clipped, norm, c.scope_clip >= NO_CLIP);
        if (c.flags & RAW_NORM_CLIP) != 0u {
            added = sum(norm, clipped);
        }
        let old = times(root(scaled(measured.direction_square, 2 * s.direction_exponent)), c.scope_momentum);
        let bound = sum(old, added);
        if !waits && !is_zero(bound) {
            s.direction_exponent = clamp(bound.exponent + 1, -126, 126);
        }
        count_good_step(c, &s, &r);
        if left_out {
            s.left_out += 1u;
        } else {
            var u = take_step(c, clip, turn, &s, &r);
            u.overflow_word = (s.record_slot % ring_steps) * groups_here * RECORD_WORDS + OVERFLOW_KEY_WORD;
            updates[group] = u;
        }
    }
    if skip || left_out {
        updates[group].skip = turn.skip;
        updates[group].first = 0u;
        updates[group].put = turn.put;
        updates[group].take = turn.take;
    }
    @if(tells_scale) if group == 0u {
        loss_scale[0] = power_of_two(s.loss_scale_exponent);
    }

    let ln_rate = add_float(add_float(add_float(add_fixed(s.ln_first_rate, s.change), s.ln_schedule), s.ln_trust), s.ln_control);
    if s.learning_rate == 0.0 {
        r.flags |= WAITING;
    }
    r.smoothed_norm = to_float(s.smoothed);
    r.learning_rate = s.learning_rate;
    r.ln_rate = ln_rate;
    r.skipped = s.skipped;
    r.skips_in_row = s.skips_in_row;

    let slot = s.record_slot % ring_steps;
    records[slot * groups_here + group] = r;
    s.record_slot = slot + 1u;
    s.steps_low += 1u;
    if s.steps_low == 0u {
        s.steps_high += 1u;
    }
    states[group] = s;
}

// Returns the flags of a step whose gradient is zero or not measured.
fn without_norm(c: GroupConstants, s: ptr<function, GroupState>) -> u32 {
    if (c.flags & NOT_MEASURED) == 0u {
        return ZERO_GRADIENT;
    }
    let first = (*s).started == 0u;
    (*s).started = 1u;
    return UNMEASURED | select(0u, FIRST, first);
}

// Returns the norm of the gradients of all groups, without weight decay.
@if(global_clip)
fn total_norm(c: GroupConstants) -> Scaled {
    var total = Scaled(0.0, 0);
    let scopes = number_of_scopes();
    for (var scope = 0u; scope < scopes; scope++) {
        if (c.flags & RAW_NORM_CLIP) != 0u {
            total = sum(total, from_squares(sums[scope].raw_square));
        } else {
            total = sum(total, from_squares(sums[scope].square));
        }
    }
    return root(total);
}

// Returns the input of pass 4 for a step that moves the group.
fn take_step(c: GroupConstants, clip: Scaled, turn: Turn, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) -> Update {
    (*s).last_clip = (*r).clip_factor;
    let clip_exponent = min(clip.exponent - SMALLEST_CLIP, 0);
    var u: Update;
    u.skip = 0u;
    u.learning_rate = turn.factor * (*s).learning_rate;
    u.gradient_factor = c.controls.gradient_factor * to_float(Scaled(clip.mantissa, clip.exponent - clip_exponent));
    u.micro_share = abs(c.controls.gradient_factor) * power_of_two(-clip_exponent);
    u.unscale = power_of_two(clip_exponent - (*r).loss_scale_exponent);
    u.shrink = 1.0;
    if (c.flags & COUPLES_DECAY) != 0u {
        u.coupled_decay = c.controls.weight_decay;
    } else {
        u.shrink -= u.learning_rate * c.controls.weight_decay;
    }
    u.momentum = c.rule.direction_momentum;
    u.momentum_keep = c.rule.momentum;
    u.gradient_share = c.rule.gradient_share;
    if (c.flags & MOMENTUM_FROM_GRADIENT) != 0u && (*s).momentum_started == 0u {
        u.gradient_share = 1.0;
    }
    @if(squares) follow_moments(c, s, &u);
    u.first = turn.begins;
    u.put = turn.put;
    u.take = turn.take;
    u.rounding_key = rounding_key(c.rounding_seed, (*s).steps_low, (*s).steps_high);
    (*s).momentum_started = 1u;
    @if(average_shares) u.average_weight = average_share(c, s);
    @if(prodigy) amend_update(c, s, &u);
    @if(mechanic) amend_update(c, s, &u);
    return u;
}

// Counts consecutive steps in which an element was out of range. All groups get the same result.
fn count_overflow(c: GroupConstants, key: u32, s: ptr<function, GroupState>) {
    if (*s).halted != 0u {
        return;
    }
    (*s).halt_overflow_key = 0u;
    if key == 0u {
        (*s).overflows_in_row = 0u;
        return;
    }
    (*s).overflows_in_row += select(0u, 1u, (*s).overflows_in_row < 0xffffffffu);
    if c.halt_after_overflows != 0u && (*s).overflows_in_row >= c.halt_after_overflows {
        (*s).halted = 1u;
        (*s).halt_overflow_key = key;
        (*s).skips_in_row = 0u;
        (*s).last_nonfinite = 0u;
        (*s).last_first_nonfinite = NO_ELEMENT;
    }
}

// Skips the step: only the counters and the loss scale change. All groups get the same result.
fn skip_step(c: GroupConstants, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    (*r).flags |= SKIPPED;
    (*s).skipped += 1u;
    if (*s).halted != 0u {
        (*s).skips_in_row += select(0u, 1u, (*s).skips_in_row < 0xffffffffu);
        (*r).flags |= HALTED;
        (*r).nonfinite = (*s).last_nonfinite;
        (*r).first_nonfinite = (*s).last_first_nonfinite;
    } else {
        (*s).last_nonfinite = (*r).nonfinite;
        (*s).last_first_nonfinite = (*r).first_nonfinite;
        (*s).good_steps = 0u;
        let may_fall = (*s).loss_scale_exponent > c.loss_scale_least;
        if may_fall && (*r).first_nonfinite < LOSS_ELEMENT {
            // The overflow may be due to the loss scale alone.
            (*s).loss_scale_exponent -= 1;
            (*s).skips_in_row = 0u;
            (*r).flags |= SCALE_CHANGED;
        } else {
            (*s).skips_in_row += select(0u, 1u, (*s).skips_in_row < 0xffffffffu);
        }
        if c.halt_after != 0u && (*s).skips_in_row >= c.halt_after {
            (*s).halted = 1u;
            (*r).flags |= HALTED;
        }
    }
    if (*r).first_nonfinite == LOSS_ELEMENT {
        (*r).flags |= NONFINITE_LOSS;
    }
}

fn count_good_step(c: GroupConstants, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    (*s).skips_in_row = 0u;
    if c.growth_interval == 0u {
        return;
    }
    (*s).good_steps += 1u;
    if (*s).good_steps >= c.growth_interval {
        (*s).good_steps = 0u;
        if (*s).loss_scale_exponent < c.loss_scale_most {
            (*s).loss_scale_exponent += 1;
            (*r).flags |= SCALE_CHANGED;
        }
    }
}

// Updates the norms in the state with a finite gradient that is not zero. The update is the same for all regimes.
fn smooth_norm(c: GroupConstants, g: ptr<function, Gradient>, s: ptr<function, GroupState>) {
    let square = (*g).square;
    let norm = (*g).norm;
    let mean_square = sum(
        times((*s).mean_square, c.smoothing),
        times(square, 1.0 - c.smoothing),
    );
    (*s).mean_square = mean_square;
    (*s).smoothing_power *= c.smoothing;
    let unbiased = quotient(mean_square, scaled(1.0 - (*s).smoothing_power, 0));
    // The norm may vanish when a problem is solved. A rate that followed it without limit would be far too large for the next
    // ordinary gradient, so a fraction of the mean norm is a lower bound. One outlier must not raise that mean permanently.
    let last_smoothed = (*s).smoothed;
    var counted = norm;
    if (*s).started != 0u {
        counted = smaller(norm, times(last_smoothed, f32(MEAN_OUTLIER)));
    }
    (*s).mean_steps = min((*s).mean_steps + 1u, MEAN_STEPS);
    let share = 1.0 / f32((*s).mean_steps);
    let mean_norm = sum(
        times((*s).mean_norm, 1.0 - share),
        times(counted, share),
    );
    (*s).mean_norm = mean_norm;
    let smoothed = larger(larger(root(unbiased), norm), times(mean_norm, c.norm_floor));
    (*s).smoothed = smoothed;
    // Exponent by which the gradients in the sums are scaled. It falls slowly, so that the gradient after a tiny one stays in range.
    // It depends on the norm alone, so that the groups of one scope agree on it.
    (*g).scale_of_sums = (*s).gradient_exponent;
    (*s).gradient_exponent = clamp(norm.exponent, -126, 126);
    if (*s).started != 0u {
        (*s).gradient_exponent = max((*s).gradient_exponent, (*g).scale_of_sums - 1);
    }

    (*g).last_norm = (*s).last_norm;
    (*s).last_norm = norm;
    (*g).smoothed = smoothed;
    (*g).last_smoothed = last_smoothed;
    (*g).first = (*s).started == 0u;
    if (*g).first {
        (*s).started = 1u;
    }
}

