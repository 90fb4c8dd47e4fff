//! Pass 3, the regimes that say what the rate is, and the schedules: twin of the files in `shaders/regimes/`, and of `shaders/learning_rate/schedule.wgsl`.

use crate::cpu::learning_rate::from_squares;
use crate::cpu::scaled::{Fixed, Scaled};
use crate::layout::{
    GroupConstants, GroupState, RawRecord, ScopeSums, group_flags, record_flags, regime_kinds, schedule_kinds,
};
use crate::regime::RATE_MIN;
use crate::schedule::Schedule;

pub(crate) fn first_rate_is_a_formula(regime: u32) -> bool {
    matches!(
        regime,
        regime_kinds::ADAGRAD_NORM | regime_kinds::DOG | regime_kinds::DOWG | regime_kinds::POLYAK | regime_kinds::NGN
    )
}

fn is_sign_rule(c: &GroupConstants) -> bool {
    c.flags & group_flags::SIGN_RULE != 0
}

fn sqrt_elements(c: &GroupConstants) -> Scaled {
    Scaled::new(c.sqrt_elements, 0)
}

/// The squared length of the step's direction, as far as the regimes of sums know it: that of the gradient, or of its signs.
fn direction_square_of(c: &GroupConstants, square: Scaled) -> Scaled {
    if is_sign_rule(c) { sqrt_elements(c).product(sqrt_elements(c)) } else { square }
}

/// ln(a / b), and 0 where there is nothing to compare.
fn ln_ratio_or_0(a: Scaled, b: Scaled) -> f32 {
    if a.is_zero() || b.is_zero() { 0.0 } else { a.ln_ratio(b) }
}

/// 1 + σ n²/(2 f) for f above 0.
fn ngn_divisor(rate: f32, square: Scaled, loss: f32) -> Scaled {
    Scaled::ONE.sum(square.times(rate).quotient(Scaled::new(2.0 * loss, 0)))
}

