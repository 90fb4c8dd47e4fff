// Draws U, and V in the steps that have a new one.
//
// Reads:  probe.
// Writes: left (U), right (V).
// Grid:   any number of workgroups; invocation i takes quads i, i + invocations, … The first quad of V is 1 and is
//         never drawn.

import package::geometry::WORKGROUP;
import package::zeroth_order::layout::Probe;
import package::zeroth_order::normal::normals;

@group(0) @binding(0) var<storage, read> probe: array<Probe>;
@group(0) @binding(1) var<storage, read_write> left: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> right: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn draw_factors(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>) {
    let invocations = workgroups.x * WORKGROUP;
    for (var quad = id.x; quad < arrayLength(&left); quad += invocations) {
        left[quad] = normals(probe[0].key, quad);
    }
    if probe[0].draws != 0u {
        for (var quad = id.x + 1u; quad < arrayLength(&right); quad += invocations) {
            right[quad] = normals(probe[0].columns_key, quad);
        }
    }
}
