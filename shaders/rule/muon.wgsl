// Muon: src/rule/muon.rs. The passes in orthogonalize/ compute the direction.

import package::layout::Update;

fn direction(update: Update, g: vec4<f32>, last: vec4<f32>, m: vec4<f32>, v: vec4<f32>) -> vec4<f32> {
    return v;
}
