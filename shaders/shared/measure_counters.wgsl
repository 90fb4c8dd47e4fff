// What pass 1 measures beside the norm where the memory is the counters of signs.

alias Memory = u32;

fn measure(block: Block, quad: u32, g: vec4<f32>, gradient_scale: f32, momentum_scale: f32, sums: ptr<function, AlignmentSums>) {
    compare_with_counters(gradient_scale * g, memory[block.state_quad + quad], sums);
}
