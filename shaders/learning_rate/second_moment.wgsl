// The bias corrections of rules with a mean of squares: src/rule/adamw.rs. CPU twin: src/cpu/count_steps.rs.

import package::layout::{GroupConstants, GroupState, Update, LN_2_HIGH, LN_2_LOW};
import package::learning_rate::steps_taken::steps_moved;
import package::scaled::power_of_two;
@if(square_fall) import package::scaled::{exp_fixed, ln_fixed, scaled, times_fixed, to_float};

fn follow_moments(c: GroupConstants, s: ptr<function, GroupState>, u: ptr<function, Update>) {
    if c.rule.epsilon <= 0.0 {
        return;
    }
    let corrections = bias_corrections(c, steps_moved(*s));
    (*s).first_correction = corrections.x;
    (*s).second_correction = corrections.y;
    @if(!square_fall) let shares = vec2<f32>(c.rule.square_keep, c.rule.square_share);
    @if(square_fall) let shares = square_shares(c, steps_moved(*s));
    (*u).square_keep = shares.x;
    (*u).square_share = shares.y;
    (*u).first_correction = corrections.x;
    (*u).second_correction = corrections.y;
    (*u).epsilon = c.rule.epsilon;
}

// Returns the weights of the old v and of g² in v: those of the rule, or with k^-c for g².
@if(square_fall)
fn square_shares(c: GroupConstants, taken: u32) -> vec2<f32> {
    if c.rule.square_fall == 0.0 {
        return vec2<f32>(c.rule.square_keep, c.rule.square_share);
    }
    let k = scaled(f32(select(taken + 1u, 0xffffffffu, taken == 0xffffffffu)), 0);
    let share = to_float(exp_fixed(times_fixed(ln_fixed(k), -c.rule.square_fall)));
    return vec2<f32>(1.0 - share, share);
}

// Returns 1/(1 - β₁ᵏ) and 1/√(1 - β₂ᵏ) of AdamW, which correct moments that began at zero.
fn bias_corrections(c: GroupConstants, taken: u32) -> vec2<f32> {
    let k = select(taken + 1u, 0xffffffffu, taken == 0xffffffffu);
    return vec2<f32>(1.0 / one_less_power(c.rule.first_decay, k), 1.0 / sqrt(one_less_power(c.rule.second_decay, k)));
}

// Computes 1 - βᵏ with decay = -ln β, to about two ulps even if βᵏ is close to 1. With k ln β = -(h ln 2 + r) it is (1 - 2^-h) + 2^-h (1 - e^-r).
fn one_less_power(decay: f32, k: u32) -> f32 {
    // Above 2^24 k is rounded, as the product is in any case.
    let x = f32(k) * decay;
    // The error is less than half a unit in the last place.
    if x > 18.0 {
        return 1.0;
    }
    let halvings = round(x * 1.44269504);
    let r = (x - halvings * LN_2_HIGH) - halvings * LN_2_LOW;
    let tail = r * r * (0.5 - r * (0.166666667 - r * (0.0416666667 - r * (0.00833333333
        - r * (0.00138888889 - r * 0.000198412698)))));
    let power = power_of_two(-i32(halvings));
    return (1.0 - power) + power * (r - tail);
}
