// For regimes that measure no alignment.

import package::layout::Block;
import package::measure::alignment::AlignmentSums;

fn measure(block: Block, quad: u32, g: vec4<f32>, gradient_scale: f32, momentum_scale: f32, sums: ptr<function, AlignmentSums>) {}
