//! Count-sketches of steps, and their sums: twin of `shaders/shared/leave_sketch.wgsl`, which has the source, and of
//! `shaders/fold_sketches.wgsl`. Here a sketch is of a stretch of a tensor, and stretches add up as they were halved.

use crate::element::mix;
use crate::layout::SKETCH_BUCKETS;

/// The number of buckets.
const BUCKETS: usize = SKETCH_BUCKETS as usize;

/// Element i of the scope, times a sign that is a hash of i, in bucket i mod 256.
#[derive(Debug, Clone)]
pub(crate) struct Sketch(pub(crate) [f32; BUCKETS]);

impl Sketch {
    pub(crate) const NONE: Sketch = Sketch([0.0; BUCKETS]);

    /// Adds the steps `rate · directions` of the elements from `first` on.
    #[inline(always)]
    pub(crate) fn add_steps(&mut self, first: u32, rate: f32, directions: &[f32]) {
        let mut start = 0;
        while start < directions.len() {
            let element = first.wrapping_add(start as u32);
            let bucket = (element % SKETCH_BUCKETS) as usize;
            // Up to where the buckets come round.
            let run = (BUCKETS - bucket).min(directions.len() - start);
            let steps = &directions[start..start + run];
            for (i, (sum, direction)) in self.0[bucket..bucket + run]
                .iter_mut()
                .zip(steps)
                .enumerate()
            {
                *sum += with_sign(rate * direction, element.wrapping_add(i as u32));
            }
            start += run;
        }
    }

    /// Adds another sketch.
    pub(crate) fn fold(&mut self, other: &Sketch) {
        for (sum, steps) in self.0.iter_mut().zip(&other.0) {
            *sum += steps;
        }
    }
}

#[inline(always)]
fn with_sign(step: f32, element: u32) -> f32 {
    f32::from_bits(step.to_bits() ^ (mix(element) & 0x8000_0000))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of up to 256 elements, wherever they start, each has a bucket of its own; of more, the error is that of random signs.
    #[test]
    fn a_sketch_has_the_length_of_the_step() {
        let direction = |i: u32| (f64::from(i) * 1.7).sin() as f32;
        let square = |x: &f32| f64::from(*x).powi(2);
        for first in [0, 1, 255, 256, 77_777] {
            let steps: Vec<f32> = (0..256).map(direction).collect();
            let mut sketch = Sketch::NONE;
            sketch.add_steps(first, 0.5, &steps[..100]);
            sketch.add_steps(first + 100, 0.5, &steps[100..]);
            let got: f64 = sketch.0.iter().map(square).sum();
            let exact: f64 = 0.25 * steps.iter().map(square).sum::<f64>();
            assert!((got / exact - 1.0).abs() <= 1e-6, "{first}: {got} {exact}");
        }
        let steps: Vec<f32> = (0..100_000).map(|_| 1.0).collect();
        let mut sketch = Sketch::NONE;
        sketch.add_steps(3, 1.0, &steps);
        let got: f64 = sketch.0.iter().map(square).sum();
        // Three deviations of √(2/256).
        assert!((got / 1e5 - 1.0).abs() <= 0.27, "{got}");
    }
}
