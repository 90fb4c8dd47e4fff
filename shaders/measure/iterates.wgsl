// The alignment in schedule-free training: the gradient against y - z, where z is the sequence that takes the steps and y the point of the
// gradient. slow_dot = g·(y - z), direction_square = ‖y - z‖². The memory holds z. Before the first step it is empty, and the sums are not
// used.

import package::layout::Block;
import package::elements::parameters::load_parameters;
import package::measure::alignment::{AlignmentSums, compare_with_momentum};
import package::elements::memories::memory;

fn measure(block: Block, quad: u32, g: vec4<f32>, gradient_scale: f32, momentum_scale: f32, sums: ptr<function, AlignmentSums>) {
    compare_with_momentum(gradient_scale * g, load_parameters(block, quad) - memory[block.state_quad + quad], sums);
}
