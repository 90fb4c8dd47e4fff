// Stochastic gradient descent: src/rule/sgd.rs.

import package::layout::Update;
import package::rule::LastStep;

fn direction(update: Update, g: vec4<f32>, last: vec4<f32>, m: vec4<f32>, v: vec4<f32>) -> vec4<f32> {
    return g;
}

fn last_direction(step: LastStep) -> vec4<f32> {
    return step.gradient_scale * step.clipped;
}
