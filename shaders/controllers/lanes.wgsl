// Adds up one pair of sums of each invocation of a workgroup, in a tree. WORKGROUP is a power of two.

import package::geometry::WORKGROUP;

var<workgroup> lanes: array<vec2<f32>, WORKGROUP>;

// Returns the total to invocation 0. The result in other invocations is undefined.
fn add_up_lanes(lane: u32, own: vec2<f32>) -> vec2<f32> {
    lanes[lane] = own;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            lanes[lane] += lanes[lane + half];
        }
    }
    return lanes[lane];
}
