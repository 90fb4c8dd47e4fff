// Σ w² of each block before the first step that is taken, for the first rate.
//
// Reads:  states, blocks, parameters.
// Writes: squares_of_blocks.
// Grid:   one workgroup of WORKGROUP invocations per block; invocation i takes elements i, i + WORKGROUP, …, then a
//         tree.

import package::geometry::WORKGROUP;
import package::layout::GroupState;
import package::zeroth_order::lanes::add_up_lanes;
import package::zeroth_order::layout::PerturbedBlock;

@group(0) @binding(0) var<storage, read> states: array<GroupState>;
@group(0) @binding(1) var<storage, read_write> squares_of_blocks: array<f32>;
@group(1) @binding(0) var<storage, read> blocks: array<PerturbedBlock>;
@group(1) @binding(1) var<storage, read> parameters: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn measure_length(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if states[0].started != 0u {
        return;
    }
    let block = blocks[workgroup.x];
    var square = 0.0;
    for (var at = lane; at < block.elements; at += WORKGROUP) {
        let w = parameters[block.params_start + at];
        square += w * w;
    }
    let total = add_up_lanes(lane, square);
    if lane == 0u {
        squares_of_blocks[block.number] = total;
    }
}
