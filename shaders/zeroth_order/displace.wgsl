// Moves the parameters along z, in place: to w + εz, to w - εz, and back with the step. It is one kernel for all three,
// so that z has the same bits each time.
//
// Reads:  probe, motion, tensors, blocks; left (U) and right (V), where z has factors.
// Writes: parameters.
// Grid:   one workgroup of WORKGROUP invocations per block; invocation i takes quads i, i + WORKGROUP, … of the block.
//
// `scalars`: a block does not start at, or does not end on, a multiple of four elements. Its elements are loaded and
//     stored one by one.
// `low_rank`: tensors with columns have z = U Vᵀ. The others have a separate random number for each element.

import package::geometry::WORKGROUP;
import package::zeroth_order::layout::{Motion, PerturbedBlock, PerturbedTensor, Probe};
import package::zeroth_order::normal::normals;

@group(0) @binding(0) var<storage, read> probe: array<Probe>;
@group(0) @binding(1) var<storage, read> tensors: array<PerturbedTensor>;
@if(low_rank) @group(0) @binding(2) var<storage, read> left: array<f32>;
@if(low_rank) @group(0) @binding(3) var<storage, read> right: array<f32>;
@group(1) @binding(0) var<storage, read> blocks: array<PerturbedBlock>;
@if(!scalars) @group(1) @binding(1) var<storage, read_write> parameters: array<vec4<f32>>;
@if(scalars) @group(1) @binding(1) var<storage, read_write> parameters: array<f32>;
@group(2) @binding(0) var<storage, read> motion: array<Motion>;

@if(low_rank)
fn products(tensor: PerturbedTensor, first: u32, count: u32) -> vec4<f32> {
    var row = first / tensor.columns;
    var column = first % tensor.columns;
    var z = vec4<f32>();
    for (var i = 0u; i < count; i++) {
        let u = tensor.left_first + row * tensor.rank;
        let v = tensor.right_first + column * tensor.rank;
        var sum = left[u] * right[v];
        for (var k = 1u; k < tensor.rank; k++) {
            sum += left[u + k] * right[v + k];
        }
        // FXC cannot compile a loop that writes a vector at an index (X3511).
        z = select(z, vec4<f32>(sum), vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(i));
        column += 1u;
        if column == tensor.columns {
            column = 0u;
            row += 1u;
        }
    }
    return z;
}

fn direction(tensor: PerturbedTensor, first: u32, count: u32) -> vec4<f32> {
    @if(low_rank) {
        if tensor.columns != 0u {
            return products(tensor, first, count);
        }
    }
    return normals(probe[0].key, tensor.first_quad + first / 4u);
}

@compute @workgroup_size(WORKGROUP)
fn displace(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let block = blocks[workgroup.x];
    let tensor = tensors[block.tensor];
    let shrink = select(1.0, motion[0].shrink, tensor.decays != 0u);
    let along = shrink * motion[0].restore + motion[0].pull;
    for (var at = 4u * lane; at < block.elements; at += 4u * WORKGROUP) {
        @if(!scalars) {
            let z = direction(tensor, block.first + at, 4u);
            let quad = (block.params_start + at) / 4u;
            parameters[quad] = shrink * parameters[quad] + along * z;
        }
        @if(scalars) {
            let count = min(4u, block.elements - at);
            let z = direction(tensor, block.first + at, count);
            let first = block.params_start + at;
            for (var i = 0u; i < count; i++) {
                parameters[first + i] = shrink * parameters[first + i] + along * z[i];
            }
        }
    }
}
