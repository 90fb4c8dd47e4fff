// Replaces the gradients of a batch by g - g̃ + μ, or keeps gradients as μ. CPU twin:
// src/controllers/variance_reduction.rs.
//
// Reads:  pair; with KEEP the gradients; without it the gradients at the snapshot, and μ.
// Writes: with KEEP μ; without it the gradients.
// Grid:   any number of workgroups of WORKGROUP invocations, which share the elements of a tensor.

import package::geometry::WORKGROUP;
import package::layout::ElementPair;

override KEEP: bool;

@group(0) @binding(0) var<uniform> pair: ElementPair;
@group(0) @binding(1) var<storage, read_write> batch_gradients: array<f32>;
// Bound for writing, because the gradients may share a buffer.
@group(0) @binding(2) var<storage, read_write> snapshot_gradients: array<f32>;
@group(0) @binding(3) var<storage, read_write> mean_gradients: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn variance_reduction(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>) {
    for (var i = id.x; i < pair.elements; i += workgroups.x * WORKGROUP) {
        let at = pair.first + i;
        if KEEP {
            mean_gradients[i] = batch_gradients[at];
        } else {
            batch_gradients[at] = (batch_gradients[at] - snapshot_gradients[pair.second + i]) + mean_gradients[i];
        }
    }
}
