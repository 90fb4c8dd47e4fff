// Pass 3: from the sums of a step to its learning rate, and why.
//
// Reads:  groups, sums.
// Writes: states, updates (for pass 4), learning_rates and loss_scale (for the caller), records (the ring).
// Grid:   one invocation per group.
//
// A kernel is compiled with one file of regimes/ and serves the groups with a regime of that file. Where the groups' regimes are in several
// files, a step has a kernel for each of them. The kernel calls two functions of the regime's files:
//     follow_regime(c, g, s, r)                  changes the rate at a finite gradient that is not zero
//     begin_step(c, loss, skip, halted, s, r)    chooses the stream that the step belongs to (one_stream.wgsl where there is one)
// The files in learning_rate/ change what every regime gives: schedule, trust ratio, share of an average, second moment. Where no group needs
// one of them, the kernel is compiled with its counterpart no_*.wgsl, which does nothing.
//
// Rescaling the loss by a power of two leaves every step as it is, bit for bit.

override WORKGROUP: u32;
// The regimes that the kernel serves, as numbers of shared/layout.wgsl.
override FIRST_REGIME: u32;
override LAST_REGIME: u32;

@group(0) @binding(0) var<storage, read> groups: array<GroupConstants>;
@group(0) @binding(1) var<storage, read> sums: array<ScopeSums>;
@group(0) @binding(2) var<storage, read_write> states: array<GroupState>;
@group(0) @binding(3) var<storage, read_write> updates: array<Update>;
@group(0) @binding(4) var<storage, read_write> learning_rates: array<f32>;
@group(0) @binding(5) var<storage, read_write> records: array<RawRecord>;
@group(0) @binding(6) var<storage, read_write> loss_scale: array<f32>;

const RATE_MIN = 1e-30;
const RATE_MAX = 1e30;
const NO_CLIP = 3.4028234e38;

// A finite gradient that is not zero, and what of the state it has replaced.
struct Gradient {
    sums: ScopeSums,
    square: Scaled,
    norm: Scaled,
    last_norm: Scaled,      // 0 at the first gradient
    smoothed: Scaled,       // n̂
    last_smoothed: Scaled,
    scale_of_sums: i32,     // the inner products among the sums are of gradients scaled by 2^-this
    first: bool,
}

// What pass 4 does with streams of parameters after the step, or instead of it (regimes/streams.wgsl).
struct Turn {
    factor: f32,  // the stream's share of η
    begins: u32,  // 1 where the step is the first of its stream
    skip: u32,    // what Update.skip is where the step is skipped
    put: u32,
    take: u32,
}

fn from_squares(squares: Squares) -> Scaled {
    return scaled(squares.sum, 2 * squares.exponent);
}

// Of an x that was loaded; what was computed a compiler may take to be finite (shared/sweep_again.wgsl).
fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & MAGNITUDE_BITS) < INFINITY_BITS;
}

@compute @workgroup_size(WORKGROUP)
fn learning_rate(@builtin(global_invocation_id) id: vec3<u32>) {
    let group = id.x;
    if group >= arrayLength(&groups) {
        return;
    }
    let c = groups[group];
    if c.regime < FIRST_REGIME || c.regime > LAST_REGIME {
        return;
    }
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

    let halted = s.halted != 0u;
    if skip {
        skip_step(c, &s, &r);
    }
    let turn = begin_step(c, measured.loss, skip, halted, &s, &r);
    if !skip {
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

        var g = Gradient();
        g.sums = measured;
        g.square = square;
        g.norm = norm;
        if is_zero(square) {
            r.flags |= ZERO_GRADIENT;
        } else {
            smooth_norm(c, &g, &s);
            if g.first {
                r.flags |= FIRST;
            }
            follow_regime(c, g, &s, &r);
        }
        s.learning_rate = s.regime_rate;
        follow_schedule(c, &s, &r);
        follow_trust(c, g, &s, &r);

        // How large the momentum can be at the next step: μ ‖m_{t-1}‖ and what this step adds.
        let clipped = smaller(raw_norm, scaled(c.scope_clip, 0));
        var added = choose(clipped, norm, c.scope_clip >= NO_CLIP);
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
        follow_moments(c, &s, &u);
        u.first = turn.begins;
        u.put = turn.put;
        u.take = turn.take;
        u.rounding_key = rounding_key(c.rounding_seed, s.steps_low, s.steps_high);
        s.momentum_started = 1u;
        u.average_weight = average_share(c, &s);
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

    let of_regime = add_fixed(
        Fixed(s.ln_first_rate_int, s.ln_first_rate_fraction),
        Fixed(s.change_int, s.change_fraction),
    );
    let ln_rate = add_float(add_float(of_regime, s.ln_schedule), s.ln_trust);
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

// What a finite gradient that is not zero does to the norms in the state, whatever the regime.
fn smooth_norm(c: GroupConstants, g: ptr<function, Gradient>, s: ptr<function, GroupState>) {
    let square = (*g).square;
    let norm = (*g).norm;
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
    (*g).scale_of_sums = (*s).gradient_exponent;
    (*s).gradient_exponent = clamp(norm.exponent, -126, 126);
    if (*s).started != 0u {
        (*s).gradient_exponent = max((*s).gradient_exponent, (*g).scale_of_sums - 1);
    }

    (*g).last_norm = Scaled((*s).last_norm_mantissa, (*s).last_norm_exponent);
    (*s).last_norm_mantissa = norm.mantissa;
    (*s).last_norm_exponent = norm.exponent;
    (*g).smoothed = smoothed;
    (*g).last_smoothed = last_smoothed;
    (*g).first = (*s).started == 0u;
    if (*g).first {
        (*s).started = 1u;
        (*s).anchor_norm_mantissa = smoothed.mantissa;
        (*s).anchor_norm_exponent = smoothed.exponent;
    }
}

// The rate, from which later changes count.
fn hold_rate(rate: Scaled, s: ptr<function, GroupState>) {
    let ln_rate = ln_fixed(rate);
    (*s).first_rate_mantissa = rate.mantissa;
    (*s).first_rate_exponent = rate.exponent;
    (*s).ln_first_rate_int = ln_rate.whole;
    (*s).ln_first_rate_fraction = ln_rate.fraction;
    (*s).regime_rate = to_float(rate);
}

fn differ(a: Scaled, b: Scaled) -> bool {
    return (a.mantissa != b.mantissa) | (a.exponent != b.exponent);
}

// The length of the step's direction, as far as it is known before momentum: that of the gradient, or of its signs.
fn direction_of(c: GroupConstants, norm: Scaled) -> Scaled {
    return choose(norm, scaled(c.sqrt_elements, 0), (c.flags & SIGN_RULE) != 0u);
}
