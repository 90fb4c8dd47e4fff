// The update rule that a kernel is compiled for: one import for each file in rule/, and what rules have in common.
//
// `momentum`: the rule keeps a momentum m. `squares`: the rule keeps a mean of squares v, which lies behind the momentum in its buffer, or
// has the buffer for itself. `largest_squares`: the rule keeps the largest v so far too, behind v.
//
// A file in rule/ has two functions:
//     direction(update, g, last, m, v)    the direction u of a step: from the gradient g, the momentum before (last) and after (m) the step,
//                                         and the new mean of squares v, or the largest so far where that is kept
//     last_direction(step)                the direction of the step before, from what is still in memory, for the secant regimes
// Of a rule that owns passes over matrices, v is the direction that these have made. Of one with factored second moments, v is their product.
// Rules that own passes have no last_direction.

import package::layout::{RuleNumbers, Update, LARGEST_FACTORED, LARGEST_SQUARED};
@if(sgd) import package::rule::sgd::{direction, last_direction};
@if(sgdm) import package::rule::sgdm::{direction, last_direction};
@if(sign_sgd) import package::rule::sign_sgd::{direction, last_direction};
@if(signum) import package::rule::signum::{direction, last_direction};
@if(adamw) import package::rule::adamw::{direction, last_direction};
@if(lion) import package::rule::lion::{direction, last_direction};
@if(nadamw) import package::rule::nadamw::{direction, last_direction};
@if(muon) import package::rule::muon::direction;
@if(amsgrad) import package::rule::amsgrad::{direction, last_direction};
@if(adafactor) import package::rule::adafactor::direction;

// What is known of the last step. The direction is wanted in units of 2^k, where 2^-k is `gradient_scale` for a direction made of gradients,
// `momentum_scale` for one made of momentum, and 1 for signs and for a preconditioned direction.
struct LastStep {
    g: vec4<f32>,        // the gradient
    clipped: vec4<f32>,  // the gradient after the clip
    m: vec4<f32>,
    v: vec4<f32>,
    gradient_scale: f32,
    momentum_scale: f32,
    first_correction: f32,
    second_correction: f32,
    numbers: RuleNumbers,
}

// u, from the gradient and, where the rule has them, the momentum before and after the step and the new mean of squares.
fn direction_of(update: Update, g: vec4<f32>, last: vec4<f32>, m: vec4<f32>, v: vec4<f32>) -> vec4<f32> {
    return direction(update, g, last, m, v);
}

@if(!muon && !adafactor)
fn last_direction_of(step: LastStep) -> vec4<f32> {
    return last_direction(step);
}

// The gradient as the rule takes it.
fn admitted(g: vec4<f32>) -> vec4<f32> {
    @if(adafactor) return clamp(g, vec4<f32>(-LARGEST_FACTORED), vec4<f32>(LARGEST_FACTORED));
    @if(squares && !adafactor) return clamp(g, vec4<f32>(-LARGEST_SQUARED), vec4<f32>(LARGEST_SQUARED));
    @if(!squares && !adafactor) return g;
}

@if(momentum)
fn next_momentum(update: Update, m: vec4<f32>, g: vec4<f32>) -> vec4<f32> {
    return update.momentum_keep * m + update.gradient_share * g;
}

@if(squares)
fn next_squares(update: Update, v: vec4<f32>, g: vec4<f32>) -> vec4<f32> {
    return update.square_keep * v + update.square_share * (g * g);
}

// Where the mean of squares of a quad lies in a buffer of so many quads.
@if(squares)
fn squares_at(quads: u32, at: u32) -> u32 {
    @if(largest_squares) return quads / 3u + at;
    @if(momentum && !largest_squares) return quads / 2u + at;
    @if(!momentum) return at;
}

// The place of the largest v of a quad in such a buffer.
@if(largest_squares)
fn largest_squares_at(quads: u32, at: u32) -> u32 {
    return 2u * (quads / 3u) + at;
}

// m / (√v + ε), with both moments corrected for their start at zero.
@if(squares)
fn preconditioned(m: vec4<f32>, v: vec4<f32>, first_correction: f32, second_correction: f32, epsilon: f32) -> vec4<f32> {
    return (first_correction * m) / (second_correction * sqrt(v) + epsilon);
}
