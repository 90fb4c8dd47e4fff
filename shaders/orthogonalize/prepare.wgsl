// First of Muon's passes, after pass 3: computes the matrix to be orthogonalized from gradient and momentum. Pass 4
// updates the momentum.
//
// Reads:  updates, blocks, gradients, momentum, parameters with coupled decay.
// Writes: directions, and squares, the sum of squares of each block. Groups that take no step and tensors without
//         gradients are skipped.
// Grid:   one workgroup of WORKGROUP invocations (a power of two) per block. Invocation i processes quads i,
//         i + WORKGROUP, … of the block.

import package::elements::gradients::load_gradients;
import package::elements::parameters::load_parameters;
import package::geometry::WORKGROUP;
import package::layout::{Block, Update};
import package::reduction::block_squares::leave_squares;
import package::reduction::scaled_squares::{ScaledSquares, add_squares_of};
import package::rule::{admitted, next_momentum};
import package::update::step_gradient::step_gradient;

@group(0) @binding(0) var<storage, read> updates: array<Update>;
@group(1) @binding(0) var<storage, read> blocks: array<Block>;
@group(1) @binding(3) var<storage, read> momentum: array<vec4<f32>>;
@group(1) @binding(6) var<storage, read_write> directions: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn prepare(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let block = blocks[workgroup.x];
    let update = updates[block.group];
    if update.skip != 0u || blocks[block.lead].present == 0u {
        return;
    }
    var seen = ScaledSquares();
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        let w = load_parameters(block, quad);
        let g = step_gradient(update, update.unscale * load_gradients(block, quad), w);
        let at = block.state_quad + quad;
        let m = next_momentum(update, momentum[at], admitted(g));
        let x = update.momentum * m + (1.0 - update.momentum) * g;
        directions[at] = x;
        add_squares_of(x, &seen);
    }
    leave_squares(seen, workgroup.x, lane);
}
