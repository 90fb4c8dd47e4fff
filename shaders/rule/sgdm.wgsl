// SGD with momentum: src/rule/sgdm.rs. The feature `nesterov` selects Nesterov momentum.

import package::layout::Update;
import package::rule::LastStep;

fn direction(update: Update, g: vec4<f32>, last: vec4<f32>, m: vec4<f32>, v: vec4<f32>) -> vec4<f32> {
    @if(nesterov) return g + update.momentum * m;
    @if(!nesterov) return m;
}

fn last_direction(step: LastStep) -> vec4<f32> {
    let m = step.momentum_scale * step.m;
    @if(nesterov) return step.momentum_scale * step.clipped + step.numbers.momentum * m;
    @if(!nesterov) return m;
}
