// NAdamW: src/rule/nadamw.rs.

import package::layout::Update;
import package::rule::{LastStep, admitted, preconditioned};

fn direction(update: Update, g: vec4<f32>, last: vec4<f32>, m: vec4<f32>, v: vec4<f32>) -> vec4<f32> {
    let ahead = momentum_ahead(update.momentum, update.first_correction, m, g);
    return preconditioned(ahead, v, 1.0, update.second_correction, update.epsilon);
}

fn last_direction(step: LastStep) -> vec4<f32> {
    let ahead = momentum_ahead(step.numbers.momentum, step.first_correction, step.m, step.clipped);
    return preconditioned(ahead, step.v, 1.0, step.second_correction, step.numbers.epsilon);
}

// Computes β₁ m/(1-β₁ᵏ⁺¹) + (1-β₁) g/(1-β₁ᵏ). With `correction` c = 1/(1-β₁ᵏ), 1-β₁ᵏ⁺¹ is (1-β₁) + β₁/c.
fn momentum_ahead(beta_1: f32, correction: f32, m: vec4<f32>, g: vec4<f32>) -> vec4<f32> {
    let rest = 1.0 - beta_1;
    return (beta_1 / (rest + beta_1 / correction)) * m + (rest * correction) * admitted(g);
}
