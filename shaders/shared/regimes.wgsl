// Pass 3, the regimes that say what the rate is, where Seesaw and its kin say how it changes; and the schedules. CPU twin:
// src/cpu/regimes.rs. The formulas' sources are in src/regime/.

fn first_rate_is_a_formula(regime: u32) -> bool {
    return regime == ADAGRAD_NORM || regime == DOG || regime == DOWG || regime == POLYAK || regime == NGN;
}

// The squared length of the step's direction, as far as the regimes of sums know it: that of the gradient, or of its signs.
fn direction_square_of(c: GroupConstants, square: Scaled) -> Scaled {
    if (c.flags & SIGN_RULE) != 0u {
        return product(scaled(c.sqrt_elements, 0), scaled(c.sqrt_elements, 0));
    }
    return square;
}

// ln(a / b), and 0 where there is nothing to compare.
fn ln_ratio_or_0(a: Scaled, b: Scaled) -> f32 {
    if is_zero(a) || is_zero(b) {
        return 0.0;
    }
    return ln_ratio(a, b);
}

// 1 + σ n²/(2 f) for f above 0.
fn ngn_divisor(rate: f32, square: Scaled, loss: f32) -> Scaled {
    return sum(Scaled(1.0, 0), quotient(times(square, rate), scaled(2.0 * loss, 0)));
}

