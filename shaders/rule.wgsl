// The update rule that a kernel is compiled for: one import for each file in rule/, and the code that rules share.
//
// `momentum`: the rule keeps a momentum m. `squares`: the rule keeps a mean of squares v, which follows the momentum in its buffer, or
// is alone in the buffer. `largest_squares`: the rule also keeps the largest v so far, after v.
//
// A file in rule/ has two functions:
//     direction(update, g, last, m, v)    the direction u of a step: from the gradient g, the momentum before (last) and after (m) the step,
//                                         and the new mean of squares v, or the largest so far where that is kept
//     last_direction(step)                the direction of the step before, from what is still in memory, for the secant regimes
// For a rule with its own passes over matrices, v is the direction that these have computed. For a rule with factored second moments, v is
// their product. Rules with their own passes have no last_direction.

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

// Data of the last step. Its direction is returned in units of 2^k, where 2^-k is `gradient_scale` for a direction computed from gradients,
// `momentum_scale` for one computed from momentum, and 1 for signs and for a preconditioned direction.
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

// Returns u, from the gradient and, if the rule has them, the momentum before and after the step and the new mean of squares.
fn direction_of(update: Update, g: vec4<f32>, last: vec4<f32>, m: vec4<f32>, v: vec4<f32>) -> vec4<f32> {
    return direction(update, g, last, m, v);
}

@if(!muon && !adafactor)
fn last_direction_of(step: LastStep) -> vec4<f32> {
    return last_direction(step);
}

// Returns the gradient in the form that the rule accepts.
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

// Returns the index of a quad's mean of squares in a buffer with this number of quads.
@if(squares)
fn squares_at(quads: u32, at: u32) -> u32 {
    @if(largest_squares) return quads / 3u + at;
    @if(momentum && !largest_squares) return quads / 2u + at;
    @if(!momentum) return at;
}

// Returns the index of a quad's largest v in a buffer with this number of quads.
@if(largest_squares)
fn largest_squares_at(quads: u32, at: u32) -> u32 {
    return 2u * (quads / 3u) + at;
}

// Returns m / (√v + ε), with both moments corrected for their start at zero.
@if(squares)
fn preconditioned(m: vec4<f32>, v: vec4<f32>, first_correction: f32, second_correction: f32, epsilon: f32) -> vec4<f32> {
    return (first_correction * m) / (second_correction * sqrt(v) + epsilon);
}
