// A step of weight decay and learning-rate factor down the gradient of a validation loss: the sign of an inner product decides whether they
// are raised or lowered.
//
// Reads:  rows (of partial sums), constants.
// Writes: groups (their controls), told.
// Grid:   one workgroup of WORKGROUP invocations per group.
//
// CPU twin: `BiLevelConstants::follow` in src/controllers/bi_level.rs.

import package::controllers::rows::add_up_rows;
import package::geometry::WORKGROUP;
import package::layout::{BiLevelConstants, BiLevelState, GroupConstants, INFINITY_BITS, MAGNITUDE_BITS};

@group(0) @binding(1) var<storage, read> constants: array<BiLevelConstants>;
@group(0) @binding(2) var<storage, read_write> groups: array<GroupConstants>;
@group(0) @binding(3) var<storage, read_write> told: array<BiLevelState>;

// Returns the value times the first factor if the slope is below 0, and times the second factor if it is above 0. A slope that is 0 or not
// finite changes nothing, and a value of 0 stays 0.
fn stepped(value: f32, slope: f32, bounds: vec2<f32>, factors: vec2<f32>) -> f32 {
    if value == 0.0 || slope == 0.0 || (bitcast<u32>(slope) & MAGNITUDE_BITS) >= INFINITY_BITS {
        return value;
    }
    return clamp(value * select(factors.x, factors.y, slope > 0.0), bounds.x, bounds.y);
}

@compute @workgroup_size(WORKGROUP)
fn bi_level(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let c = constants[workgroup.x];
    let total = add_up_rows(lane, c.first_row, c.rows);
    if lane != 0u {
        return;
    }
    var decay = groups[workgroup.x].controls.weight_decay;
    var factor = groups[workgroup.x].controls.learning_rate_factor;
    // More decay moves the parameters towards 0, and a larger rate moves them along the step.
    decay = stepped(decay, total.x, vec2<f32>(c.decay_least, c.decay_most), vec2<f32>(c.decay_down, c.decay_up));
    factor = stepped(factor, total.y, vec2<f32>(c.factor_least, c.factor_most), vec2<f32>(c.factor_up, c.factor_down));
    groups[workgroup.x].controls.weight_decay = decay;
    groups[workgroup.x].controls.learning_rate_factor = factor;
    told[workgroup.x] = BiLevelState(decay, factor, total.x, total.y);
}
