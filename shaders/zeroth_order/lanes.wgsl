// Adds up one number of each invocation of a workgroup, in a tree. WORKGROUP is a power of two.

import package::geometry::WORKGROUP;

var<workgroup> numbers_of_lanes: array<f32, WORKGROUP>;

// Returns the sum to invocation 0.
fn add_up_lanes(lane: u32, x: f32) -> f32 {
    // After this barrier all invocations have read the previous sum.
    workgroupBarrier();
    numbers_of_lanes[lane] = x;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            numbers_of_lanes[lane] += numbers_of_lanes[lane + half];
        }
    }
    return numbers_of_lanes[0];
}
