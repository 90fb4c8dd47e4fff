//! Pass 3, the regime GatedDistance: twin of `shaders/shared/gated_distance.wgsl`, function by function.

use crate::cpu::learning_rate::from_squares;
use crate::cpu::regimes::hold_rate;
use crate::cpu::scaled::{Fixed, Scaled};
use crate::layout::{
    GroupConstants, GroupState, RawRecord, ScopeSums, gated_phases, group_flags, record_flags,
};
use crate::regime::{RATE_MAX, RATE_MIN};

/// Steps without a raise after which the ignition ends.
const IGNITION_STEPS: u32 = 12;
/// The least and the largest raise of the ignition.
const LEAST_RAISE: f32 = 2.0;
const MOST_RAISE: f32 = 8.0;
/// The norm's growth since the last raise, and the share of the window's steps that take each other back, that end the ignition.
const ALARM_GROWTH: f32 = 2.0;
const ALARM_RETREAT: f32 = 0.5;
/// Steps of the first window, and of the longest.
const FIRST_WINDOW: u32 = 16;
const LONGEST_WINDOW: u32 = 1 << 30;
/// A window that raises the level by more than this is followed by one of the same length.
const STILL_GROWING: f32 = 1.2;
/// The most that a window raises the level, and that the gate lets the rate rise above it.
const LEVEL_GROWTH: f32 = 4.0;
/// The most that a step raises the rate after the ignition.
const RATE_GROWTH: f32 = 2.0;
/// The most that the mean magnitude changes the rate of a step along signs.
const MAGNITUDE_CHANGE: f32 = 10.0;

fn sqrt_elements(c: &GroupConstants) -> Scaled {
    Scaled::new(c.sqrt_elements, 0)
}

/// The mean magnitude ‖g‖₁/d of the gradient's elements; n/√d, which is no less, where the sum left the range of f32.
fn mean_magnitude(
    c: &GroupConstants,
    measured: &ScopeSums,
    norm: Scaled,
    scale_of_sums: i32,
) -> Scaled {
    let absolute = Scaled::new(measured.absolute, scale_of_sums);
    if !measured.absolute.is_finite() || absolute.is_zero() {
        return norm.quotient(sqrt_elements(c));
    }
    absolute.quotient(sqrt_elements(c).product(sqrt_elements(c)))
}

/// ‖u‖ of the direction that the rule would take if all gradients were this one.
fn length_of_direction(
    c: &GroupConstants,
    norm: Scaled,
    magnitude: Scaled,
    clip_factor: f32,
) -> Scaled {
    if c.flags & group_flags::SIGN_RULE != 0 {
        return magnitude.product(sqrt_elements(c));
    }
    norm.times(clip_factor)
        .times(c.gradient_share / (1.0 - c.momentum))
}

fn begin_window(s: &mut GroupState) {
    s.restarted = 1;
    s.window_steps = 0;
    set_energy(Scaled::ZERO, s);
    set_square(Scaled::ZERO, s);
    set_farthest(Scaled::ZERO, s);
}

fn energy(s: &GroupState) -> Scaled {
    Scaled {
        mantissa: s.window_energy_mantissa,
        exponent: s.window_energy_exponent,
    }
}

fn set_energy(energy: Scaled, s: &mut GroupState) {
    s.window_energy_mantissa = energy.mantissa;
    s.window_energy_exponent = energy.exponent;
}

fn square(s: &GroupState) -> Scaled {
    Scaled {
        mantissa: s.window_square_mantissa,
        exponent: s.window_square_exponent,
    }
}

fn set_square(square: Scaled, s: &mut GroupState) {
    s.window_square_mantissa = square.mantissa;
    s.window_square_exponent = square.exponent;
}

fn set_farthest(farthest: Scaled, s: &mut GroupState) {
    s.window_distance_mantissa = farthest.mantissa;
    s.window_distance_exponent = farthest.exponent;
}

fn way_square(s: &GroupState) -> Scaled {
    Scaled {
        mantissa: s.way_square_mantissa,
        exponent: s.way_square_exponent,
    }
}

fn level(s: &GroupState) -> Scaled {
    Scaled {
        mantissa: s.level_mantissa,
        exponent: s.level_exponent,
    }
}

fn set_level(level: Scaled, s: &mut GroupState) {
    s.level_mantissa = level.mantissa;
    s.level_exponent = level.exponent;
}

