// After pass 4, where a scope has many blocks: adds up the sketches that they left, STRIP rows to the first of them.
//
// Reads:  strips, updates (their skip flag).
// Writes: sketches, the first row of each strip.
// Grid:   one workgroup of WORKGROUP invocations per strip; invocation i takes buckets i, i + WORKGROUP, …. The order is fixed.

override WORKGROUP: u32;

@group(0) @binding(0) var<storage, read> strips: array<SketchRows>;
@group(0) @binding(1) var<storage, read> updates: array<Update>;
@group(0) @binding(2) var<storage, read_write> sketches: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn fold_sketches(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let strip = strips[workgroup.x];
    if updates[strip.group].skip != 0u {
        return;
    }
    for (var bucket = lane; bucket < SKETCH_BUCKETS; bucket += WORKGROUP) {
        var steps = 0.0;
        for (var row = 0u; row < strip.rows; row++) {
            steps += sketches[(strip.first + row) * SKETCH_BUCKETS + bucket];
        }
        sketches[strip.first * SKETCH_BUCKETS + bucket] = steps;
    }
}
