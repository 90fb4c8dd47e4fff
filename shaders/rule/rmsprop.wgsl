// RMSprop: src/rule/rmsprop.rs.

import package::layout::Update;
import package::rule::{LastStep, admitted, preconditioned};

fn direction(update: Update, g: vec4<f32>, last: vec4<f32>, m: vec4<f32>, v: vec4<f32>) -> vec4<f32> {
    return preconditioned(admitted(g), v, 1.0, 1.0, update.epsilon);
}

fn last_direction(step: LastStep) -> vec4<f32> {
    return preconditioned(admitted(step.clipped), step.v, 1.0, 1.0, step.numbers.epsilon);
}
