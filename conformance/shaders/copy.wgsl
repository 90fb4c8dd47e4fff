// The benchmark's copy a = b: what the device moves with one stream in and one out, in the geometry of the optimizer.
//
// Reads:  b.
// Writes: a, of the same length.
// Grid:   one workgroup of WORKGROUP invocations per block of WORKGROUP · QUADS quads; invocation i takes quads i, i + WORKGROUP, …
//         of the block. The last block may be short.

override WORKGROUP: u32;
override QUADS: u32;

@group(0) @binding(0) var<storage, read_write> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn copy(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = workgroup.x * WORKGROUP * QUADS;
    let end = min(first + WORKGROUP * QUADS, arrayLength(&a));
    for (var quad = first + lane; quad < end; quad += WORKGROUP) {
        a[quad] = b[quad];
    }
}
