// Computes the parameters after a step along a direction, with decoupled weight decay.

import package::layout::Update;

// Factors of the rates of the quad's elements.
@if(rates) var<private> rate_factors: vec4<f32>;

fn stepped(update: Update, w: vec4<f32>, direction: vec4<f32>) -> vec4<f32> {
    @if(!rates) return update.shrink * w - update.learning_rate * direction;
    @if(rates) {
        let shrink = vec4<f32>(1.0) - rate_factors * (1.0 - update.shrink);
        return shrink * w - (update.learning_rate * rate_factors) * direction;
    }
}
