// The product of two matrices, a tile of 64 × 64 in a workgroup of 64 invocations: each makes 8 × 8 elements of it, as four squares of 4 × 4 that
// lie 32 apart. Per step of the inner dimension an invocation reads 16 numbers from workgroup memory for 64 multiplications. The order of addition
// is that of the inner dimension, so that the same matrices give the same bits.
//
// Left and right are given by quads: quad q of step k has elements 4q .. 4q + 4 of the tile's rows (left) or columns (right).

import package::orthogonalize::matrices::{INVOCATIONS, TILE};

// Steps of the inner dimension between two barriers.
const DEPTH: u32 = 16u;
// Quads of a step, and one more so that those of successive steps lie in different banks of workgroup memory.
const STRIDE: u32 = 17u;

var<workgroup> left_quads: array<vec4<f32>, DEPTH * STRIDE>;
var<workgroup> right_quads: array<vec4<f32>, DEPTH * STRIDE>;

// 8 × 8 sums. A column of each matrix is a row of the product: rows 4y .. 4y + 4 and 32 more, columns 4x .. 4x + 4 and 32 more.
struct Sums {
    upper_left: mat4x4<f32>,
    upper_right: mat4x4<f32>,
    lower_left: mat4x4<f32>,
    lower_right: mat4x4<f32>,
}

fn outer(rows: vec4<f32>, columns: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(rows.x * columns, rows.y * columns, rows.z * columns, rows.w * columns);
}

// Adds what lies in workgroup memory.
fn add_products(sums: ptr<function, Sums>, x: u32, y: u32) {
    for (var k = 0u; k < DEPTH; k++) {
        let upper = left_quads[k * STRIDE + y];
        let lower = left_quads[k * STRIDE + y + 8u];
        let left = right_quads[k * STRIDE + x];
        let right = right_quads[k * STRIDE + x + 8u];
        (*sums).upper_left += outer(upper, left);
        (*sums).upper_right += outer(upper, right);
        (*sums).lower_left += outer(lower, left);
        (*sums).lower_right += outer(lower, right);
    }
}

// Where an invocation's i-th of four quads of a tile lies, of 16 steps of 16 quads: as step and quad. Neighbouring invocations take neighbouring
// steps where those lie side by side in memory, else neighbouring quads.
fn quad_of(lane: u32, i: u32, steps_are_neighbours: bool) -> vec2<u32> {
    let at = lane + i * INVOCATIONS;
    return select(vec2<u32>(at / 16u, at % 16u), vec2<u32>(at % 16u, at / 16u), steps_are_neighbours);
}
