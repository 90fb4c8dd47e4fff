// Schedules, a factor on any regime's rate that depends on the number of steps: src/schedule.rs. CPU twin: src/cpu/schedule.rs.

import package::layout::{
    Fixed, GroupConstants, GroupState, RawRecord, Scaled, FIRST, SCHEDULE_COSINE, SCHEDULE_INVERSE_SQRT,
    SCHEDULE_ONE_CYCLE, SCHEDULE_ONE_MINUS_SQRT, SCHEDULE_POLYNOMIAL, SCHEDULE_RESTARTS, SCHEDULE_STEP, SCHEDULE_TABLE, SCHEDULE_TERM, FACTOR_FLOOR,
};
import package::learning_rate::steps_taken::steps_taken;
import package::scaled::{add_float, exp_fixed, ln_ratio, ln_ratio_fixed, quotient, root, scaled, times_fixed, to_float};
@if(table) import package::learning_rate::table::table_factor;

// A factor and its logarithm.
struct Scheduled {
    factor: f32,
    ln_factor: f32,
}

// Returns the factor at the next step after those that were taken.
fn schedule_at(c: GroupConstants, s: GroupState) -> Scheduled {
    let factor = schedule_factor(c, steps_taken(s));
    return Scheduled(factor, ln_ratio(scaled(factor, 0), Scaled(1.0, 0)));
}

fn follow_schedule(scheduled: Scheduled, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    if ((*r).flags & FIRST) == 0u {
        (*r).terms[SCHEDULE_TERM] = scheduled.ln_factor - (*s).ln_schedule;
    }
    (*s).ln_schedule = scheduled.ln_factor;
    (*s).learning_rate *= scheduled.factor;
}

// Returns the factor at step t.
fn schedule_factor(c: GroupConstants, t: u32) -> f32 {
    @if(table) if c.schedule == SCHEDULE_TABLE {
        return max(table_factor(c, t), FACTOR_FLOOR);
    }
    var factor = 1.0;
    if t < c.schedule_rise {
        factor = risen(c, t);
    } else {
        factor = fallen(c, t);
    }
    return max(factor, FACTOR_FLOOR);
}

// Returns the factor during the warm-up.
fn risen(c: GroupConstants, t: u32) -> f32 {
    if c.schedule == SCHEDULE_ONE_CYCLE {
        return c.schedule_first + (1.0 - c.schedule_first) * half_cosine(share_of(t, c.schedule_rise));
    }
    return share_of(t + 1u, c.schedule_rise);
}

// Returns the factor after the warm-up.
fn fallen(c: GroupConstants, t: u32) -> f32 {
    let left = min(c.schedule_steps - min(t, c.schedule_steps), c.schedule_fall);
    var above_last = 0.0;
    switch c.schedule {
        case SCHEDULE_COSINE, SCHEDULE_ONE_CYCLE: {
            above_last = half_cosine(share_of(left, c.schedule_fall));
        }
        case SCHEDULE_POLYNOMIAL: {
            above_last = power_of_share(left, c.schedule_fall, c.schedule_first);
        }
        case SCHEDULE_ONE_MINUS_SQRT: {
            above_last = share_of(left, c.schedule_fall) / (1.0 + sqrt(share_of(c.schedule_fall - left, c.schedule_fall)));
        }
        case SCHEDULE_RESTARTS: {
            above_last = half_cosine(left_of_cycle(t - c.schedule_rise, c.schedule_steps, c.schedule_fall));
        }
        case SCHEDULE_INVERSE_SQRT: {
            return to_float(root(quotient(scaled(f32(c.schedule_rise), 0), scaled(f32(t) + 1.0, 0))));
        }
        case SCHEDULE_STEP: {
            return after_falls(c, (t - c.schedule_rise) / c.schedule_steps);
        }
        default: {
            return 1.0;
        }
    }
    return c.schedule_last + (1.0 - c.schedule_last) * above_last;
}

// Returns part / whole of two step counts.
fn share_of(part: u32, whole: u32) -> f32 {
    return f32(part) / f32(whole);
}

// Computes sin²(π z / 2) for z in [0, 1], to a few ulps. WGSL's own sine is only accurate to 2^-11.
fn half_cosine(z: f32) -> f32 {
    let x = 1.57079633 * z;
    let y = x * x;
    let sine = x * (1.0 - y * (0.166666667 - y * (0.00833333333 - y * (1.98412698e-4 - y * (2.75573192e-6
        - y * (2.50521084e-8 - y * 1.60590438e-10))))));
    return sine * sine;
}

// Computes (part / whole)^power.
fn power_of_share(part: u32, whole: u32, power: f32) -> f32 {
    if power == 1.0 || part == 0u {
        return share_of(part, whole);
    }
    return to_float(exp_fixed(times_fixed(ln_ratio_fixed(scaled(f32(part), 0), scaled(f32(whole), 0)), power)));
}

// Returns the remaining fraction, at step t, of the cycle that contains t. The first cycle has `period` steps, and each later one `growth`
// times as many as the one before.
fn left_of_cycle(t: u32, period: u32, growth: u32) -> f32 {
    if growth == 1u {
        return share_of(period - t % period, period);
    }
    var since = t;
    var length = period;
    // 32 cycles are enough, because the lengths at least double.
    for (var cycle = 0; cycle < 32; cycle++) {
        if since < length {
            break;
        }
        since -= length;
        if length > 0xffffffffu / growth {
            // The cycle ends after the last step that can be counted.
            return 1.0 - f32(since) / (f32(length) * f32(growth));
        }
        length *= growth;
    }
    return share_of(length - since, length);
}

// Returns the factor after n falls, e^(n ln). ln has two parts. The upper one has 8 bits, so that its products are exact.
fn after_falls(c: GroupConstants, n: u32) -> f32 {
    let upper = c.schedule_first;
    let rest = c.schedule_last;
    let rough = f32(n) * upper;
    var ln = add_float(Fixed(0, 0u), clamp(rough, -20.0, 20.0));
    if abs(rough) <= 20.0 {
        let high = add_float(Fixed(0, 0u), (f32(n >> 16u) * 65536.0) * upper);
        ln = add_float(add_float(high, f32(n & 0xffffu) * upper), f32(n) * rest);
    }
    return to_float(exp_fixed(ln));
}
