// Tables of schedules: src/schedule.rs. CPU twin: src/cpu/schedule.rs.

import package::layout::{GroupConstants, TABLE_QUADS};

// The factors of all tables, one table after the other. The buffer is a uniform buffer, because devices allow fewer storage buffers.
@group(0) @binding(7) var<uniform> table_factors: array<vec4<f32>, TABLE_QUADS>;

// Interpolates the caller's factors linearly.
fn table_factor(c: GroupConstants, t: u32) -> f32 {
    let last = c.schedule_rise + c.schedule_fall - 1u;
    let at = c.schedule_rise + min(t / c.schedule_steps, c.schedule_fall - 1u);
    let factor = listed_factor(at);
    let next = listed_factor(min(at + 1u, last));
    let done = t % c.schedule_steps;
    // Interpolating from the nearer of the two keeps the digits of a factor near 0.
    if at == last || done <= c.schedule_steps / 2u {
        return factor + (next - factor) * (f32(done) / f32(c.schedule_steps));
    }
    return next - (next - factor) * (f32(c.schedule_steps - done) / f32(c.schedule_steps));
}

fn listed_factor(at: u32) -> f32 {
    return table_factors[at / 4u][at % 4u];
}
