// For ScheduleFree+: the sum of the gradient's magnitudes, and the gradient against y - z of schedule-free training as in measure/iterates.wgsl.
// Before the group's first step the memory is empty, and only the magnitudes are summed.

import package::layout::Block;
import package::elements::parameters::load_parameters;
import package::measure::alignment::{AlignmentSums, compare_with_momentum};
import package::elements::memories::memory;
import package::tables::states;

fn measure(block: Block, quad: u32, g: vec4<f32>, gradient_scale: f32, momentum_scale: f32, sums: ptr<function, AlignmentSums>) {
    let scaled_gradient = gradient_scale * g;
    (*sums).absolute += abs(scaled_gradient);
    if states[block.group].momentum_started != 0u {
        compare_with_momentum(scaled_gradient, load_parameters(block, quad) - memory[block.state_quad + quad], sums);
    }
}