/// A finite, non-zero gradient sets the rate; its norm may be the `first`, and the last norm then 0.
#[expect(clippy::too_many_arguments, reason = "the shader's function has the same")]
pub(crate) fn set_rate(
    c: &GroupConstants,
    measured: &ScopeSums,
    square: Scaled,
    norm: Scaled,
    last_norm: Scaled,
    scale_of_sums: i32,
    first: bool,
    s: &mut GroupState,
    r: &mut RawRecord,
) {
    let old = Scaled::new(s.regime_rate, 0);
    let last_loss = s.last_loss;
    let old_history = Scaled { mantissa: s.history_mantissa, exponent: s.history_exponent };
    let old_distance = Scaled { mantissa: s.distance_mantissa, exponent: s.distance_exponent };
    let norm_change = ln_ratio_or_0(norm, last_norm);
    let optimum = if c.regime == regime_kinds::POLYAK { c.offset } else { 0.0 };
    let loss = (measured.loss - optimum).max(0.0);
    let mut history = old_history;
    let mut farthest = old_distance;
    // 0 asks for the lowest rate that the clamps allow.
    let mut wanted = Scaled::ZERO;
    match c.regime {
        regime_kinds::ADAGRAD_NORM => {
            if first {
                let offset = Scaled::new(c.offset, 0);
                history = offset.product(offset);
            }
            history = history.sum(direction_square_of(c, square));
            wanted = Scaled::new(c.scale, 0).quotient(history.root());
            r.history_term = -0.5 * ln_ratio_or_0(history, old_history);
        }
        regime_kinds::DOG | regime_kinds::DOWG => {
            if first {
                let initial_norm = from_squares(measured.initial_square).root();
                farthest = Scaled::ONE.sum(initial_norm).times(c.first_step);
            }
            if !first && measured.direction_square.is_finite() {
                farthest = farthest.larger(Scaled::new(measured.direction_square, 0).root());
            }
            let mut added = direction_square_of(c, square);
            wanted = farthest;
            r.distance_term = ln_ratio_or_0(farthest, old_distance);
            if c.regime == regime_kinds::DOWG {
                let farthest_square = farthest.product(farthest);
                added = farthest_square.product(added);
                wanted = farthest_square;
                r.distance_term *= 2.0;
            }
            history = history.sum(added);
            wanted = wanted.quotient(history.root());
            r.history_term = -0.5 * ln_ratio_or_0(history, old_history);
        }
        regime_kinds::POLYAK => {
            s.last_loss = loss;
            if loss > 0.0 {
                wanted = Scaled::new(loss, 0).quotient(square.times(c.scale));
            }
            r.norm_term = -2.0 * norm_change;
            r.loss_term = ln_ratio_or_0(Scaled::new(loss, 0), Scaled::new(last_loss, 0));
        }
        regime_kinds::NGN => {
            s.last_loss = loss;
            if loss > 0.0 {
                let divisor = ngn_divisor(c.scale, square, loss);
                wanted = Scaled::new(c.scale, 0).quotient(divisor);
                if last_loss > 0.0 {
                    let between = ngn_divisor(c.scale, square, last_loss);
                    let last_square = last_norm.product(last_norm);
                    r.norm_term = ngn_divisor(c.scale, last_square, last_loss).ln_ratio(between);
                    r.loss_term = between.ln_ratio(divisor);
                }
            }
        }
        _ => {
            wanted = secant_rate(c, measured, old, norm, norm_change, scale_of_sums, s, r);
        }
    }
    s.history_mantissa = history.mantissa;
    s.history_exponent = history.exponent;
    s.distance_mantissa = farthest.mantissa;
    s.distance_exponent = farthest.exponent;

    // A step along the signs as long as that along the gradient.
    if is_sign_rule(c) && matches!(c.regime, regime_kinds::POLYAK | regime_kinds::NGN) {
        wanted = wanted.product(norm).quotient(sqrt_elements(c));
        r.norm_term += norm_change;
    }

    let mut rate = wanted;
    if !first {
        rate = rate.smaller(old.times(c.max_change)).larger(old.quotient(Scaled::new(c.max_change, 0)));
        if rate != wanted {
            r.flags |= record_flags::CLAMPED_CHANGE;
        }
    }
    let within = rate.smaller(Scaled::new(c.max_rate, 0)).larger(Scaled::new(RATE_MIN, 0));
    if rate != within {
        r.flags |= record_flags::CLAMPED_RATE;
    }
    hold_rate(within, s);
    if first {
        return;
    }
    s.last_growth = within.quotient(old).to_float();
    let change = within.ln_ratio(old);
    let explained = r.norm_term + r.curvature_term + r.gate_term + r.distance_term + r.history_term + r.loss_term;
    // Also what earlier clamps had taken away, where the formula is of this step alone. What the rounding of the terms leaves is no clamp.
    r.clamp_term = change - explained;
    if r.clamp_term.abs() < 4e-6 * explained.abs().max(1.0) {
        r.clamp_term = 0.0;
    }
}

/// The rate, from which later changes count.
pub(crate) fn hold_rate(rate: Scaled, s: &mut GroupState) {
    let ln_rate = rate.ln_fixed();
    s.first_rate_mantissa = rate.mantissa;
    s.first_rate_exponent = rate.exponent;
    s.ln_first_rate_int = ln_rate.whole;
    s.ln_first_rate_fraction = ln_rate.fraction;
    s.regime_rate = rate.to_float();
}

