// The average of the parameters, for the passes that keep it. Four bytes per parameter, in quads as the momentum is.

import package::layout::Update;

@group(2) @binding(0) var<storage, read_write> averages: array<vec4<f32>>;

// w̄ ← w̄ + weight (w - w̄). In this form a parameter that rests leaves its average at rest, and a small weight has no rounding of
// 1 - weight to pay for; a weight of 1 is not computed at all, so that the average is w, bit for bit. 0: there is no average yet.
fn average(update: Update, at: u32, w: vec4<f32>) {
    if update.average_weight == 1.0 {
        averages[at] = w;
    } else if update.average_weight > 0.0 {
        let old = averages[at];
        averages[at] = old + update.average_weight * (w - old);
    }
}
