// Schedules, a factor on any regime's rate that depends on the number of steps: src/schedule.rs. CPU twin: src/cpu/schedule.rs.

import package::layout::{
    Fixed, GroupConstants, GroupState, RawRecord, Scaled, FIRST, SCHEDULE_CONSTANT, SCHEDULE_INVERSE_SQRT, SCHEDULE_ONE_CYCLE,
    SCHEDULE_STEP, SCHEDULE_TERM, SCHEDULE_WARMUP_COSINE, FACTOR_FLOOR,
};
import package::learning_rate::steps_taken::steps_taken;
import package::scaled::{add_float, exp_fixed, ln_ratio, quotient, root, scaled, to_float};

// The schedule's factor, at the step that follows those that were taken.
fn follow_schedule(c: GroupConstants, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    if c.schedule == SCHEDULE_CONSTANT {
        return;
    }
    let factor = schedule_factor(c, steps_taken(*s));
    let ln_factor = ln_ratio(scaled(factor, 0), Scaled(1.0, 0));
    if ((*r).flags & FIRST) == 0u {
        (*r).terms[SCHEDULE_TERM] = ln_factor - (*s).ln_schedule;
    }
    (*s).ln_schedule = ln_factor;
    (*s).learning_rate *= factor;
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
