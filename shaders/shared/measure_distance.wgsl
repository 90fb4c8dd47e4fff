// What pass 1 measures beside the norm where the memory is the first parameters: direction_square = ‖w - w_0‖². Before the first step
// the memory is empty, and nobody looks at the sum.

alias Memory = vec4<f32>;

fn measure(block: Block, quad: u32, g: vec4<f32>, gradient_scale: f32, momentum_scale: f32, sums: ptr<function, AlignmentSums>) {
    let way = load_parameters(block, quad) - memory[block.state_quad + quad];
    (*sums).direction_squares += way * way;
}
