// Pass 3: from the sums of a step to its learning rate, and why.
//
// Reads:  groups, sums.
// Writes: states, updates (for pass 4), learning_rates and loss_scale (for the caller), records (the ring).
// Grid:   one invocation per group.
//
// Seesaw (src/regime/alignment.rs has the formula and its sources) keeps η_0, the first smoothed norm n̂_1 and the agreement A:
//     ln η_t = ln η_0 + p ln(n̂_1 / n̂_t) + A_t
// NormRatio has no A, Hypergradient p = 0, Fixed neither. Rescaling the loss by a power of two leaves every step as it is, bit for bit.
// The other regimes say what the rate is (shared/regimes.wgsl); they start over from it at every step. A schedule's
// factor is laid over either.

override WORKGROUP: u32;
// Whether any group has a regime of shared/regimes.wgsl, whether any has a schedule, and whether any an average.
override FORMULAS: bool;
override SCHEDULES: bool;
override AVERAGES: bool;
// Whether any has a trust ratio.
override TRUST: bool;
// Whether any has a mean of squares.
override SECOND_MOMENTS: bool;
// Whether the groups run streams of parameters (shared/streams.wgsl).
override STREAMS: bool;

@group(0) @binding(0) var<storage, read> groups: array<GroupConstants>;
@group(0) @binding(1) var<storage, read> sums: array<ScopeSums>;
@group(0) @binding(2) var<storage, read_write> states: array<GroupState>;
@group(0) @binding(3) var<storage, read_write> updates: array<Update>;
@group(0) @binding(4) var<storage, read_write> learning_rates: array<f32>;
@group(0) @binding(5) var<storage, read_write> records: array<RawRecord>;
@group(0) @binding(6) var<storage, read_write> loss_scale: array<f32>;

const MAX_CHANGE = 2.30258509;        // ln 10
const FAST_KEEP = 0.8;                // share of the old value in the moving average of a_fast
const RATE_MIN = 1e-30;
const RATE_MAX = 1e30;
const LN_RATE_LIMIT = 69.0775528;     // ln 1e30
const AGREEMENT_LIMIT = 138.1551056;  // the largest magnitude of A: as far as from one limit of ln η to the other
const NO_CLIP = 3.4028234e38;
const TRUST_MIN = 1e-8;
const TRUST_MAX = 1e8;

fn from_squares(squares: Squares) -> Scaled {
    return scaled(squares.sum, 2 * squares.exponent);
}

// Of an x that was loaded; what was computed a compiler may take to be finite (shared/sweep_again.wgsl).
fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & MAGNITUDE_BITS) < INFINITY_BITS;
}

// numerator / denominator as a cosine: 0 where there is nothing to compare, or where a sum left the range of f32.
fn cosine(numerator: f32, denominator: f32) -> f32 {
    if !is_finite(numerator) || !is_finite(denominator) || denominator <= 0.0 {
        return 0.0;
    }
    return clamp(numerator / denominator, -1.0, 1.0);
}

