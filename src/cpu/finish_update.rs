//! Pass 5: twin of `shaders/finish_update.wgsl`.

use crate::cpu::finish_reduction::add_squares;
use crate::cpu::learning_rate::from_squares;
use crate::cpu::scaled::Scaled;
use crate::layout::{
    GroupState, NO_TENSOR, RawTensorRecord, Squares, StepSums, StepUnit, Update, record_flags,
};

/// The rows of a tensor or a group, added up.
fn sums_of(rows: &[StepSums]) -> StepSums {
    rows.iter().fold(StepSums::default(), add_step_sums)
}

/// Both sums of squares.
pub(crate) fn add_step_sums(a: StepSums, b: &StepSums) -> StepSums {
    StepSums {
        parameters: add_squares(a.parameters, b.parameters),
        step: add_squares(a.step, b.step),
    }
}

fn norm_of(squares: Squares) -> f32 {
    if squares.sum.is_finite() {
        from_squares(squares).root().to_float()
    } else {
        squares.sum
    }
}

/// Adds up what pass 4 left in `partials`. `ring` holds the records of `tensors` tensors, step after step.
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
                let norm = if sums.parameters.sum.is_finite() {
                    from_squares(sums.parameters).root()
                } else {
                    Scaled::new(0.0, 0)
                };
                state.parameter_mantissa = norm.mantissa;
                state.parameter_exponent = norm.exponent;
            }
            continue;
        }
        // Pass 3 has counted the step, and moved on in the ring.
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
            // Nothing moved: the norm is that of the step before.
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