// A finite, non-zero gradient sets the rate; its norm may be the `first`, and the last norm then 0.
fn set_rate(
    c: GroupConstants,
    measured: ScopeSums,
    square: Scaled,
    norm: Scaled,
    last_norm: Scaled,
    scale_of_sums: i32,
    first: bool,
    s: ptr<function, GroupState>,
    r: ptr<function, RawRecord>,
) {
    let old = scaled((*s).regime_rate, 0);
    let last_loss = (*s).last_loss;
    let old_history = Scaled((*s).history_mantissa, (*s).history_exponent);
    let old_distance = Scaled((*s).distance_mantissa, (*s).distance_exponent);
    let norm_change = ln_ratio_or_0(norm, last_norm);
    let loss = max(measured.loss - select(0.0, c.offset, c.regime == POLYAK), 0.0);
    var history = old_history;
    var farthest = old_distance;
    // 0 asks for the lowest rate that the clamps allow.
    var wanted = Scaled(0.0, 0);
    switch c.regime {
        case ADAGRAD_NORM: {
            if first {
                history = product(scaled(c.offset, 0), scaled(c.offset, 0));
            }
            history = sum(history, direction_square_of(c, square));
            wanted = quotient(scaled(c.scale, 0), root(history));
            (*r).history_term = -0.5 * ln_ratio_or_0(history, old_history);
        }
        case DOG, DOWG: {
            if first {
                farthest = times(sum(Scaled(1.0, 0), root(from_squares(measured.initial_square))), c.first_step);
            }
            if !first && is_finite(measured.direction_square) {
                farthest = larger(farthest, root(scaled(measured.direction_square, 0)));
            }
            var added = direction_square_of(c, square);
            wanted = farthest;
            (*r).distance_term = ln_ratio_or_0(farthest, old_distance);
            if c.regime == DOWG {
                let farthest_square = product(farthest, farthest);
                added = product(farthest_square, added);
                wanted = farthest_square;
                (*r).distance_term *= 2.0;
            }
            history = sum(history, added);
            wanted = quotient(wanted, root(history));
            (*r).history_term = -0.5 * ln_ratio_or_0(history, old_history);
        }
        case POLYAK: {
            if loss > 0.0 {
                wanted = quotient(scaled(loss, 0), times(square, c.scale));
            }
            (*r).norm_term = -2.0 * norm_change;
            (*r).loss_term = ln_ratio_or_0(scaled(loss, 0), scaled(last_loss, 0));
        }
        case NGN: {
            if loss > 0.0 {
                wanted = quotient(scaled(c.scale, 0), ngn_divisor(c.scale, square, loss));
                if last_loss > 0.0 {
                    let between = ngn_divisor(c.scale, square, last_loss);
                    (*r).norm_term = ln_ratio(ngn_divisor(c.scale, product(last_norm, last_norm), last_loss), between);
                    (*r).loss_term = ln_ratio(between, ngn_divisor(c.scale, square, loss));
                }
            }
        }
        default: {
            wanted = secant_rate(c, measured, old, norm, norm_change, scale_of_sums, s, r);
        }
    }
    (*s).last_loss = loss;
    (*s).history_mantissa = history.mantissa;
    (*s).history_exponent = history.exponent;
    (*s).distance_mantissa = farthest.mantissa;
    (*s).distance_exponent = farthest.exponent;

    // A step along the signs as long as that along the gradient.
    if (c.flags & SIGN_RULE) != 0u && (c.regime == POLYAK || c.regime == NGN) {
        wanted = quotient(product(wanted, norm), scaled(c.sqrt_elements, 0));
        (*r).norm_term += norm_change;
    }

    var rate = wanted;
    if !first {
        rate = larger(smaller(rate, times(old, c.max_change)), quotient(old, scaled(c.max_change, 0)));
        if differ(rate, wanted) {
            (*r).flags |= CLAMPED_CHANGE;
        }
    }
    let within = larger(smaller(rate, scaled(c.max_rate, 0)), scaled(RATE_MIN, 0));
    if differ(rate, within) {
        (*r).flags |= CLAMPED_RATE;
    }
    hold_rate(within, s);
    if first {
        return;
    }
    (*s).last_growth = to_float(quotient(within, old));
    let change = ln_ratio(within, old);
    let explained = (*r).norm_term + (*r).curvature_term + (*r).gate_term + (*r).distance_term + (*r).history_term + (*r).loss_term;
    // Also what earlier clamps had taken away, where the formula is of this step alone. What the rounding of the terms leaves is no clamp.
    (*r).clamp_term = change - explained;
    if abs((*r).clamp_term) < 4e-6 * max(1.0, abs(explained)) {
        (*r).clamp_term = 0.0;
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
    return a.mantissa != b.mantissa || a.exponent != b.exponent;
}

// From s = -η u_{t-1} and y = g_t - g_{t-1}: the sums hold u·y, u·u and y·y, of u and y scaled by powers of two.
fn secant_rate(
    c: GroupConstants,
    measured: ScopeSums,
    old: Scaled,
    norm: Scaled,
    norm_change: f32,
    scale_of_sums: i32,
    s: ptr<function, GroupState>,
    r: ptr<function, RawRecord>,
) -> Scaled {
    let u_dot_y = measured.slow_dot;
    let u_square = measured.direction_square;
    let y_square = measured.absolute;
    if !is_finite(u_dot_y) || !is_finite(u_square) || !is_finite(y_square) {
        return Scaled(0.0, 0);
    }
    // u is scaled by the exponent of the momentum's bound, by that of the gradient, or not at all.
    var direction_exponent = scale_of_sums;
    if (c.flags & SIGN_RULE) != 0u {
        direction_exponent = 0;
    } else if c.momentum > 0.0 {
        direction_exponent = (*s).direction_exponent;
    }
    let shift = direction_exponent - scale_of_sums;
    var factor = Scaled(0.0, 0);
    var share_of_norm = 0.0;
    if c.regime == SECANT_LONG {
        if u_dot_y >= 0.0 || u_square == 0.0 {
            return old;
        }
        factor = quotient(scaled(u_square, shift), scaled(u_dot_y, 0));
    } else if c.regime == SECANT_SHORT {
        if u_dot_y >= 0.0 || y_square == 0.0 {
            return old;
        }
        factor = quotient(scaled(u_dot_y, shift), scaled(y_square, 0));
        share_of_norm = -1.0;
    } else {
        if u_square == 0.0 || y_square == 0.0 {
            return old;
        }
        factor = root(quotient(scaled(u_square, 2 * shift), scaled(y_square, 0)));
        share_of_norm = -0.5;
    }
    if is_zero(factor) {
        return old;
    }
    if (c.flags & SIGN_RULE) != 0u {
        factor = quotient(product(factor, norm), scaled(c.sqrt_elements, 0));
        share_of_norm += 1.0;
    }
    (*r).norm_term = share_of_norm * norm_change;
    var rate = product(old, factor);
    if c.regime == ADGD {
        rate = times(rate, 0.5);
        (*r).curvature_term = ln_ratio(rate, old) - (*r).norm_term;
        let most = product(old, root(sum(Scaled(1.0, 0), scaled((*s).last_growth, 0))));
        if less(most, rate) {
            (*r).gate_term = ln_ratio(most, rate);
            rate = most;
        }
    } else {
        (*r).curvature_term = ln_ratio(rate, old) - (*r).norm_term;
    }
    return rate;
}

const FACTOR_FLOOR = 1e-6;

// part / whole of two step counts.
fn share_of(part: u32, whole: u32) -> f32 {
    return f32(part) / f32(whole);
}

// sin²(π z / 2) for z in [0, 1], to a few ulps; WGSL's own sine is only good to 2^-11.
fn half_cosine(z: f32) -> f32 {
    let x = 1.57079633 * z;
    let y = x * x;
    let sine = x * (1.0 - y * (0.166666667 - y * (0.00833333333 - y * (1.98412698e-4 - y * (2.75573192e-6
        - y * (2.50521084e-8 - y * 1.60590438e-10))))));
    return sine * sine;
}

// The factor at step t.
fn schedule_factor(c: GroupConstants, t: u32) -> f32 {
    var factor = 1.0;
    switch c.schedule {
        case SCHEDULE_WARMUP_COSINE: {
            if t < c.schedule_rise {
                factor = share_of(t + 1u, c.schedule_rise);
            } else {
                let left = c.schedule_steps - min(t, c.schedule_steps);
                factor = c.schedule_last
                    + (1.0 - c.schedule_last) * half_cosine(share_of(left, c.schedule_steps - c.schedule_rise));
            }
        }
        case SCHEDULE_INVERSE_SQRT: {
            if t < c.schedule_rise {
                factor = share_of(t + 1u, c.schedule_rise);
            } else {
                factor = to_float(root(quotient(scaled(f32(c.schedule_rise), 0), scaled(f32(t) + 1.0, 0))));
            }
        }
        case SCHEDULE_STEP: {
            let ln_factor = f32(t / c.schedule_rise) * c.schedule_last;
            factor = to_float(exp_fixed(add_float(Fixed(0, 0u), clamp(ln_factor, -20.0, 20.0))));
        }
        case SCHEDULE_ONE_CYCLE: {
            if t < c.schedule_rise {
                factor = c.schedule_first + (1.0 - c.schedule_first) * half_cosine(share_of(t, c.schedule_rise));
            } else {
                let left = c.schedule_steps - min(t, c.schedule_steps);
                factor = c.schedule_last
                    + (1.0 - c.schedule_last) * half_cosine(share_of(left, c.schedule_steps - c.schedule_rise));
            }
        }
        default: {}
    }
    return max(factor, FACTOR_FLOOR);
}
