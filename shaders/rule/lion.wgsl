// Lion: src/rule/lion.rs.

import package::layout::Update;
import package::rule::LastStep;

fn direction(update: Update, g: vec4<f32>, last: vec4<f32>, m: vec4<f32>, v: vec4<f32>) -> vec4<f32> {
    return sign(update.momentum * last + (1.0 - update.momentum) * g);
}

// Computes the direction from m_{t-1} = β₂ m_{t-2} + (1-β₂) g_{t-1}, because β₂ times β₁ m_{t-2} + (1-β₁) g_{t-1} has
// the same sign as the direction.
fn last_direction(step: LastStep) -> vec4<f32> {
    let beta_1 = step.numbers.direction_momentum;
    return sign(beta_1 * step.m + (step.numbers.momentum - beta_1) * step.clipped);
}
