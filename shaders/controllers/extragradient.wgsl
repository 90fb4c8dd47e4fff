// Keeps the parameters and moves them by -η g, or restores them. CPU twin: src/controllers/extragradient.rs.
//
// Reads:  pair; with AHEAD the gradients, the last rates and the groups' controls; without it what was kept.
// Writes: the parameters; with AHEAD what is kept.
// Grid:   any number of workgroups of WORKGROUP invocations, which share the elements of a tensor.

import package::geometry::WORKGROUP;
import package::layout::{ElementPair, GroupConstants};

override AHEAD: bool;

@group(0) @binding(0) var<uniform> pair: ElementPair;
@group(0) @binding(1) var<storage, read_write> moved_parameters: array<f32>;
// Bound for writing, because parameters and gradients may share a buffer.
@group(0) @binding(2) var<storage, read_write> batch_gradients: array<f32>;
@group(0) @binding(3) var<storage, read_write> kept_parameters: array<f32>;
@group(0) @binding(4) var<storage, read> last_rates: array<f32>;
@group(0) @binding(5) var<storage, read> controlled: array<GroupConstants>;

@compute @workgroup_size(WORKGROUP)
fn extragradient(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>) {
    let step = last_rates[pair.group] * controlled[pair.group].controls.gradient_factor;
    let is_frozen = controlled[pair.group].controls.frozen != 0u;
    for (var i = id.x; i < pair.elements; i += workgroups.x * WORKGROUP) {
        let at = pair.first + i;
        if !AHEAD {
            moved_parameters[at] = kept_parameters[i];
            continue;
        }
        let w = moved_parameters[at];
        kept_parameters[i] = w;
        if !is_frozen {
            moved_parameters[at] = w - step * batch_gradients[pair.second + i];
        }
    }
}
