// Exchanges parameters and averages. If an average has not started, the parameters are copied to it and stay unchanged. Without
// EXCHANGE only this copy is made.
//
// Reads:  updates (their weight tells whether the average has started); parameters; averages.
// Writes: averages; parameters.
// Grid:   one workgroup of WORKGROUP invocations per block; invocation i takes quads i, i + WORKGROUP, … of the block.

import package::elements::parameters::{load_parameters, store_parameters};
import package::geometry::WORKGROUP;
import package::layout::{Block, Update};
import package::update::average::averages;

override EXCHANGE: bool;

@group(0) @binding(0) var<storage, read> updates: array<Update>;
@group(1) @binding(0) var<storage, read> blocks: array<Block>;

@compute @workgroup_size(WORKGROUP)
fn swap_averages(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let block = blocks[workgroup.x];
    let started = updates[block.group].average_weight > 0.0;
    if started && !EXCHANGE {
        return;
    }
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        let at = block.state_quad + quad;
        let w = load_parameters(block, quad);
        if started {
            store_parameters(block, quad, averages[at], 0u);
        }
        averages[at] = w;
    }
}
