// For LOZO-M at a new V: computes V_oldᵀ V_new / n of each matrix. The buffer of V still holds the old V.
//
// Reads:  probe, tensors, right (V).
// Writes: turned.
// Grid:   one workgroup of WORKGROUP invocations per tensor; invocation i takes columns i, i + WORKGROUP, …, then a
//         tree.

import package::geometry::WORKGROUP;
import package::zeroth_order::lanes::add_up_lanes;
import package::zeroth_order::layout::{PerturbedTensor, Probe};
import package::zeroth_order::normal::normals;

@group(0) @binding(0) var<storage, read> probe: array<Probe>;
@group(0) @binding(1) var<storage, read> tensors: array<PerturbedTensor>;
@group(0) @binding(2) var<storage, read> right: array<f32>;
@group(0) @binding(3) var<storage, read_write> turned: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn turn_columns(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tensor = tensors[workgroup.x];
    let products = tensor.turns * probe[0].turns * tensor.rank * tensor.rank;
    for (var product = 0u; product < products; product++) {
        let of_old = product / tensor.rank;
        let of_new = product % tensor.rank;
        var sum_of_lane = 0.0;
        for (var column = lane; column < tensor.columns; column += WORKGROUP) {
            let first = tensor.right_first + column * tensor.rank;
            let at = first + of_new;
            sum_of_lane += right[first + of_old] * normals(probe[0].columns_key, at / 4u)[at % 4u];
        }
        let total = add_up_lanes(lane, sum_of_lane);
        if lane == 0u {
            turned[tensor.turn_first + product] = total / f32(tensor.columns);
        }
    }
}
