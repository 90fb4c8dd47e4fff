// The secant: the change y = g_t - g_{t-1} of the gradient against the direction u_{t-1} of the last step. slow_dot = u·y,
// direction_square = u·u, absolute = y·y. The memory holds the last gradient. `look`: fast_dot = u·g_{t-1} is measured as well.

import package::layout::Block;
import package::measure::alignment::AlignmentSums;
import package::elements::memories::memory;
@if(!bits8) import package::elements::memories::momentum;
@if(bits8 && momentum) import package::elements::state::decoded_momentum;
@if(bits8 && squares) import package::elements::state::decoded_squares;
import package::rule::{LastStep, last_direction_of};
@if(squares && !largest_squares && !bits8) import package::rule::squares_at;
@if(largest_squares) import package::rule::largest_squares_at;
import package::tables::{groups, states};

fn measure(block: Block, quad: u32, g: vec4<f32>, gradient_scale: f32, momentum_scale: f32, sums: ptr<function, AlignmentSums>) {
    let at = block.state_quad + quad;
    let last = memory[at];
    let y = gradient_scale * g - gradient_scale * last;
    var step = LastStep();
    step.g = last;
    step.clipped = states[block.group].last_clip * last;
    @if(momentum && !bits8) step.m = momentum[at];
    @if(momentum && bits8) step.m = decoded_momentum(at);
    @if(largest_squares) step.v = momentum[largest_squares_at(arrayLength(&momentum), at)];
    @if(squares && bits8) step.v = decoded_squares(at);
    @if(squares && !largest_squares && !bits8) step.v = momentum[squares_at(arrayLength(&momentum), at)];
    step.gradient_scale = gradient_scale;
    step.momentum_scale = momentum_scale;
    step.first_correction = states[block.group].first_correction;
    step.second_correction = states[block.group].second_correction;
    step.numbers = groups[block.group].rule;
    let u = last_direction_of(step);
    (*sums).slow_dot += u * y;
    (*sums).direction_squares += u * u;
    (*sums).absolute += y * y;
    @if(look) { (*sums).fast_dot += u * (gradient_scale * last); }
}
