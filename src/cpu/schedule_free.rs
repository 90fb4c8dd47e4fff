//! Schedule-free training. Twin of `shaders/update/schedule_free.wgsl`, operation by operation.
//!
//! The caller's parameters are y = x + 0.15 (z - x). z is kept, and the average x is computed from both.

use crate::layout::numbers::{BEYOND, LARGEST_F32, TOWARDS_BASE};
use crate::layout::{NO_ELEMENT, Update};

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

/// Takes a step: moves z along the direction and the average towards z, and sets the new parameters between them.
/// `before` are the old parameters. An element keeps y and z if either would be out of range. Returns the index of the
/// first such element, or [`NO_ELEMENT`]. The function is inlined, so that the caller chooses the vector instructions.
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
    // There is no rate yet, so nothing moves.
    if weight == 0.0 {
        params.copy_from_slice(before);
        return NO_ELEMENT;
    }
    let step = Step { update, largest, weight };
    let (rows, last) = params.as_chunks_mut::<ROW>();
    let (before_rows, last_before) = before.as_chunks::<ROW>();
    let (directions_rows, last_directions) = directions.as_chunks::<ROW>();
    let (base_rows, last_base) = base.as_chunks_mut::<ROW>();
    let mut first = NO_ELEMENT;
    let (mut start, mut note) = (0, |at: Option<usize>, start: usize| {
        first = first.min(at.map_or(NO_ELEMENT, |at| (start + at) as u32));
    });
    for (((w, y), u), z) in rows.iter_mut().zip(before_rows).zip(directions_rows).zip(base_rows) {
        note(step.of_row(w, y, u, z), start);
        start += ROW;
    }
    for (((w, &y), &u), z) in last.iter_mut().zip(last_before).zip(last_directions).zip(last_base) {
        note(step.of_row(std::array::from_mut(w), &[y], &[u], std::array::from_mut(z)), start);
        start += 1;
    }
    first
}

/// Elements that are updated together. The compiler turns a row into vectors wherever the function is inlined, which it did not do with a loop
/// over slices.
const ROW: usize = 16;

/// Numbers of a step that are the same for all elements.
#[derive(Clone, Copy)]
struct Step<'a> {
    update: &'a Update,
    largest: f32,
    weight: f32,
}

impl Step<'_> {
    /// Moves a row from the old parameters `y`. Returns the index of the first element that keeps y and z.
    #[inline(always)]
    fn of_row<const LANES: usize>(
        self,
        w: &mut [f32; LANES],
        y: &[f32; LANES],
        u: &[f32; LANES],
        z: &mut [f32; LANES],
    ) -> Option<usize> {
        let (mut next, mut moved, mut fits) = ([0.0; LANES], [0.0; LANES], [true; LANES]);
        for j in 0..LANES {
            let old = beyond(y[j], z[j]);
            next[j] = self.update.shrink * z[j] - self.update.learning_rate * u[j];
            let x = if self.weight == 1.0 { next[j] } else { old + self.weight * (next[j] - old) };
            moved[j] = between(x, next[j]);
            fits[j] = (moved[j].abs() <= self.largest) & (next[j].abs() <= LARGEST_F32);
        }
        for j in 0..LANES {
            w[j] = if fits[j] { moved[j] } else { y[j] };
            z[j] = if fits[j] { next[j] } else { z[j] };
        }
        if fits == [true; LANES] { None } else { fits.iter().position(|&fits| !fits) }
    }
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
