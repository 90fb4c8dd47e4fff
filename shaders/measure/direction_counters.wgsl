// The alignment with the direction counters.

import package::layout::Block;
import package::measure::alignment::{AlignmentSums, compare_with_counters};
import package::elements::memories::memory;

fn measure(block: Block, quad: u32, g: vec4<f32>, gradient_scale: f32, momentum_scale: f32, sums: ptr<function, AlignmentSums>) {
    compare_with_counters(gradient_scale * g, memory[block.state_quad + quad], sums);
}
