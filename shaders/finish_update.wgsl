// Pass 5, on request: adds up the sums that pass 4 measured of the step, tensor by tensor for the record, and group by group for the trust
// ratio of the next step.
//
// Reads:  units, step_partials, updates.
// Writes: states (the parameters' norm), tensor_records (a ring beside that of the records), and in the ring of records which element was
//         out of range.
// Grid:   one workgroup of WORKGROUP invocations (a power of two) per unit; invocation i takes partials i, i + WORKGROUP, …, then a
//         tree. The order is fixed, so that the same partials give the same bits.
// Assumes: a unit has fewer than 65,535 * WORKGROUP blocks.

import package::geometry::WORKGROUP;
import package::layout::{
    GroupState, RawTensorRecord, Scaled, Squares, StepSums, StepUnit, Update, INFINITY_BITS, NO_TENSOR, SKIPPED, WAITING, WRITTEN,
};
import package::reduction::step_sums::{INFINITE_EXPONENT, NAN_EXPONENT, add_step_sums};
import package::reduction::totals::no_squares;
import package::scaled::{root, scaled, to_float};

// Number of steps in the ring of records.
override RING_STEPS: u32;

@group(0) @binding(0) var<storage, read> units: array<StepUnit>;
@group(0) @binding(1) var<storage, read> step_partials: array<StepSums>;
@group(0) @binding(2) var<storage, read> updates: array<Update>;
@group(0) @binding(3) var<storage, read_write> states: array<GroupState>;
@group(0) @binding(4) var<storage, read_write> tensor_records: array<RawTensorRecord>;
@group(0) @binding(5) var<storage, read_write> record_words: array<atomic<u32>>;

var<workgroup> step_tree: array<StepSums, WORKGROUP>;

const NAN_BITS = 0x7fc00000u;

fn norm_of(squares: Squares) -> f32 {
    if squares.exponent >= INFINITE_EXPONENT {
        return bitcast<f32>(select(INFINITY_BITS, NAN_BITS, squares.exponent >= NAN_EXPONENT));
    }
    return to_float(root(scaled(squares.sum, 2 * squares.exponent)));
}

@compute @workgroup_size(WORKGROUP)
fn finish_update(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let unit = units[workgroup.x];
    var sums = StepSums(no_squares(), no_squares(), 0u);
    for (var i = lane; i < unit.rows; i += WORKGROUP) {
        sums = add_step_sums(sums, step_partials[unit.first_row + i]);
    }
    step_tree[lane] = sums;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            step_tree[lane] = add_step_sums(step_tree[lane], step_tree[lane + half]);
        }
    }
    if lane != 0u {
        return;
    }
    sums = step_tree[0];
    let skipped = updates[unit.group].skip != 0u;
    if sums.overflow_key != 0u && !skipped {
        atomicMax(&record_words[updates[unit.group].overflow_word], sums.overflow_key);
    }
    if unit.tensor == NO_TENSOR {
        if !skipped {
            var norm = Scaled(0.0, 0);
            if sums.parameters.exponent < INFINITE_EXPONENT {
                norm = root(scaled(sums.parameters.sum, 2 * sums.parameters.exponent));
            }
            states[unit.group].parameter_norm = norm;
        }
        return;
    }
    // Pass 3 has already counted the step and advanced the slot in the ring.
    let tensors = arrayLength(&tensor_records) / RING_STEPS;
    let slot = states[unit.group].record_slot - 1u;
    let step = states[unit.group].steps_low - 1u;
    var r = RawTensorRecord();
    r.step_low = step;
    r.step_high = states[unit.group].steps_high - select(0u, 1u, step == 0xffffffffu);
    r.tensor = unit.tensor;
    r.flags = WRITTEN;
    r.learning_rate = states[unit.group].learning_rate;
    if skipped {
        // Nothing moved, so the norm is that of the previous step.
        r.flags |= SKIPPED;
        let before = tensor_records[((slot + RING_STEPS - 1u) % RING_STEPS) * tensors + workgroup.x];
        if (before.flags & WRITTEN) == 0u {
            r.flags |= WAITING;
        } else {
            r.flags |= before.flags & WAITING;
            r.parameter_norm = before.parameter_norm;
        }
    } else {
        r.parameter_norm = norm_of(sums.parameters);
        r.step_norm = norm_of(sums.step);
    }
    tensor_records[slot * tensors + workgroup.x] = r;
}
