// What pass 1 measures beside the norm where the memory is the momentum, or where there is none.

alias Memory = u32;

fn measure(block: Block, quad: u32, g: vec4<f32>, gradient_scale: f32, momentum_scale: f32, sums: ptr<function, AlignmentSums>) {
    let m = momentum_scale * momentum[block.state_quad + quad];
    compare_with_momentum(gradient_scale * g, m, sums);
}
