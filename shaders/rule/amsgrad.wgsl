// AMSGrad: src/rule/amsgrad.rs. v is the largest mean of squares so far.

import package::layout::Update;
import package::rule::{LastStep, preconditioned};

fn direction(update: Update, g: vec4<f32>, last: vec4<f32>, m: vec4<f32>, v: vec4<f32>) -> vec4<f32> {
    return preconditioned(m, v, update.first_correction, update.second_correction, update.epsilon);
}

fn last_direction(step: LastStep) -> vec4<f32> {
    return preconditioned(step.m, step.v, step.first_correction, step.second_correction, step.numbers.epsilon);
}
