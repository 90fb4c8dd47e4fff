// Computes the factor that brings the root mean square of each tensor's direction within its limit.
//
// Reads:  updates, tiles, blocks, squares.
// Writes: tensors, except for groups that take no step and tensors without gradients.
// Grid:   workgroups of 64 invocations, one for each tensor.

import package::factored::tiles::{number_of_tiles, tile_at};
import package::layout::{Block, FactoredTensor, Update};
import package::reduction::tensor_norm::{LEAVES, norm_of_blocks};
import package::scaled::{less, quotient, scaled, times, to_float};

@group(0) @binding(0) var<storage, read> updates: array<Update>;
@group(0) @binding(2) var<storage, read> blocks: array<Block>;
@group(1) @binding(1) var<storage, read_write> tensors: array<FactoredTensor>;

@compute @workgroup_size(LEAVES)
fn limit(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    for (var i = workgroup.x; i < number_of_tiles(); i += workgroups.x) {
        let lead = tile_at(i).matrix;
        let block = blocks[lead];
        let t = tensors[lead];
        let norm = norm_of_blocks(lead, t.blocks, lane);
        let is_idle = updates[block.group].skip != 0u || block.present == 0u;
        if lane == 0u && !is_idle {
            let allowed = times(scaled(t.limit, 0), sqrt(f32(t.elements)));
            let factor = to_float(quotient(allowed, norm));
            tensors[lead].factor = select(1.0, factor, less(allowed, norm));
        }
    }
}
