// What pass 1 measures beside the norm where the regime goes by the mean magnitude: absolute = ‖g‖₁.

alias Memory = u32;

fn measure(block: Block, quad: u32, g: vec4<f32>, gradient_scale: f32, momentum_scale: f32, sums: ptr<function, AlignmentSums>) {
    (*sums).absolute += abs(gradient_scale * g);
}
