// The squared distance from the first parameters: direction_square = ‖w - w_0‖². The memory holds w_0. Before the first step it is empty, and
// the sum is not used.

import package::layout::Block;
import package::elements::parameters::load_parameters;
import package::measure::alignment::AlignmentSums;
import package::elements::memories::memory;

fn measure(block: Block, quad: u32, g: vec4<f32>, gradient_scale: f32, momentum_scale: f32, sums: ptr<function, AlignmentSums>) {
    let way = load_parameters(block, quad) - memory[block.state_quad + quad];
    (*sums).direction_squares += way * way;
}
