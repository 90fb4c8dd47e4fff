// Average of the parameters, for the passes that keep it. It takes 4 bytes per parameter, in quads like the momentum.

import package::layout::Update;

@group(2) @binding(0) var<storage, read_write> averages: array<vec4<f32>>;

// Computes w̄ ← w̄ + weight (w - w̄). In this form the average of a constant parameter stays constant, and a small
// weight causes no rounding of 1 - weight. With a weight of 1 nothing is computed, so that the average is a bit-exact
// copy of w. A weight of 0 means that there is no average yet.
fn average(update: Update, at: u32, w: vec4<f32>) {
    if update.average_weight == 1.0 {
        averages[at] = w;
    } else if update.average_weight > 0.0 {
        let old = averages[at];
        averages[at] = old + update.average_weight * (w - old);
    }
}