fn history(s: &GroupState) -> Scaled {
    Scaled {
        mantissa: s.history_mantissa,
        exponent: s.history_exponent,
    }
}

fn set_history(history: Scaled, s: &mut GroupState) {
    s.history_mantissa = history.mantissa;
    s.history_exponent = history.exponent;
}

fn distance(s: &GroupState) -> Scaled {
    Scaled {
        mantissa: s.distance_mantissa,
        exponent: s.distance_exponent,
    }
}

fn set_distance(distance: Scaled, s: &mut GroupState) {
    s.distance_mantissa = distance.mantissa;
    s.distance_exponent = distance.exponent;
}

fn set_ignition_norm(norm: Scaled, s: &mut GroupState) {
    s.ignition_norm_mantissa = norm.mantissa;
    s.ignition_norm_exponent = norm.exponent;
}

/// Raises the level where the window's steps agree, and ends the ignition where they do not or the norm rises.
fn ignite(c: &GroupConstants, norm: Scaled, s: &mut GroupState) {
    let mean_rate = square(s).quotient(energy(s)).root();
    // Twice the sum of all pairs' inner products over that of the squares.
    let agreement = way_square(s).quotient(square(s)).to_float() - 1.0;
    let others = (s.window_steps.max(2) - 1) as f32;
    let several = s.window_steps >= 2;
    let last_norm = Scaled {
        mantissa: s.ignition_norm_mantissa,
        exponent: s.ignition_norm_exponent,
    };
    let alarm =
        last_norm.times(ALARM_GROWTH).less(norm) || (several && agreement <= -ALARM_RETREAT);
    if !alarm && several && agreement >= (0.5 * others).min(1.0) {
        // The norm secant at equal norms, of the mean cosine.
        let cosine = agreement / others;
        s.raise = (1.0 / (2.0 * (1.0 - cosine).max(1e-6)).sqrt()).clamp(LEAST_RAISE, MOST_RAISE);
        set_level(mean_rate.times(s.raise), s);
        set_ignition_norm(norm, s);
        begin_window(s);
    } else if alarm || s.window_steps >= IGNITION_STEPS {
        let level = if alarm {
            mean_rate.quotient(Scaled::new(s.raise, 0))
        } else {
            mean_rate
        };
        let history = energy(s).times(c.scale);
        set_level(level, s);
        set_history(history, s);
        set_distance(level.product(history.root()), s);
        s.window_limit = FIRST_WINDOW;
        s.phase = gated_phases::RUN;
        begin_window(s);
    }
}

/// The farthest that the window has come, and a new level where it is over.
fn measure_window(c: &GroupConstants, s: &mut GroupState, r: &mut RawRecord) {
    let way = way_square(s).root();
    let old_distance = distance(s);
    let farthest_yet = old_distance.larger(way);
    set_distance(farthest_yet, s);
    r.distance_term = farthest_yet.ln_ratio(old_distance);
    let farthest = Scaled {
        mantissa: s.window_distance_mantissa,
        exponent: s.window_distance_exponent,
    }
    .larger(way);
    set_farthest(farthest, s);
    if s.window_steps < s.window_limit {
        return;
    }
    let before = farthest_yet.quotient(history(s).root());
    let new_history = energy(s).times(c.offset);
    let old_level = level(s);
    let reached = if farthest.is_zero() {
        farthest_yet
    } else {
        farthest
    };
    let wanted = reached.quotient(new_history.root());
    let new_level = wanted.smaller(old_level.times(LEVEL_GROWTH));
    if !old_level.times(STILL_GROWING).less(wanted) {
        s.window_limit = (2 * s.window_limit).min(LONGEST_WINDOW);
    }
    set_level(new_level, s);
    set_history(new_history, s);
    set_distance(new_level.product(new_history.root()), s);
    begin_window(s);
    r.restart_term = new_level.ln_ratio(before);
}

/// The rate rises only where the norm fell, and falls only where it rose.
fn through_gate(
    c: &GroupConstants,
    norm: Scaled,
    last_norm: Scaled,
    old: Scaled,
    proposed: Scaled,
    r: &mut RawRecord,
) -> Scaled {
    let octave = std::f32::consts::LN_2;
    let change = norm.ln_ratio(last_norm).clamp(-octave, octave);
    let moved = old.product(Fixed::default().add_float(-c.exponent * change).exp());
    if norm.less(last_norm) {
        r.norm_term = -c.exponent * change;
        moved.larger(proposed).larger(old)
    } else if last_norm.less(norm) {
        r.norm_term = -c.exponent * change;
        moved.smaller(proposed).smaller(old)
    } else {
        old
    }
}

