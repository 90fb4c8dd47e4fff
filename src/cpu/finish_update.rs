//! Pass 5. Twin of `shaders/finish_update.wgsl`.

use crate::cpu::finish_reduction::{add_squares, as_a_workgroup};
use crate::layout::{
    GroupState, NO_TENSOR, RawTensorRecord, Scaled, Squares, StepSums, StepUnit, Update, record_flags,
};

/// Adds the rows of a tensor or a group in the order of a workgroup. Adding thousands of blocks one after the other
/// would lose digits.
fn sums_of(rows: &[StepSums]) -> StepSums {
    as_a_workgroup(rows, StepSums::default(), add_step_sums)
}

/// Adds both sums of squares.
pub(crate) fn add_step_sums(a: &StepSums, b: &StepSums) -> StepSums {
    StepSums {
        parameters: add_squares(a.parameters, b.parameters),
        step: add_squares(a.step, b.step),
        // The host keeps this once for the whole pass.
        overflow_key: 0,
    }
}

fn norm_of(squares: Squares) -> f32 {
    if squares.sum.is_finite() { Scaled::of_squares(squares).root().to_float() } else { squares.sum }
}

/// Sums the partials of pass 4. `ring` holds the records of `tensors` tensors, step after step.
pub(crate) fn finish_update(
    units: &[StepUnit],
    partials: &[StepSums],
    updates: &[Update],
    states: &mut [GroupState],
    ring: &mut [RawTensorRecord],
) {
    let tensors = units.iter().filter(|unit| unit.tensor != NO_TENSOR).count();
    for (column, unit) in units.iter().enumerate() {
        let sums = sums_of(&partials[unit.first_row as usize..][..unit.rows as usize]);
        let skipped = updates[unit.group as usize].skip != 0;
        let state = &mut states[unit.group as usize];
        if unit.tensor == NO_TENSOR {
            if !skipped {
                let known = sums.parameters.sum.is_finite();
                state.parameter_norm = if known { Scaled::of_squares(sums.parameters).root() } else { Scaled::ZERO };
            }
            continue;
        }
        // Pass 3 has already counted the step and moved on in the ring.
        let ring_steps = ring.len() / tensors;
        let slot = state.record_slot as usize - 1;
        let (step, borrow) = state.steps_low.overflowing_sub(1);
        let mut record = RawTensorRecord {
            step_low: step,
            step_high: state.steps_high.wrapping_sub(u32::from(borrow)),
            tensor: unit.tensor,
            flags: record_flags::WRITTEN,
            learning_rate: state.learning_rate,
            ..RawTensorRecord::default()
        };
        if skipped {
            // Nothing moved, so the norm is that of the previous step.
            record.flags |= record_flags::SKIPPED;
            let before = ring[(slot + ring_steps - 1) % ring_steps * tensors + column];
            if before.flags & record_flags::WRITTEN == 0 {
                record.flags |= record_flags::WAITING;
            } else {
                record.flags |= before.flags & record_flags::WAITING;
                record.parameter_norm = before.parameter_norm;
            }
        } else {
            record.parameter_norm = norm_of(sums.parameters);
            record.step_norm = norm_of(sums.step);
        }
        ring[slot * tensors + column] = record;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2^26 parameters are 16,384 blocks. When a row of this size is added to a large sum, it is rounded the same way
    /// many times.
    #[test]
    fn many_rows_lose_no_digits() {
        let square = |sum| Squares { sum, exponent: 0 };
        let row = StepSums { parameters: square(1365.3), step: square(1.1e-7), overflow_key: 0 };
        let rows = vec![row; 16_384];
        let sums = sums_of(&rows);
        for (got, each) in [(sums.parameters, 1365.3f32), (sums.step, 1.1e-7)] {
            let expected = 16_384.0 * f64::from(each);
            let off = (got.value() / expected - 1.0).abs();
            assert!(off <= 256.0 * f64::from(f32::EPSILON) / 2.0, "{off:e}");
        }
    }
}
