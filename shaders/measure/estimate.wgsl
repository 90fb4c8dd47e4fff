// For Prodigy: slow_dot = g·(w_0 - w), absolute = Σ|s|. The memory holds the first parameters w_0, followed by s. Before the group's first
// step it is empty, and the sums are not used.

import package::layout::Block;
import package::elements::parameters::load_parameters;
import package::measure::alignment::AlignmentSums;
import package::elements::memories::memory;

fn measure(block: Block, quad: u32, g: vec4<f32>, gradient_scale: f32, momentum_scale: f32, sums: ptr<function, AlignmentSums>) {
    let at = block.state_quad + quad;
    (*sums).slow_dot += (gradient_scale * g) * (memory[at] - load_parameters(block, quad));
    (*sums).absolute += abs(gradient_scale * memory[arrayLength(&memory) / 2u + at]);
}