fn within_limits(rate: Scaled) -> Scaled {
    rate.smaller(Scaled::new(RATE_MAX, 0))
        .larger(Scaled::new(RATE_MIN, 0))
}

/// A finite, non-zero gradient sets the rate.
pub(crate) fn gated_distance(
    c: &GroupConstants,
    measured: &ScopeSums,
    norm: Scaled,
    last_norm: Scaled,
    scale_of_sums: i32,
    s: &mut GroupState,
    r: &mut RawRecord,
) {
    let along_signs = c.flags & group_flags::SIGN_RULE != 0;
    let magnitude = if along_signs {
        mean_magnitude(c, measured, norm, scale_of_sums)
    } else {
        Scaled::ONE
    };
    let length = length_of_direction(c, norm, magnitude, r.clip_factor);
    if length.is_zero() {
        return;
    }
    let step_energy = length.product(length);
    let old = Scaled::new(s.gated_rate, 0);
    let last_rate = Scaled::new(s.regime_rate, 0);
    let phase = s.phase;
    match phase {
        gated_phases::IGNITION => ignite(c, norm, s),
        gated_phases::RUN => measure_window(c, s, r),
        _ => {
            let initial_norm = from_squares(measured.initial_square).root();
            let first = Scaled::ONE.sum(initial_norm).times(c.first_step);
            set_level(first.quotient(length), s);
            s.raise = 1.0;
            set_ignition_norm(norm, s);
            s.phase = gated_phases::IGNITION;
            begin_window(s);
        }
    }

    let mut proposed = level(s);
    let mut growth = MOST_RAISE;
    if s.phase == gated_phases::RUN {
        let old_history = history(s);
        let new_history = old_history.sum(step_energy.times(c.offset));
        set_history(new_history, s);
        let ratio = distance(s).quotient(new_history.root());
        proposed = ratio.smaller(level(s).times(LEVEL_GROWTH));
        growth = RATE_GROWTH;
        if phase == gated_phases::RUN {
            r.history_term = -0.5 * new_history.ln_ratio(old_history);
        }
    }
    let bounded = if phase == 0 {
        proposed
    } else {
        proposed.smaller(old.times(growth))
    };
    let rate = if phase == gated_phases::RUN {
        through_gate(c, norm, last_norm, old, bounded, r)
    } else {
        bounded
    };
    let held = within_limits(rate);
    s.gated_rate = held.to_float();
    let mut applied = held;
    if along_signs {
        let wanted = held.product(magnitude);
        applied = wanted;
        if phase != 0 {
            applied = wanted
                .smaller(last_rate.times(MAGNITUDE_CHANGE))
                .larger(last_rate.quotient(Scaled::new(MAGNITUDE_CHANGE, 0)));
            if applied != wanted {
                r.flags |= record_flags::CLAMPED_CHANGE;
            }
        }
    }
    let within = within_limits(applied);
    if held != rate || within != applied {
        r.flags |= record_flags::CLAMPED_RATE;
    }
    hold_rate(within, s);

    let step = if along_signs {
        within.product(sqrt_elements(c))
    } else {
        within.product(length)
    };
    set_square(square(s).sum(step.product(step)), s);
    set_energy(energy(s).sum(step_energy), s);
    s.window_steps += 1;

    if phase == 0 {
        r.flags |= record_flags::FIRST;
        return;
    }
    let change = held.ln_ratio(old);
    r.clamp_term = held.ln_ratio(rate);
    if phase == gated_phases::IGNITION {
        r.curvature_term = change - r.clamp_term;
    } else {
        if bounded.less(proposed) && rate == bounded {
            r.flags |= record_flags::CLAMPED_CHANGE;
            r.clamp_term += bounded.ln_ratio(proposed);
        }
        let explained =
            r.norm_term + r.distance_term + r.history_term + r.restart_term + r.clamp_term;
        r.gate_term = change - explained;
        // What the rounding of the terms leaves is no gate.
        if r.gate_term.abs() < 4e-6 * explained.abs().max(1.0) {
            r.gate_term = 0.0;
        }
    }
    if along_signs {
        let wanted = held.product(magnitude);
        r.magnitude_term = wanted.ln_ratio(last_rate) - change;
        r.clamp_term += within.ln_ratio(wanted);
    }
}
