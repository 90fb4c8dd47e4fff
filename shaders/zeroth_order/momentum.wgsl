// For LOZO-M: updates M, and puts s ε U - η M in the place of U, so that its product with Vᵀ restores the parameters
// and takes the step.
//
// Reads:  probe, tensors, turned.
// Writes: left (U), momentum (M).
// Grid:   one workgroup of WORKGROUP invocations per tensor; invocation i takes rows i, i + WORKGROUP, …

import package::geometry::WORKGROUP;
import package::zeroth_order::layout::{PerturbedTensor, Probe, LARGEST_PULL, MOST_RANK};

@group(0) @binding(0) var<storage, read> probe: array<Probe>;
@group(0) @binding(1) var<storage, read> tensors: array<PerturbedTensor>;
@group(0) @binding(2) var<storage, read> turned: array<f32>;
@group(0) @binding(3) var<storage, read_write> left: array<f32>;
@group(0) @binding(4) var<storage, read_write> momentum: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn follow_momentum(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tensor = tensors[workgroup.x];
    let rank = tensor.rank;
    let p = probe[0];
    let restore = select(p.epsilon, p.shrink * p.epsilon, tensor.decays != 0u);
    let turns = p.turns * tensor.turns != 0u;
    for (var row = lane; row < tensor.rows; row += WORKGROUP) {
        let first = tensor.left_first + row * rank;
        var old: array<f32, MOST_RANK>;
        for (var k = 0u; k < rank; k++) {
            old[k] = momentum[first + k];
        }
        for (var k = 0u; k < rank; k++) {
            var m = old[k];
            if turns {
                m = 0.0;
                for (var l = 0u; l < rank; l++) {
                    m += old[l] * turned[tensor.turn_first + l * rank + k];
                }
            }
            let u = left[first + k];
            m = p.keep * m + p.share * u;
            momentum[first + k] = m;
            left[first + k] = restore * u - clamp(p.rate * m, -LARGEST_PULL, LARGEST_PULL);
        }
    }
}
