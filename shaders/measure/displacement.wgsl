// For Mechanic: the gradient and the parameters against the displacement D = w_0 - w, which the memory holds. slow_dot = g·D, fast_dot = w·D,
// direction_square = ‖w‖².

import package::layout::Block;
import package::elements::parameters::load_parameters;
import package::measure::alignment::AlignmentSums;
import package::elements::memories::memory;

fn measure(block: Block, quad: u32, g: vec4<f32>, gradient_scale: f32, momentum_scale: f32, sums: ptr<function, AlignmentSums>) {
    let w = load_parameters(block, quad);
    let displacement = memory[block.state_quad + quad];
    (*sums).slow_dot += (gradient_scale * g) * displacement;
    (*sums).fast_dot += w * displacement;
    (*sums).direction_squares += w * w;
}
