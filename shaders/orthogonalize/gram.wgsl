// Products of a matrix and its transpose, which are symmetric: only tiles on and above the diagonal are computed.
//
// Without `polynomial`: A = X Xᵀ. With it: b A + c A Aᵀ, which is b A + c A².
//
// Reads:  updates, blocks, matrices, tiles, source (X, or A).
// Writes: product.
// Grid:   one workgroup of 64 invocations per tile of the product on or above the diagonal.

import package::layout::Matrix;
import package::orthogonalize::matrices::{INVOCATIONS, TILE, is_idle, matrices, tiles};
@if(!polynomial) import package::orthogonalize::matrices::place_of;
import package::orthogonalize::product::{DEPTH, STRIDE, Sums, add_products, left_quads, quad_of, right_quads};

@group(1) @binding(0) var<storage, read> source: array<f32>;
@group(1) @binding(1) var<storage, read_write> product: array<f32>;

@if(!polynomial)
fn steps_of(m: Matrix) -> u32 {
    return m.columns;
}

@if(polynomial)
fn steps_of(m: Matrix) -> u32 {
    return m.rows;
}

fn element(m: Matrix, row: u32, step: u32) -> f32 {
    if row < m.rows && step < steps_of(m) {
        @if(!polynomial) return source[place_of(m, row, step)];
        // Symmetric: its columns are read, whose elements lie side by side for the quads.
        @if(polynomial) return source[m.gram_first + step * m.rows + row];
    }
    return 0.0;
}

fn steps_are_neighbours(m: Matrix) -> bool {
    @if(!polynomial) return m.transposed == 0u;
    @if(polynomial) return false;
}

fn quad(m: Matrix, row: u32, step: u32) -> vec4<f32> {
    return vec4<f32>(
        element(m, row, step), element(m, row + 1u, step), element(m, row + 2u, step), element(m, row + 3u, step),
    );
}

fn store(m: Matrix, row: u32, column: u32, sum: f32) {
    if row < m.rows && column < m.rows {
        let at = m.gram_first + row * m.rows + column;
        @if(!polynomial) let value = sum;
        @if(polynomial) let value = m.b * source[at] + m.c * sum;
        product[at] = value;
        product[m.gram_first + column * m.rows + row] = value;
    }
}

fn store_square(m: Matrix, row: u32, column: u32, sums: mat4x4<f32>, is_diagonal: bool) {
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            // Of two places on both sides of the diagonal one invocation writes both.
            if !is_diagonal || row + i <= column + j {
                store(m, row + i, column + j, sums[i][j]);
            }
        }
    }
}

@compute @workgroup_size(INVOCATIONS)
fn multiply_gram(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tile = tiles[workgroup.x];
    let m = matrices[tile.matrix];
    if is_idle(m) {
        return;
    }
    let x = lane % 8u;
    let y = lane / 8u;
    let neighbours = steps_are_neighbours(m);
    var sums = Sums();
    for (var first = 0u; first < steps_of(m); first += DEPTH) {
        for (var i = 0u; i < 4u; i++) {
            let at = quad_of(lane, i, neighbours);
            let slot = at.x * STRIDE + at.y;
            left_quads[slot] = quad(m, tile.row + 4u * at.y, first + at.x);
            right_quads[slot] = quad(m, tile.column + 4u * at.y, first + at.x);
        }
        workgroupBarrier();
        add_products(&sums, x, y);
        workgroupBarrier();
    }
    let row = tile.row + 4u * y;
    let column = tile.column + 4u * x;
    let is_diagonal = tile.row == tile.column;
    store_square(m, row, column, sums.upper_left, is_diagonal);
    store_square(m, row, column + TILE / 2u, sums.upper_right, is_diagonal);
    store_square(m, row + TILE / 2u, column, sums.lower_left, is_diagonal);
    store_square(m, row + TILE / 2u, column + TILE / 2u, sums.lower_right, is_diagonal);
}
