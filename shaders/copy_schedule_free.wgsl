// Copies the average of schedule-free training, which is computed and not stored. Before the first rate the parameters are their own
// average.
//
// Reads:  updates (their weight tells whether the average has started); parameters; base.
// Writes: copied, in quads as the base.
// Grid:   one workgroup of WORKGROUP invocations per block; invocation i takes quads i, i + WORKGROUP, … of the block.

import package::elements::parameters::load_parameters;
import package::geometry::WORKGROUP;
import package::layout::{Block, Update};
import package::update::schedule_free::{average_of, base};

@group(0) @binding(0) var<storage, read> updates: array<Update>;
@group(1) @binding(0) var<storage, read> blocks: array<Block>;
@group(2) @binding(1) var<storage, read_write> copied: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn swap_averages(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let block = blocks[workgroup.x];
    let started = updates[block.group].average_weight > 0.0;
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        let at = block.state_quad + quad;
        let w = load_parameters(block, quad);
        if started {
            copied[at] = average_of(w, base[at]);
        } else {
            copied[at] = w;
        }
    }
}
