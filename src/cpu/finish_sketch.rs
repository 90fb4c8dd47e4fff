//! The last pass, where a regime goes by a sketch: twin of `shaders/finish_sketch.wgsl`.

use crate::cpu::fold_sketches::Sketch;
use crate::cpu::scaled::{Scaled, power_of_two};

/// Invocations of the workgroup.
const WORKGROUP: usize = 64;

/// Adds a step to the way since the window began, or begins with it, and squares the way's length.
pub(crate) fn finish_sketch(way: &mut Sketch, steps: &Sketch, restarted: bool) -> Scaled {
    if restarted {
        *way = Sketch::NONE;
    }
    way.fold(steps);
    // Squares of numbers of any size: scaled by the largest.
    let magnitude = way
        .0
        .iter()
        .fold(0, |most: u32, x| most.max(x.abs().to_bits()));
    // A step that left the range of f32 has led nowhere.
    if magnitude >= f32::INFINITY.to_bits() {
        return Scaled::ZERO;
    }
    let exponent = ((magnitude >> 23) as i32 - 127).clamp(-126, 126);
    let scale = power_of_two(-exponent);
    let mut squares = [0.0; WORKGROUP];
    for stride in way.0.chunks(WORKGROUP) {
        for (square, x) in squares.iter_mut().zip(stride) {
            *square += (scale * x) * (scale * x);
        }
    }
    let mut half = WORKGROUP / 2;
    while half > 0 {
        for lane in 0..half {
            squares[lane] += squares[lane + half];
        }
        half /= 2;
    }
    Scaled::new(squares[0], 2 * exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_is_right_at_any_size_and_begins_anew() {
        for size in [1e-37f32, 1e-20, 1.0, 1e20, 5e37] {
            let mut steps = Sketch::NONE;
            (steps.0[3], steps.0[255]) = (3.0 * size, -4.0 * size);
            let mut way = Sketch::NONE;
            // What was before does not count.
            way.0[9] = f32::NAN;
            let square = finish_sketch(&mut way, &steps, true);
            let expected = Scaled::new(5.0 * size, 0);
            assert!(square.root().ln_ratio(expected).abs() <= 1e-6, "{size}");
        }
        let mut way = Sketch::NONE;
        let mut steps = Sketch::NONE;
        steps.0[0] = 2.0;
        finish_sketch(&mut way, &steps, false);
        assert_eq!(finish_sketch(&mut way, &steps, false), Scaled::new(16.0, 0));
        steps.0[1] = f32::INFINITY;
        assert!(finish_sketch(&mut way, &steps, false).is_zero());
    }
}
