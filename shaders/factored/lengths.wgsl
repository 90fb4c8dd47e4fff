// Computes the squared length of each block's direction, before it is limited.
//
// `squares`: second moments are kept for each element. `factored`: second moments are kept for rows and columns.
//
// Reads:  updates, blocks, gradients, second moments, parameters with coupled decay, tensors.
// Writes: squares, the sum of squares of each block. Groups that take no step and tensors without gradients are skipped.
// Grid:   one workgroup of WORKGROUP invocations (a power of two) per block. Invocation i processes quads i,
//         i + WORKGROUP, … of the block.

import package::elements::gradients::load_gradients;
import package::elements::parameters::load_parameters;
@if(factored) import package::factored::tensors::{second_moments, tensors};
import package::geometry::WORKGROUP;
import package::layout::{Block, Update};
import package::reduction::block_squares::leave_squares;
import package::reduction::scaled_squares::{ScaledSquares, add_squares_of};
import package::rule::{admitted, direction_of};
@if(squares) import package::rule::next_squares;
import package::update::step_gradient::step_gradient;

@group(0) @binding(0) var<storage, read> updates: array<Update>;
@group(1) @binding(0) var<storage, read> blocks: array<Block>;
@if(squares) @group(1) @binding(3) var<storage, read> momentum: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn lengths(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let block = blocks[workgroup.x];
    let lead = blocks[block.lead];
    let update = updates[block.group];
    if update.skip != 0u || lead.present == 0u {
        return;
    }
    @if(factored) let tensor = tensors[block.lead];
    @if(factored) let offset = block.first_element - lead.first_element;
    var seen = ScaledSquares();
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        let w = load_parameters(block, quad);
        let g = step_gradient(update, update.unscale * load_gradients(block, quad), w);
        @if(factored) let v = second_moments(tensor, update.epsilon, offset + 4u * quad);
        @if(squares) let v = next_squares(update, momentum[block.state_quad + quad], admitted(g));
        add_squares_of(direction_of(update, g, vec4<f32>(), vec4<f32>(), v), &seen);
    }
    leave_squares(seen, workgroup.x, lane);
}
