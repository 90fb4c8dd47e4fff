// The alignment with the momentum of the rule.

import package::layout::Block;
import package::measure::alignment::{AlignmentSums, compare_with_momentum};
import package::reduce_gradient::momentum;

alias Memory = u32;

fn measure(block: Block, quad: u32, g: vec4<f32>, gradient_scale: f32, momentum_scale: f32, sums: ptr<function, AlignmentSums>) {
    let m = momentum_scale * momentum[block.state_quad + quad];
    compare_with_momentum(gradient_scale * g, m, sums);
}
