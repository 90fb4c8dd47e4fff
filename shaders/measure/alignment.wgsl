// The sums of the alignment, four lanes at a time: the gradient against the momentum, or against the counters.

import package::measure::counters::{counters_of, last_signs_of};
import package::reduction::scaled_squares::across;
import package::reduction::totals::Totals;

struct AlignmentSums {
    absolute: vec4<f32>,
    slow_dot: vec4<f32>,
    fast_dot: vec4<f32>,
    direction_squares: vec4<f32>,
}

// g and m are scaled.
fn compare_with_momentum(g: vec4<f32>, m: vec4<f32>, sums: ptr<function, AlignmentSums>) {
    (*sums).slow_dot += g * m;
    (*sums).direction_squares += m * m;
}

// g is scaled.
fn compare_with_counters(g: vec4<f32>, word: u32, sums: ptr<function, AlignmentSums>) {
    let q = counters_of(word);
    (*sums).slow_dot += g * q;
    (*sums).direction_squares += q * q;
    (*sums).fast_dot += g * last_signs_of(word);
    (*sums).absolute += abs(g);
}

fn add_alignment(sums: AlignmentSums, t: ptr<function, Totals>) {
    (*t).absolute = across(sums.absolute);
    (*t).slow_dot = across(sums.slow_dot);
    (*t).fast_dot = across(sums.fast_dot);
    (*t).direction_square = across(sums.direction_squares);
}
