// Pass 3, the regime GatedDistance: distance over gradients on windows of steps, behind a gate that asks the norm. CPU twin:
// src/cpu/gated_distance.rs. src/regime/gated.rs has the equations and where their ideas come from.

// Steps without a raise after which the ignition ends.
const IGNITION_STEPS = 12u;
// The least and the largest raise of the ignition.
const LEAST_RAISE = 2.0;
const MOST_RAISE = 8.0;
// The norm's growth since the last raise, and the share of the window's steps that take each other back, that end the ignition.
const ALARM_GROWTH = 2.0;
const ALARM_RETREAT = 0.5;
// Steps of the first window, and of the longest.
const FIRST_WINDOW = 16u;
const LONGEST_WINDOW = 0x40000000u;
// A window that raises the level by more than this is followed by one of the same length.
const STILL_GROWING = 1.2;
// The most that a window raises the level, and that the gate lets the rate rise above it.
const LEVEL_GROWTH = 4.0;
// The most that a step raises the rate after the ignition.
const RATE_GROWTH = 2.0;
// The most that the mean magnitude changes the rate of a step along signs.
const MAGNITUDE_CHANGE = 10.0;

// The mean magnitude ‖g‖₁/d of the gradient's elements; n/√d, which is no less, where the sum left the range of f32.
fn mean_magnitude(c: GroupConstants, measured: ScopeSums, norm: Scaled, scale_of_sums: i32) -> Scaled {
    let sqrt_elements = scaled(c.sqrt_elements, 0);
    let absolute = scaled(measured.absolute, scale_of_sums);
    if !is_finite(measured.absolute) || is_zero(absolute) {
        return quotient(norm, sqrt_elements);
    }
    return quotient(absolute, product(sqrt_elements, sqrt_elements));
}

// ‖u‖ of the direction that the rule would take if all gradients were this one.
fn length_of_direction(c: GroupConstants, norm: Scaled, magnitude: Scaled, clip_factor: f32) -> Scaled {
    if (c.flags & SIGN_RULE) != 0u {
        return product(magnitude, scaled(c.sqrt_elements, 0));
    }
    return times(times(norm, clip_factor), c.gradient_share / (1.0 - c.momentum));
}

fn begin_window(s: ptr<function, GroupState>) {
    (*s).restarted = 1u;
    (*s).window_steps = 0u;
    set_energy(Scaled(0.0, 0), s);
    set_square(Scaled(0.0, 0), s);
    set_farthest(Scaled(0.0, 0), s);
}

fn set_energy(energy: Scaled, s: ptr<function, GroupState>) {
    (*s).window_energy_mantissa = energy.mantissa;
    (*s).window_energy_exponent = energy.exponent;
}

fn set_square(square: Scaled, s: ptr<function, GroupState>) {
    (*s).window_square_mantissa = square.mantissa;
    (*s).window_square_exponent = square.exponent;
}

fn set_farthest(farthest: Scaled, s: ptr<function, GroupState>) {
    (*s).window_distance_mantissa = farthest.mantissa;
    (*s).window_distance_exponent = farthest.exponent;
}

fn set_level(level: Scaled, s: ptr<function, GroupState>) {
    (*s).level_mantissa = level.mantissa;
    (*s).level_exponent = level.exponent;
}

fn set_history(history: Scaled, s: ptr<function, GroupState>) {
    (*s).history_mantissa = history.mantissa;
    (*s).history_exponent = history.exponent;
}

fn set_distance(distance: Scaled, s: ptr<function, GroupState>) {
    (*s).distance_mantissa = distance.mantissa;
    (*s).distance_exponent = distance.exponent;
}

fn set_ignition_norm(norm: Scaled, s: ptr<function, GroupState>) {
    (*s).ignition_norm_mantissa = norm.mantissa;
    (*s).ignition_norm_exponent = norm.exponent;
}

