//! Schedules. Twin of `shaders/learning_rate/schedule.wgsl` and `table.wgsl`.

use crate::layout::{Fixed, GroupConstants, Scaled, schedule_kinds};
use crate::schedule::Schedule;

/// Returns part / whole of two step counts.
fn share_of(part: u32, whole: u32) -> f32 {
    part as f32 / whole as f32
}

/// Computes sin²(π z / 2) for z in `[0, 1]`, to a few ulps. WGSL's own sine is only accurate to 2^-11.
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

/// Returns the factor at step t. `factors` are those of all tables.
pub fn schedule_factor(c: &GroupConstants, factors: &[f32], t: u32) -> f32 {
    let factor = if c.schedule == schedule_kinds::TABLE {
        table_factor(c, factors, t)
    } else if t < c.schedule_rise {
        risen(c, t)
    } else {
        fallen(c, t)
    };
    factor.max(Schedule::FLOOR)
}

/// Returns the factor during the warm-up.
fn risen(c: &GroupConstants, t: u32) -> f32 {
    if c.schedule == schedule_kinds::ONE_CYCLE {
        return c.schedule_first + (1.0 - c.schedule_first) * half_cosine(share_of(t, c.schedule_rise));
    }
    share_of(t + 1, c.schedule_rise)
}

/// Returns the factor after the warm-up.
fn fallen(c: &GroupConstants, t: u32) -> f32 {
    let left = (c.schedule_steps - t.min(c.schedule_steps)).min(c.schedule_fall);
    let share_left = || share_of(left, c.schedule_fall);
    let above_last = match c.schedule {
        schedule_kinds::COSINE | schedule_kinds::ONE_CYCLE => half_cosine(share_left()),
        schedule_kinds::POLYNOMIAL => power_of_share(left, c.schedule_fall, c.schedule_first),
        schedule_kinds::ONE_MINUS_SQRT => {
            share_left() / (1.0 + share_of(c.schedule_fall - left, c.schedule_fall).sqrt())
        }
        schedule_kinds::RESTARTS => half_cosine(left_of_cycle(t - c.schedule_rise, c.schedule_steps, c.schedule_fall)),
        schedule_kinds::INVERSE_SQRT => {
            return Scaled::new(c.schedule_rise as f32, 0).quotient(Scaled::new(t as f32 + 1.0, 0)).root().to_float();
        }
        schedule_kinds::STEP => return after_falls(c, (t - c.schedule_rise) / c.schedule_steps),
        _ => return 1.0,
    };
    c.schedule_last + (1.0 - c.schedule_last) * above_last
}

/// Computes (part / whole)^power.
fn power_of_share(part: u32, whole: u32, power: f32) -> f32 {
    if power == 1.0 || part == 0 {
        return share_of(part, whole);
    }
    Scaled::new(part as f32, 0).ln_ratio_fixed(Scaled::new(whole as f32, 0)).times(power).exp().to_float()
}

/// Returns the remaining fraction, at step t, of the cycle that contains t. The first cycle has `period` steps, and
/// each later one `growth` times as many as the one before.
fn left_of_cycle(t: u32, period: u32, growth: u32) -> f32 {
    if growth == 1 {
        return share_of(period - t % period, period);
    }
    let (mut since, mut length) = (t, period);
    // The loop runs at most 32 times, because the lengths at least double.
    while since >= length {
        since -= length;
        if length > u32::MAX / growth {
            // The cycle ends after the last step that can be counted.
            return 1.0 - since as f32 / (length as f32 * growth as f32);
        }
        length *= growth;
    }
    share_of(length - since, length)
}

/// Returns the factor after n falls, e^(n ln). ln has two parts. The upper one has 8 bits, so that its products are
/// exact.
fn after_falls(c: &GroupConstants, n: u32) -> f32 {
    let (upper, rest) = (c.schedule_first, c.schedule_last);
    let rough = n as f32 * upper;
    let ln = if rough.abs() > 20.0 {
        Fixed::default().add_float(rough.clamp(-20.0, 20.0))
    } else {
        Fixed::default()
            .add_float(((n >> 16) as f32 * 65536.0) * upper)
            .add_float((n & 0xffff) as f32 * upper)
            .add_float(n as f32 * rest)
    };
    ln.exp().to_float()
}

/// Interpolates the caller's factors linearly.
fn table_factor(c: &GroupConstants, factors: &[f32], t: u32) -> f32 {
    let last = c.schedule_rise + c.schedule_fall - 1;
    let at = c.schedule_rise + (t / c.schedule_steps).min(c.schedule_fall - 1);
    let (factor, next) = (factors[at as usize], factors[(at + 1).min(last) as usize]);
    let done = t % c.schedule_steps;
    // Interpolating from the nearer of the two keeps the digits of a factor near 0.
    if at == last || done <= c.schedule_steps / 2 {
        return factor + (next - factor) * share_of(done, c.schedule_steps);
    }
    next - (next - factor) * share_of(c.schedule_steps - done, c.schedule_steps)
}
