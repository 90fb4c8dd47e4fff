// Adds up rows of partial sums in a fixed order: invocation i takes rows i, i + WORKGROUP, …, then a tree.

import package::controllers::lanes::add_up_lanes;
import package::geometry::WORKGROUP;

@group(0) @binding(0) var<storage, read> rows: array<vec2<f32>>;

// Returns the total to invocation 0. The result in other invocations is undefined.
fn add_up_rows(lane: u32, first: u32, count: u32) -> vec2<f32> {
    var own = vec2<f32>();
    for (var i = lane; i < count; i += WORKGROUP) {
        own += rows[first + i];
    }
    return add_up_lanes(lane, own);
}
