//! Schedule-free training: twin of `shaders/update/schedule_free.wgsl`, operation by operation.
//!
//! The caller's parameters are y = x + 0.15 (z - x), z is kept, and the average x follows from both.

use crate::layout::numbers::{BEYOND, LARGEST_F32, TOWARDS_BASE};
use crate::layout::{NO_ELEMENT, Update};

/// y
#[inline(always)]
pub(crate) fn between(x: f32, z: f32) -> f32 {
    x + TOWARDS_BASE * (z - x)
}

/// x, as a step recovers it: to about one unit in the last place of the largest of the three.
#[inline(always)]
fn beyond(y: f32, z: f32) -> f32 {
    y + BEYOND * (y - z)
}

/// The next number so many units in the last place away; the smallest stay, whose neighbours may be on the other side of zero.
fn units_away(x: f32, units: i32) -> f32 {
    let bits = x.to_bits().cast_signed();
    if bits & 0x7fff_ffff <= 2 {
        return x;
    }
    f32::from_bits(bits.wrapping_add(units).cast_unsigned())
}

/// x, as it is evaluated: close by, and such that y comes of it, bit for bit, if there is such an x. There nearly always is, for y was
/// made from one.
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

/// A step: z moves along the direction, the average towards z, and the new parameters are between them. `before` are the parameters
/// as they were. An element of which y or z would be out of range keeps both; returns the index of the first, [`NO_ELEMENT`] for none.
/// Inlined, so that the caller chooses the vector instructions.
#[inline(always)]
pub(crate) fn move_schedule_free(
    update: &Update,
    largest: f32,
    params: &mut [f32],
    before: &[f32],
    directions: &[f32],
    base: &mut [f32],
) -> u32 {
    if update.first != 0 {
        base.copy_from_slice(before);
    }
    let weight = update.average_weight;
    // No rate yet: nothing moves.
    if weight == 0.0 {
        params.copy_from_slice(before);
        return NO_ELEMENT;
    }
    let (mut index, mut first) = (0, NO_ELEMENT);
    let elements = params.iter_mut().zip(before).zip(directions).zip(base);
    for (((w, &y), &u), z) in elements {
        let old = beyond(y, *z);
        let next = update.shrink * *z - update.learning_rate * u;
        let x = if weight == 1.0 { next } else { old + weight * (next - old) };
        let moved = between(x, next);
        let fits = (moved.abs() <= largest) & (next.abs() <= LARGEST_F32);
        *w = if fits { moved } else { y };
        *z = if fits { next } else { *z };
        first = first.min(if fits { NO_ELEMENT } else { index });
        index += 1;
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of every size beside each other, drawn by a linear congruential generator.
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

    /// What a step made of an average and z comes back from them, bit for bit, after the average was evaluated.
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