@compute @workgroup_size(WORKGROUP)
fn learning_rate(@builtin(global_invocation_id) id: vec3<u32>) {
    let group = id.x;
    if group >= arrayLength(&groups) {
        return;
    }
    let c = groups[group];
    let measured = sums[c.scope];
    var s = states[group];

    // A gradient that is not finite, in whatever group, makes the whole step a no-op.
    var nonfinite = 0u;
    var first_nonfinite = NO_ELEMENT;
    for (var scope = 0u; scope < arrayLength(&sums); scope++) {
        nonfinite += sums[scope].nonfinite;
        first_nonfinite = min(first_nonfinite, sums[scope].first_nonfinite);
    }
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

    var turn = no_turn();
    if skip {
        let halted = s.halted != 0u;
        skip_step(c, &s, &r);
        // After a halt nothing changes any more.
        if STREAMS && !halted {
            turn = take_turn(c, measured.loss, skip, &s, &r);
        }
    } else {
        if STREAMS {
            enter_episode(c, &s, &r);
            turn = take_turn(c, measured.loss, skip, &s, &r);
        }
        let square = from_squares(measured.square);
        let norm = root(square);
        r.norm = to_float(norm);
        var raw_norm = norm;
        if (c.flags & RAW_NORM_CLIP) != 0u {
            raw_norm = root(from_squares(measured.raw_square));
        }
        let limit = scaled(c.clip_norm, 0);
        if c.clip_norm < NO_CLIP && less(limit, raw_norm) {
            r.flags |= CLIPPED;
            r.clip_factor = to_float(quotient(limit, raw_norm));
        }

        if is_zero(square) {
            r.flags |= ZERO_GRADIENT;
        } else {
            change_rate(c, measured, square, norm, &s, &r);
        }
        s.learning_rate = s.regime_rate;
        if SCHEDULES && c.schedule != SCHEDULE_CONSTANT {
            follow_schedule(c, &s, &r);
        }
        if TRUST && c.trust_coefficient > 0.0 {
            follow_trust(c, measured, square, norm, &s, &r);
        }

        // How large the momentum can be at the next step: μ ‖m_{t-1}‖ and what this step adds.
        let clipped = smaller(raw_norm, scaled(c.scope_clip, 0));
        var added = select_scaled(clipped, norm, c.scope_clip >= NO_CLIP);
        if (c.flags & RAW_NORM_CLIP) != 0u {
            added = sum(norm, clipped);
        }
        let old = times(root(scaled(measured.direction_square, 2 * s.direction_exponent)), c.scope_momentum);
        let bound = sum(old, added);
        s.direction_exponent = select(clamp(bound.exponent + 1, -126, 126), 0, is_zero(bound));

        s.last_clip = r.clip_factor;
        count_good_step(c, &s, &r);
        var u: Update;
        u.skip = 0u;
        u.learning_rate = turn.factor * s.learning_rate;
        u.gradient_factor = c.gradient_factor * r.clip_factor;
        u.micro_share = abs(c.gradient_factor);
        u.unscale = power_of_two(-r.loss_scale_exponent);
        u.coupled_decay = c.coupled_decay;
        u.shrink = 1.0 - u.learning_rate * c.decoupled_decay;
        u.momentum = c.direction_momentum;
        u.momentum_keep = c.momentum;
        u.gradient_share = c.gradient_share;
        if (c.flags & MOMENTUM_FROM_GRADIENT) != 0u && s.momentum_started == 0u {
            u.gradient_share = 1.0;
        }
        if SECOND_MOMENTS && c.epsilon > 0.0 {
            let corrections = bias_corrections(c, steps_taken(s));
            s.first_correction = corrections.x;
            s.second_correction = corrections.y;
            u.square_keep = c.square_keep;
            u.first_correction = corrections.x;
            u.second_correction = corrections.y;
            u.epsilon = c.epsilon;
        }
        u.first = select(1u - s.momentum_started, turn.begins, STREAMS);
        u.put = turn.put;
        u.take = turn.take;
        u.rounding_key = rounding_key(c.rounding_seed, s.steps_low, s.steps_high);
        s.momentum_started = 1u;
        if AVERAGES {
            if c.average == AVERAGE_SCHEDULE_FREE {
                u.average_weight = schedule_free_weight(&s, s.learning_rate, steps_taken(s));
            } else {
                u.average_weight = average_weight(c, steps_taken(s));
            }
        }
        updates[group] = u;
        learning_rates[group] = s.learning_rate;
    }
    if skip {
        updates[group].skip = turn.skip;
        updates[group].first = 0u;
        updates[group].put = turn.put;
        updates[group].take = turn.take;
    }
    if group == 0u {
        loss_scale[0] = power_of_two(s.loss_scale_exponent);
    }

    var ln_rate = add_float(
        add_fixed(
            Fixed(s.ln_first_rate_int, s.ln_first_rate_fraction),
            Fixed(s.change_int, s.change_fraction),
        ),
        s.ln_schedule,
    );
    if TRUST {
        ln_rate = add_float(ln_rate, s.ln_trust);
    }
    if s.learning_rate == 0.0 {
        r.flags |= WAITING;
    }
    r.smoothed_norm = to_float(Scaled(s.smoothed_mantissa, s.smoothed_exponent));
    r.learning_rate = s.learning_rate;
    r.ln_rate_int = ln_rate.whole;
    r.ln_rate_fraction = ln_rate.fraction;
    r.skipped = s.skipped;
    r.skips_in_row = s.skips_in_row;

    let slot = s.record_slot % (arrayLength(&records) / arrayLength(&groups));
    records[slot * arrayLength(&groups) + group] = r;
    s.record_slot = slot + 1u;
    s.steps_low += 1u;
    if s.steps_low == 0u {
        s.steps_high += 1u;
    }
    states[group] = s;
}