/// From s = -η u_{t-1} and y = g_t - g_{t-1}: the sums hold u·y, u·u and y·y, of u and y scaled by powers of two.
#[expect(clippy::too_many_arguments, reason = "the shader's function has the same")]
fn secant_rate(
    c: &GroupConstants,
    measured: &ScopeSums,
    old: Scaled,
    norm: Scaled,
    norm_change: f32,
    scale_of_sums: i32,
    s: &GroupState,
    r: &mut RawRecord,
) -> Scaled {
    let u_dot_y = measured.slow_dot;
    let u_square = measured.direction_square;
    let y_square = measured.absolute;
    if !u_dot_y.is_finite() || !u_square.is_finite() || !y_square.is_finite() {
        return Scaled::ZERO;
    }
    // u is scaled by the exponent of the momentum's bound, by that of the gradient, or not at all.
    let direction_exponent = if is_sign_rule(c) {
        0
    } else if c.momentum > 0.0 {
        s.direction_exponent
    } else {
        scale_of_sums
    };
    let shift = direction_exponent - scale_of_sums;
    let (mut factor, mut share_of_norm) = match c.regime {
        regime_kinds::SECANT_LONG => {
            if u_dot_y >= 0.0 || u_square == 0.0 {
                return old;
            }
            (Scaled::new(u_square, shift).quotient(Scaled::new(u_dot_y, 0)), 0.0)
        }
        regime_kinds::SECANT_SHORT => {
            if u_dot_y >= 0.0 || y_square == 0.0 {
                return old;
            }
            (Scaled::new(u_dot_y, shift).quotient(Scaled::new(y_square, 0)), -1.0)
        }
        _ => {
            if u_square == 0.0 || y_square == 0.0 {
                return old;
            }
            let square = Scaled::new(u_square, 2 * shift).quotient(Scaled::new(y_square, 0));
            (square.root(), -0.5)
        }
    };
    if factor.is_zero() {
        return old;
    }
    if is_sign_rule(c) {
        factor = factor.product(norm).quotient(sqrt_elements(c));
        share_of_norm += 1.0;
    }
    r.norm_term = share_of_norm * norm_change;
    let mut rate = old.product(factor);
    if c.regime == regime_kinds::ADGD {
        rate = rate.times(0.5);
        r.curvature_term = rate.ln_ratio(old) - r.norm_term;
        let growth = Scaled::ONE.sum(Scaled::new(s.last_growth, 0));
        let most = old.product(growth.root());
        if most.less(rate) {
            r.gate_term = most.ln_ratio(rate);
            rate = most;
        }
    } else {
        r.curvature_term = rate.ln_ratio(old) - r.norm_term;
    }
    rate
}

/// part / whole of two step counts.
fn share_of(part: u32, whole: u32) -> f32 {
    part as f32 / whole as f32
}

/// sin²(π z / 2) for z in `[0, 1]`, to a few ulps; WGSL's own sine is only good to 2^-11.
fn half_cosine(z: f32) -> f32 {
    let x = std::f32::consts::FRAC_PI_2 * z;
    let y = x * x;
    let sine = x
        * (1.0
            - y * (0.166_666_67
                - y * (0.008_333_333
                    - y * (1.984_127e-4 - y * (2.755_732e-6 - y * (2.505_210_8e-8 - y * 1.605_904_4e-10))))));
    sine * sine
}

/// The factor at step t.
pub(crate) fn schedule_factor(c: &GroupConstants, t: u32) -> f32 {
    let descent = || {
        let left = c.schedule_steps - t.min(c.schedule_steps);
        c.schedule_last + (1.0 - c.schedule_last) * half_cosine(share_of(left, c.schedule_steps - c.schedule_rise))
    };
    let rising = t < c.schedule_rise;
    let factor = match c.schedule {
        schedule_kinds::WARMUP_COSINE | schedule_kinds::INVERSE_SQRT if rising => share_of(t + 1, c.schedule_rise),
        schedule_kinds::WARMUP_COSINE => descent(),
        schedule_kinds::INVERSE_SQRT => {
            Scaled::new(c.schedule_rise as f32, 0).quotient(Scaled::new(t as f32 + 1.0, 0)).root().to_float()
        }
        schedule_kinds::STEP => {
            let ln_factor = (t / c.schedule_rise) as f32 * c.schedule_last;
            Fixed::default().add_float(ln_factor.clamp(-20.0, 20.0)).exp().to_float()
        }
        schedule_kinds::ONE_CYCLE if rising => {
            c.schedule_first + (1.0 - c.schedule_first) * half_cosine(share_of(t, c.schedule_rise))
        }
        schedule_kinds::ONE_CYCLE => descent(),
        _ => 1.0,
    };
    factor.max(Schedule::FLOOR)
}
