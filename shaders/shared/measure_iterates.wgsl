// What pass 1 measures beside the norm in schedule-free training: the gradient against y - z, the way from the sequence that takes the
// steps back to where the gradient was taken. slow_dot = g·(y - z), direction_square = ‖y - z‖². Before the first step z is not there
// yet, and nobody looks at the sums.

alias Memory = vec4<f32>;

fn measure(block: Block, quad: u32, g: vec4<f32>, gradient_scale: f32, momentum_scale: f32, sums: ptr<function, AlignmentSums>) {
    compare_with_momentum(gradient_scale * g, load_parameters(block, quad) - memory[block.state_quad + quad], sums);
}