// Nothing changes but the counters and the loss scale; all groups come to the same.
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
        if (*r).first_nonfinite < LOSS_ELEMENT && (*s).loss_scale_exponent > c.loss_scale_least {
            // The scale may be all that is wrong.
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

fn select_scaled(a: Scaled, b: Scaled, choose_b: bool) -> Scaled {
    if choose_b {
        return b;
    }
    return a;
}

// The regime proper: a finite, non-zero gradient changes the rate.
fn change_rate(
    c: GroupConstants,
    measured: ScopeSums,
    square: Scaled,
    norm: Scaled,
    s: ptr<function, GroupState>,
    r: ptr<function, RawRecord>,
) {
    let mean_square = sum(
        times(Scaled((*s).mean_square_mantissa, (*s).mean_square_exponent), c.smoothing),
        times(square, 1.0 - c.smoothing),
    );
    (*s).mean_square_mantissa = mean_square.mantissa;
    (*s).mean_square_exponent = mean_square.exponent;
    (*s).smoothing_power *= c.smoothing;
    let unbiased = quotient(mean_square, scaled(1.0 - (*s).smoothing_power, 0));
    // The norm of a problem that is solved may vanish, and a rate that follows it without end makes the next ordinary gradient a
    // disaster: relative to its mean the norm counts as no smaller than this. One outlier must not raise that mean for good.
    let last_smoothed = Scaled((*s).smoothed_mantissa, (*s).smoothed_exponent);
    var counted = norm;
    if (*s).started != 0u {
        counted = smaller(norm, times(last_smoothed, f32(MEAN_OUTLIER)));
    }
    (*s).mean_steps = min((*s).mean_steps + 1u, MEAN_STEPS);
    let share = 1.0 / f32((*s).mean_steps);
    let mean_norm = sum(
        times(Scaled((*s).mean_norm_mantissa, (*s).mean_norm_exponent), 1.0 - share),
        times(counted, share),
    );
    (*s).mean_norm_mantissa = mean_norm.mantissa;
    (*s).mean_norm_exponent = mean_norm.exponent;
    let smoothed = larger(larger(root(unbiased), norm), times(mean_norm, c.norm_floor));
    (*s).smoothed_mantissa = smoothed.mantissa;
    (*s).smoothed_exponent = smoothed.exponent;
    // The sums are of gradients scaled by this. It falls slowly, so that one tiny gradient does not push the next out of range,
    // and depends on the norm alone, so that groups of one scope agree on it.
    let scale_of_sums = Scaled(1.0, (*s).gradient_exponent);
    (*s).gradient_exponent = clamp(norm.exponent, -126, 126);
    if (*s).started != 0u {
        (*s).gradient_exponent = max((*s).gradient_exponent, scale_of_sums.exponent - 1);
    }

    let last_norm = Scaled((*s).last_norm_mantissa, (*s).last_norm_exponent);
    (*s).last_norm_mantissa = norm.mantissa;
    (*s).last_norm_exponent = norm.exponent;
    let first = (*s).started == 0u;
    if first {
        (*s).started = 1u;
        (*s).anchor_norm_mantissa = smoothed.mantissa;
        (*s).anchor_norm_exponent = smoothed.exponent;
        (*r).flags |= FIRST;
    }
    // Only an episode's outcome changes the rate of streams.
    if STREAMS && !first {
        return;
    }
    if FORMULAS && c.regime != SEESAW && (!first || first_rate_is_a_formula(c.regime)) {
        set_rate(c, measured, square, norm, last_norm, scale_of_sums.exponent, first, s, r);
        return;
    }
    if first {
        if (c.flags & INITIAL_RATE) == 0u {
            set_first_rate(c, measured, norm, s, r);
        }
        return;
    }

    let anchor = Scaled((*s).anchor_norm_mantissa, (*s).anchor_norm_exponent);
    let from_last_norm = from_norm_ratio(c, ln_ratio_fixed(anchor, last_smoothed));
    let from_norm = from_norm_ratio(c, ln_ratio_fixed(anchor, smoothed));
    let wanted_before = add_fixed(Fixed((*s).agreement_int, (*s).agreement_fraction), from_last_norm);
    (*r).norm_term = fixed_to_float(subtract_fixed(from_norm, from_last_norm));
    var lost = 0.0;
    if c.gain > 0.0 {
        lost = follow_alignment(c, measured, norm, smoothed, scale_of_sums, anchor, s, r);
    }
    let wanted = add_fixed(Fixed((*s).agreement_int, (*s).agreement_fraction), from_norm);
    let before = Fixed((*s).change_int, (*s).change_fraction);
    var total = wanted;
    // Only a rise is clamped. A fall protects the run, and takes effect at once.
    if fixed_to_float(subtract_fixed(total, before)) > MAX_CHANGE {
        (*r).flags |= CLAMPED_CHANGE;
        total = add_float(before, MAX_CHANGE);
    }
    let ln_first = Fixed((*s).ln_first_rate_int, (*s).ln_first_rate_fraction);
    let ln_rate = add_fixed(ln_first, total);
    let limit = add_float(Fixed(0, 0u), select(LN_RATE_LIMIT, -LN_RATE_LIMIT, ln_rate.whole < 0));
    let excess = fixed_to_float(subtract_fixed(ln_rate, limit));
    // Closer than f32 can tell is not beyond.
    if (ln_rate.whole < 0 && excess < -1e-5) || (ln_rate.whole >= 0 && excess > 1e-5) {
        (*r).flags |= CLAMPED_RATE;
        total = subtract_fixed(limit, ln_first);
    }
    (*s).change_int = total.whole;
    (*s).change_fraction = total.fraction;
    let growth = exp_fixed(total);
    let rate = to_float(scaled(
        (*s).first_rate_mantissa * growth.mantissa,
        (*s).first_rate_exponent + growth.exponent,
    ));
    (*s).regime_rate = clamp(rate, RATE_MIN, RATE_MAX);

    // η hangs on its first value, so that a later step gives back what a clamp takes away now.
    let taken_before = subtract_fixed(before, wanted_before);
    (*r).clamp_term = fixed_to_float(subtract_fixed(subtract_fixed(total, wanted), taken_before)) - lost;
}

// What the smoothed norm has changed ln η by since the first step: p ln(n̂_1 / n̂), with a p of its own where the norm has risen.
fn from_norm_ratio(c: GroupConstants, fallen: Fixed) -> Fixed {
    return times_fixed(fallen, select(c.exponent, c.exponent_above, fallen.whole < 0));
}

// Steps that agree raise A. Steps that contradict each other take back what agreement gave; what would carry A below its least value so
// far counts only while n̂ stands above twice its first value, and in full at four times. Returns what the bounds of A took away.
fn follow_alignment(
    c: GroupConstants,
    measured: ScopeSums,
    norm: Scaled,
    smoothed: Scaled,
    scale_of_sums: Scaled,
    anchor: Scaled,
    s: ptr<function, GroupState>,
    r: ptr<function, RawRecord>,
) -> f32 {
    let norm_in_sums = to_float(quotient(norm, scale_of_sums));
    // Before the third gradient y equals z up to rounding, so that their difference has no direction yet.
    let compared = (c.flags & ITERATES) == 0u || (*s).mean_steps > 2u;
    // Of the sum as it was loaded: shared/sweep_again.wgsl says why.
    if compared && is_finite(measured.direction_square) {
        (*r).slow_alignment = cosine(measured.slow_dot, norm_in_sums * sqrt(measured.direction_square));
    }
    var brake = 0.0;
    if (c.flags & BRAKE) != 0u {
        (*r).fast_alignment = cosine(measured.fast_dot, measured.absolute);
        // The brake goes by an average. One step's value is noisy, and noise in a brake only ever lowers the rate.
        (*s).mean_fast = FAST_KEEP * (*s).mean_fast + (1.0 - FAST_KEEP) * (*r).fast_alignment;
        (*s).mean_fast_weight = FAST_KEEP * (*s).mean_fast_weight + (1.0 - FAST_KEEP);
        brake = min(0.0, (*s).mean_fast / (*s).mean_fast_weight + c.brake_slack);
    }
    let weight = gain(c, (*s).mean_steps) * to_float(quotient(norm, smoothed));
    (*r).alignment_term = weight * (*r).slow_alignment;
    (*r).brake_term = weight * brake;

    let least = Fixed((*s).least_agreement_int, (*s).least_agreement_fraction);
    var next = add_float(Fixed((*s).agreement_int, (*s).agreement_fraction), (*r).alignment_term + (*r).brake_term);
    let below = fixed_to_float(subtract_fixed(least, next));
    if below > 0.0 {
        let doublings = ln_ratio(smoothed, anchor) * 1.44269504;
        let held = 1.0 - clamp(doublings - 1.0, 0.0, 1.0);
        (*r).held_term = held * below;
        if held == 1.0 {
            // Where all of the fall is held, A is exactly its floor, so that rounding cannot wear the floor down.
            next = least;
        } else {
            next = add_float(next, (*r).held_term);
        }
        (*s).least_agreement_int = next.whole;
        (*s).least_agreement_fraction = next.fraction;
    }
    // Beyond this the rate is at its limit whatever the norm does, and a rate that is clamped for long must not take as long to come back.
    let bound = clamp(fixed_to_float(next), -AGREEMENT_LIMIT, AGREEMENT_LIMIT);
    let lost = fixed_to_float(next) - bound;
    if lost != 0.0 {
        (*r).flags |= CLAMPED_RATE;
        next = add_float(Fixed(0, 0u), bound);
    }
    (*s).agreement_int = next.whole;
    (*s).agreement_fraction = next.fraction;
    return lost;
}

// κ_t = max(κ, h/(h + k - 2)) at the k-th gradient, which is 1 at the first that can be compared with another: as in stochastic
// approximation the first steps, which know least, move the rate most.
fn gain(c: GroupConstants, k: u32) -> f32 {
    let steps = c.early_steps + (f32(k) - 2.0);
    return max(c.gain, c.early_steps / max(1.0, steps));
}

// The schedule's factor, at the step that follows those that were taken.
fn follow_schedule(c: GroupConstants, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    let factor = schedule_factor(c, steps_taken(*s));
    let ln_factor = ln_ratio(scaled(factor, 0), Scaled(1.0, 0));
    if ((*r).flags & FIRST) == 0u {
        (*r).schedule_term = ln_factor - (*s).ln_schedule;
    }
    (*s).ln_schedule = ln_factor;
    (*s).learning_rate *= factor;
}

// η_0 = ε (1 + ‖w_0‖) / n_0, or over √d where the direction is a vector of signs.
fn set_first_rate(
    c: GroupConstants,
    measured: ScopeSums,
    norm: Scaled,
    s: ptr<function, GroupState>,
    r: ptr<function, RawRecord>,
) {
    let initial_norm = root(from_squares(measured.initial_square));
    let length = times(sum(Scaled(1.0, 0), initial_norm), c.first_step);
    var direction = norm;
    if (c.flags & SIGN_RULE) != 0u {
        direction = scaled(c.sqrt_elements, 0);
    }
    var wanted = quotient(length, direction);
    if TRUST && c.trust_coefficient > 0.0 {
        // The trust ratio follows, and the step is to have this length with it.
        wanted = quotient(wanted, trust_of(c, measured, norm, s));
    }
    let rate = smaller(larger(wanted, scaled(RATE_MIN, 0)), scaled(RATE_MAX, 0));
    if differ(rate, wanted) {
        (*r).flags |= CLAMPED_RATE;
    }
    hold_rate(rate, s);
}

// LARS: coefficient ‖w‖ / ‖u‖ (src/trust.rs), of the parameters as they were after the last step, and 1 where either is 0.
fn trust_of(c: GroupConstants, measured: ScopeSums, norm: Scaled, s: ptr<function, GroupState>) -> Scaled {
    var parameters = Scaled((*s).parameter_mantissa, (*s).parameter_exponent);
    if (*s).momentum_started == 0u {
        parameters = root(from_squares(measured.initial_square));
    }
    var direction = norm;
    if (c.flags & SIGN_RULE) != 0u {
        direction = scaled(c.sqrt_elements, 0);
    }
    if is_zero(parameters) || is_zero(direction) {
        return Scaled(1.0, 0);
    }
    let wanted = quotient(times(parameters, c.trust_coefficient), direction);
    return smaller(larger(wanted, scaled(TRUST_MIN, 0)), scaled(TRUST_MAX, 0));
}

// The trust ratio, over what regime and schedule say. A gradient of zero carries it over, as it does the rate.
fn follow_trust(
    c: GroupConstants,
    measured: ScopeSums,
    square: Scaled,
    norm: Scaled,
    s: ptr<function, GroupState>,
    r: ptr<function, RawRecord>,
) {
    if !is_zero(square) {
        let trust = trust_of(c, measured, norm, s);
        let ln_trust = ln_ratio(trust, Scaled(1.0, 0));
        if ((*r).flags & FIRST) == 0u {
            (*r).trust_term = ln_trust - (*s).ln_trust;
        }
        (*s).ln_trust = ln_trust;
        (*s).trust = to_float(trust);
    }
    (*r).trust_ratio = (*s).trust;
    (*s).learning_rate *= (*s).trust;
}
