//! Schedules: twin of `shaders/learning_rate/schedule.wgsl`.

use crate::layout::{Fixed, GroupConstants, Scaled, schedule_kinds};
use crate::schedule::Schedule;

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
