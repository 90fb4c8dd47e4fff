// Adafactor: src/rule/adafactor.rs. The limit of the direction's length is a factor of the learning rate
// (factored/limit.wgsl).

import package::layout::Update;
import package::rule::admitted;

fn direction(update: Update, g: vec4<f32>, last: vec4<f32>, m: vec4<f32>, v: vec4<f32>) -> vec4<f32> {
    return admitted(g) / sqrt(max(v, vec4<f32>(update.epsilon * update.epsilon)));
}