// Raises the level where the window's steps agree, and ends the ignition where they do not or the norm rises.
fn ignite(c: GroupConstants, norm: Scaled, s: ptr<function, GroupState>) {
    let energy = Scaled((*s).window_energy_mantissa, (*s).window_energy_exponent);
    let square = Scaled((*s).window_square_mantissa, (*s).window_square_exponent);
    let way_square = Scaled((*s).way_square_mantissa, (*s).way_square_exponent);
    let mean_rate = root(quotient(square, energy));
    // Twice the sum of all pairs' inner products over that of the squares.
    let agreement = to_float(quotient(way_square, square)) - 1.0;
    let others = f32(max((*s).window_steps, 2u) - 1u);
    let several = (*s).window_steps >= 2u;
    let last_norm = Scaled((*s).ignition_norm_mantissa, (*s).ignition_norm_exponent);
    let alarm = less(times(last_norm, ALARM_GROWTH), norm) || (several && agreement <= -ALARM_RETREAT);
    if !alarm && several && agreement >= min(0.5 * others, 1.0) {
        // The norm secant at equal norms, of the mean cosine.
        let cosine = agreement / others;
        (*s).raise = clamp(1.0 / sqrt(2.0 * max(1.0 - cosine, 1e-6)), LEAST_RAISE, MOST_RAISE);
        set_level(times(mean_rate, (*s).raise), s);
        set_ignition_norm(norm, s);
        begin_window(s);
    } else if alarm || (*s).window_steps >= IGNITION_STEPS {
        var level = mean_rate;
        if alarm {
            level = quotient(level, scaled((*s).raise, 0));
        }
        let history = times(energy, c.scale);
        set_level(level, s);
        set_history(history, s);
        set_distance(product(level, root(history)), s);
        (*s).window_limit = FIRST_WINDOW;
        (*s).phase = RUN;
        begin_window(s);
    }
}

// The farthest that the window has come, and a new level where it is over.
fn measure_window(c: GroupConstants, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    let way = root(Scaled((*s).way_square_mantissa, (*s).way_square_exponent));
    let old_distance = Scaled((*s).distance_mantissa, (*s).distance_exponent);
    let distance = larger(old_distance, way);
    set_distance(distance, s);
    (*r).distance_term = ln_ratio(distance, old_distance);
    let farthest = larger(Scaled((*s).window_distance_mantissa, (*s).window_distance_exponent), way);
    set_farthest(farthest, s);
    if (*s).window_steps < (*s).window_limit {
        return;
    }
    let before = quotient(distance, root(Scaled((*s).history_mantissa, (*s).history_exponent)));
    let history = times(Scaled((*s).window_energy_mantissa, (*s).window_energy_exponent), c.offset);
    let old_level = Scaled((*s).level_mantissa, (*s).level_exponent);
    var reached = farthest;
    if is_zero(farthest) {
        reached = distance;
    }
    let wanted = quotient(reached, root(history));
    let level = smaller(wanted, times(old_level, LEVEL_GROWTH));
    if !less(times(old_level, STILL_GROWING), wanted) {
        (*s).window_limit = min(2u * (*s).window_limit, LONGEST_WINDOW);
    }
    set_level(level, s);
    set_history(history, s);
    set_distance(product(level, root(history)), s);
    begin_window(s);
    (*r).restart_term = ln_ratio(level, before);
}

// The rate rises only where the norm fell, and falls only where it rose.
fn through_gate(
    c: GroupConstants,
    norm: Scaled,
    last_norm: Scaled,
    old: Scaled,
    proposed: Scaled,
    r: ptr<function, RawRecord>,
) -> Scaled {
    let change = clamp(ln_ratio(norm, last_norm), -LN_2, LN_2);
    let moved = product(old, exp_fixed(add_float(Fixed(0, 0u), -c.exponent * change)));
    if less(norm, last_norm) {
        (*r).norm_term = -c.exponent * change;
        return larger(larger(moved, proposed), old);
    }
    if less(last_norm, norm) {
        (*r).norm_term = -c.exponent * change;
        return smaller(smaller(moved, proposed), old);
    }
    return old;
}

fn within_limits(rate: Scaled) -> Scaled {
    return larger(smaller(rate, scaled(RATE_MAX, 0)), scaled(RATE_MIN, 0));
}

