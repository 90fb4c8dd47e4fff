// Schedule-free training (src/averaging.rs): the parameters are y = x + 0.15 (z - x), where gradients are taken. z is
// kept, in quads like the momentum, and the average x is computed from both. CPU twin: src/cpu/schedule_free.rs,
// operation by operation.

import package::layout::{Update, TOWARDS_BASE, BEYOND};
import package::update::moved::Moved;
import package::update::stepped::stepped;

@group(2) @binding(0) var<storage, read_write> base: array<vec4<f32>>;

// Computes y from x and z.
fn between(x: vec4<f32>, z: vec4<f32>) -> vec4<f32> {
    return x + TOWARDS_BASE * (z - x);
}

// Computes x from y and z in a step, to about one unit in the last place of the largest of the three.
fn beyond(y: vec4<f32>, z: vec4<f32>) -> vec4<f32> {
    return y + BEYOND * (y - z);
}

// Returns the number that is `units` units in the last place away. The smallest numbers stay unchanged, because their
// neighbours may have the other sign.
fn units_away(x: vec4<f32>, units: i32) -> vec4<f32> {
    let bits = bitcast<vec4<i32>>(x);
    let small = (bits & vec4<i32>(0x7fffffff)) <= vec4<i32>(2);
    return bitcast<vec4<f32>>(select(bits + vec4<i32>(units), bits, small));
}

// Computes the x that is evaluated. It is chosen such that y can be recovered from it bit for bit, if there is such an
// x. There nearly always is, because y was computed from one.
fn average_of(y: vec4<f32>, z: vec4<f32>) -> vec4<f32> {
    var x = beyond(y, z);
    for (var i = 0; i < 2; i++) {
        let closer = x + 1.1764706 * (y - between(x, z));
        x = select(closer, x, between(x, z) == y);
    }
    let center = x;
    for (var i = 0; i < 4; i++) {
        let units = (1 + i / 2) * (1 - 2 * (i & 1));
        let other = units_away(center, units);
        x = select(x, other, (between(x, z) != y) & (between(other, z) == y));
    }
    return x;
}

// Takes a step: z moves along the direction, the average moves towards z, and the parameters are between them.
fn moved_schedule_free(update: Update, old: vec4<f32>, w: vec4<f32>, direction: vec4<f32>) -> Moved {
    // There is no rate yet, so nothing moves.
    if update.average_weight == 0.0 {
        return Moved(w, old);
    }
    var x = beyond(w, old);
    let z = stepped(update, old, direction);
    x = select(x + update.average_weight * (z - x), z, update.average_weight == 1.0);
    return Moved(between(x, z), z);
}
