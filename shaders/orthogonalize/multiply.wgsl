// Multiplies two matrices, for each of many matrices. orthogonalize/gram.wgsl or orthogonalize/advance.wgsl reads the
// factors and stores the product. A workgroup of 64 invocations computes a tile of 64 × 64. Each invocation computes 8
// × 8 of its elements, as four squares of 4 × 4 that are 32 apart. Per step of the inner dimension an invocation reads
// 16 numbers from workgroup memory for 64 multiplications. The order of addition is that of the inner dimension, so
// that the same matrices give the same bits.
//
// Left and right factors are read in quads: four elements of one step of the inner dimension, adjacent in the tile's
// rows (left) or columns (right).
//
// Reads:  updates, blocks, matrices, tiles, and the two factors.
// Writes: the product, or a function of it.
// Grid:   one workgroup of 64 invocations per tile.

import package::layout::{Matrix, MATRIX_TILE};
import package::orthogonalize::matrices::{INVOCATIONS, Number, is_idle, matrices, tiles};
@if(!advance) import package::orthogonalize::gram::{
    inner_length, left_quad, left_steps_are_neighbours, right_quad, right_steps_are_neighbours, store,
};
@if(advance) import package::orthogonalize::advance::{
    inner_length, left_quad, left_steps_are_neighbours, right_quad, right_steps_are_neighbours, store,
};

// Number of steps of the inner dimension between two barriers.
const DEPTH: u32 = 16u;
// Number of quads of a step, plus one so that quads of successive steps are in different banks of workgroup memory.
const STRIDE: u32 = 17u;

var<workgroup> left_quads: array<vec4<Number>, DEPTH * STRIDE>;
var<workgroup> right_quads: array<vec4<Number>, DEPTH * STRIDE>;

// 8 × 8 sums. A column of each matrix is a row of the product. The rows are 4y .. 4y + 4 and the same plus 32, the
// columns 4x .. 4x + 4 and the same plus 32.
struct Sums {
    upper_left: mat4x4<f32>,
    upper_right: mat4x4<f32>,
    lower_left: mat4x4<f32>,
    lower_right: mat4x4<f32>,
}

fn outer(rows: vec4<f32>, columns: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(rows.x * columns, rows.y * columns, rows.z * columns, rows.w * columns);
}

// Adds the products of the quads in workgroup memory.
fn add_products(sums: ptr<function, Sums>, x: u32, y: u32) {
    for (var k = 0u; k < DEPTH; k++) {
        let upper = vec4<f32>(left_quads[k * STRIDE + y]);
        let lower = vec4<f32>(left_quads[k * STRIDE + y + 8u]);
        let left = vec4<f32>(right_quads[k * STRIDE + x]);
        let right = vec4<f32>(right_quads[k * STRIDE + x + 8u]);
        (*sums).upper_left += outer(upper, left);
        (*sums).upper_right += outer(upper, right);
        (*sums).lower_left += outer(lower, left);
        (*sums).lower_right += outer(lower, right);
    }
}

// Returns the step and the quad of an invocation's i-th of four quads of a tile, which has 16 steps of 16 quads.
// Adjacent invocations take adjacent steps if those are adjacent in memory, else adjacent quads.
fn quad_of(lane: u32, i: u32, steps_are_neighbours: bool) -> vec2<u32> {
    let at = lane + i * INVOCATIONS;
    return select(vec2<u32>(at / 16u, at % 16u), vec2<u32>(at % 16u, at / 16u), steps_are_neighbours);
}

fn store_square(m: Matrix, row: u32, column: u32, sums: mat4x4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            store(m, row + i, column + j, sums[i][j]);
        }
    }
}

@compute @workgroup_size(INVOCATIONS)
fn multiply(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tile = tiles[workgroup.x];
    let m = matrices[tile.matrix];
    if is_idle(m) {
        return;
    }
    let x = lane % 8u;
    let y = lane / 8u;
    var sums = Sums();
    for (var first = 0u; first < inner_length(m); first += DEPTH) {
        for (var i = 0u; i < 4u; i++) {
            let left = quad_of(lane, i, left_steps_are_neighbours(m));
            left_quads[left.x * STRIDE + left.y] = vec4<Number>(left_quad(m, tile.row + 4u * left.y, first + left.x));
            let right = quad_of(lane, i, right_steps_are_neighbours(m));
            let read = right_quad(m, tile.column + 4u * right.y, first + right.x);
            right_quads[right.x * STRIDE + right.y] = vec4<Number>(read);
        }
        workgroupBarrier();
        add_products(&sums, x, y);
        workgroupBarrier();
    }
    let row = tile.row + 4u * y;
    let column = tile.column + 4u * x;
    store_square(m, row, column, sums.upper_left);
    store_square(m, row, column + MATRIX_TILE / 2u, sums.upper_right);
    store_square(m, row + MATRIX_TILE / 2u, column, sums.lower_left);
    store_square(m, row + MATRIX_TILE / 2u, column + MATRIX_TILE / 2u, sums.lower_right);
}