// A finite, non-zero gradient sets the rate.
fn gated_distance(
    c: GroupConstants,
    measured: ScopeSums,
    norm: Scaled,
    last_norm: Scaled,
    scale_of_sums: i32,
    s: ptr<function, GroupState>,
    r: ptr<function, RawRecord>,
) {
    let along_signs = (c.flags & SIGN_RULE) != 0u;
    var magnitude = Scaled(1.0, 0);
    if along_signs {
        magnitude = mean_magnitude(c, measured, norm, scale_of_sums);
    }
    let length = length_of_direction(c, norm, magnitude, (*r).clip_factor);
    if is_zero(length) {
        return;
    }
    let energy = product(length, length);
    let old = scaled((*s).gated_rate, 0);
    let last_rate = scaled((*s).regime_rate, 0);
    let phase = (*s).phase;
    if phase == 0u {
        let initial_norm = root(from_squares(measured.initial_square));
        set_level(quotient(times(sum(Scaled(1.0, 0), initial_norm), c.first_step), length), s);
        (*s).raise = 1.0;
        set_ignition_norm(norm, s);
        (*s).phase = IGNITION;
        begin_window(s);
    } else if phase == IGNITION {
        ignite(c, norm, s);
    } else {
        measure_window(c, s, r);
    }

    let level = Scaled((*s).level_mantissa, (*s).level_exponent);
    var proposed = level;
    var growth = MOST_RAISE;
    if (*s).phase == RUN {
        let old_history = Scaled((*s).history_mantissa, (*s).history_exponent);
        let history = sum(old_history, times(energy, c.offset));
        set_history(history, s);
        let ratio = quotient(Scaled((*s).distance_mantissa, (*s).distance_exponent), root(history));
        proposed = smaller(ratio, times(level, LEVEL_GROWTH));
        growth = RATE_GROWTH;
        if phase == RUN {
            (*r).history_term = -0.5 * ln_ratio(history, old_history);
        }
    }
    var bounded = proposed;
    if phase != 0u {
        bounded = smaller(proposed, times(old, growth));
    }
    var rate = bounded;
    if phase == RUN {
        rate = through_gate(c, norm, last_norm, old, bounded, r);
    }
    let held = within_limits(rate);
    (*s).gated_rate = to_float(held);
    var applied = held;
    if along_signs {
        applied = product(held, magnitude);
        if phase != 0u {
            let most = times(last_rate, MAGNITUDE_CHANGE);
            applied = larger(smaller(applied, most), quotient(last_rate, scaled(MAGNITUDE_CHANGE, 0)));
            if differ(applied, product(held, magnitude)) {
                (*r).flags |= CLAMPED_CHANGE;
            }
        }
    }
    let within = within_limits(applied);
    if differ(held, rate) || differ(within, applied) {
        (*r).flags |= CLAMPED_RATE;
    }
    hold_rate(within, s);

    var step = product(within, length);
    if along_signs {
        step = product(within, scaled(c.sqrt_elements, 0));
    }
    let square = sum(Scaled((*s).window_square_mantissa, (*s).window_square_exponent), product(step, step));
    set_square(square, s);
    set_energy(sum(Scaled((*s).window_energy_mantissa, (*s).window_energy_exponent), energy), s);
    (*s).window_steps += 1u;

    if phase == 0u {
        (*r).flags |= FIRST;
        return;
    }
    let change = ln_ratio(held, old);
    (*r).clamp_term = ln_ratio(held, rate);
    if phase == IGNITION {
        (*r).curvature_term = change - (*r).clamp_term;
    } else {
        if less(bounded, proposed) && !differ(rate, bounded) {
            (*r).flags |= CLAMPED_CHANGE;
            (*r).clamp_term += ln_ratio(bounded, proposed);
        }
        let explained = (*r).norm_term + (*r).distance_term + (*r).history_term + (*r).restart_term + (*r).clamp_term;
        (*r).gate_term = change - explained;
        // What the rounding of the terms leaves is no gate.
        if abs((*r).gate_term) < 4e-6 * max(1.0, abs(explained)) {
            (*r).gate_term = 0.0;
        }
    }
    if along_signs {
        let wanted = product(held, magnitude);
        (*r).magnitude_term = ln_ratio(wanted, last_rate) - change;
        (*r).clamp_term += ln_ratio(within, wanted);
    }
}
