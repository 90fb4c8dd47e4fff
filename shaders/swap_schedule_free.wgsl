// Replaces the parameters by the average of schedule-free training, or restores the parameters. The base iterates stay unchanged.
// Before the first rate nothing changes, because the parameters are their own average.
//
// Reads:  updates (their weight tells whether the average has started); parameters; base.
// Writes: parameters.
// Grid:   one workgroup of WORKGROUP invocations per block; invocation i takes quads i, i + WORKGROUP, … of the block.

import package::elements::parameters::{load_parameters, store_parameters};
import package::geometry::WORKGROUP;
import package::layout::{Block, Update};
import package::update::schedule_free::{average_of, base, between};

// True if the parameters are restored.
override BACK: bool;

@group(0) @binding(0) var<storage, read> updates: array<Update>;
@group(1) @binding(0) var<storage, read> blocks: array<Block>;

@compute @workgroup_size(WORKGROUP)
fn swap_averages(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let block = blocks[workgroup.x];
    if updates[block.group].average_weight == 0.0 {
        return;
    }
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        let z = base[block.state_quad + quad];
        let w = load_parameters(block, quad);
        if BACK {
            store_parameters(block, quad, between(w, z), 0u);
        } else {
            store_parameters(block, quad, average_of(w, z), 0u);
        }
    }
}
