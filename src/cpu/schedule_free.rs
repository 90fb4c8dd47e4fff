//! Schedule-free training. Twin of `shaders/update/schedule_free.wgsl`, operation by operation.
//!
//! The caller's parameters are y = x + 0.15 (z - x). z is kept, and the average x is computed from both.

use crate::layout::Update;
use crate::layout::numbers::{BEYOND, TOWARDS_BASE};

/// Computes y from x and z.
#[inline(always)]
pub(crate) fn between(x: f32, z: f32) -> f32 {
    x + TOWARDS_BASE * (z - x)
}

/// Computes x from y and z in a step, to about one unit in the last place of the largest of the three.
#[inline(always)]
fn beyond(y: f32, z: f32) -> f32 {
    y + BEYOND * (y - z)
}

/// Returns the number that is `units` units in the last place away. The smallest numbers stay unchanged, because their
/// neighbours may have the other sign.
fn units_away(x: f32, units: i32) -> f32 {
    let bits = x.to_bits().cast_signed();
    if bits & 0x7fff_ffff <= 2 {
        return x;
    }
    f32::from_bits(bits.wrapping_add(units).cast_unsigned())
}

/// Computes the x that is evaluated. It is chosen such that y can be recovered from it bit for bit, if there is such an
/// x. There nearly always is, because y was computed from one.
pub(crate) fn average_of(y: f32, z: f32) -> f32 {
    let mut x = beyond(y, z);
    for _ in 0..2 {
        if between(x, z) != y {
            x += 1.176_470_6 * (y - between(x, z));
        }
    }
    let center = x;
    for units in [1, -1, 2, -2] {
        let other = units_away(center, units);
        if between(x, z) != y && between(other, z) == y {
            x = other;
        }
    }
    x
}

/// z of a parameter.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(crate) struct Base(pub(crate) f32);

/// Takes a step: moves z along the direction and the average towards z. Returns the new parameter, which lies between
/// them, and the new z. The function is inlined, so that the caller chooses the vector instructions.
#[inline(always)]
pub(crate) fn move_schedule_free(update: &Update, y: f32, z: f32, direction: f32) -> (f32, f32) {
    let weight = update.average_weight;
    let old = beyond(y, z);
    let next = update.shrink * z - update.learning_rate * direction;
    let x = if weight == 1.0 { next } else { old + weight * (next - old) };
    // There is no rate yet, so nothing moves.
    if weight == 0.0 { (y, z) } else { (between(x, next), next) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns pairs of numbers of every size, drawn by a linear congruential generator.
    fn pairs() -> impl Iterator<Item = (f32, f32)> {
        let mut state = 1u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32) / 8_388_608.0 - 1.0
        };
        let spreads = [1e-6f32, 1e-3, 0.1, 1.0, 3.0, 30.0, 1e3];
        (0..1_400_000).map(move |i| {
            let z = next();
            (z + spreads[i % spreads.len()] * next(), z)
        })
    }

    /// Parameters that a step computed from an average and z are recovered bit for bit after the average was evaluated.
    #[test]
    fn parameters_come_back_from_their_average() {
        for (x, z) in pairs() {
            let y = between(x, z);
            let average = average_of(y, z);
            assert_eq!(between(average, z).to_bits(), y.to_bits(), "{x} {z} {average}");
            let largest = x.abs().max(y.abs()).max(z.abs());
            assert!((average - x).abs() <= 4.0 * f32::EPSILON * largest, "{x} {z} {average}");
        }
    }

    #[test]
    fn parameters_that_are_their_base_are_their_average() {
        for value in [0.0, -0.0, 1e-45, -1e-39, 0.1, 1.0, f32::MAX, -f32::MAX] {
            assert_eq!(average_of(value, value), value);
            assert_eq!(between(value, value), value);
        }
    }
}
