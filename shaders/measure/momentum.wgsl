// The alignment with the momentum of the rule. `bits8`: the momentum is kept in 8 bits.

import package::layout::Block;
import package::measure::alignment::{AlignmentSums, compare_with_momentum};
@if(!bits8) import package::elements::memories::momentum;
@if(bits8) import package::elements::state::decoded_momentum;

fn measure(block: Block, quad: u32, g: vec4<f32>, gradient_scale: f32, momentum_scale: f32, sums: ptr<function, AlignmentSums>) {
    @if(!bits8) let m = momentum_scale * momentum[block.state_quad + quad];
    @if(bits8) let m = momentum_scale * decoded_momentum(block.state_quad + quad);
    compare_with_momentum(gradient_scale * g, m, sums);
}
