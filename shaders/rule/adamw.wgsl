// AdamW: src/rule/adamw.rs. With β₁ = 0 the feature `momentum` is off, and the gradient takes the place of m.

import package::layout::Update;
import package::rule::{LastStep, admitted, preconditioned};

fn direction(update: Update, g: vec4<f32>, last: vec4<f32>, m: vec4<f32>, v: vec4<f32>) -> vec4<f32> {
    @if(momentum) let first = m;
    @if(!momentum) let first = admitted(g);
    return preconditioned(first, v, update.first_correction, update.second_correction, update.epsilon);
}

fn last_direction(step: LastStep) -> vec4<f32> {
    @if(momentum) let first = step.m;
    @if(!momentum) let first = admitted(step.clipped);
    return preconditioned(first, step.v, step.first_correction, step.second_correction, step.numbers.epsilon);
}
