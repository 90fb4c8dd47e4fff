// The end of a Newton–Schulz iteration: X ← a X + P X, with P = b A + c A² as orthogonalize/gram.wgsl leaves it. `last`: times the factor of the
// direction.
//
// Reads:  updates, blocks, matrices, tiles, polynomial, iterate (X).
// Writes: next (the new X).
// Grid:   one workgroup of 64 invocations per tile of X.

import package::layout::Matrix;
import package::orthogonalize::matrices::{INVOCATIONS, TILE, is_idle, matrices, place_of, tiles};
import package::orthogonalize::product::{DEPTH, STRIDE, Sums, add_products, left_quads, quad_of, right_quads};

@group(1) @binding(0) var<storage, read> polynomial: array<f32>;
@group(1) @binding(1) var<storage, read> iterate: array<f32>;
@group(1) @binding(2) var<storage, read_write> next: array<f32>;

// Rows of P are its columns.
fn polynomial_element(m: Matrix, row: u32, step: u32) -> f32 {
    if row < m.rows && step < m.rows {
        return polynomial[m.gram_first + step * m.rows + row];
    }
    return 0.0;
}

fn iterate_element(m: Matrix, step: u32, column: u32) -> f32 {
    if step < m.rows && column < m.columns {
        return iterate[place_of(m, step, column)];
    }
    return 0.0;
}

fn store_square(m: Matrix, row: u32, column: u32, sums: mat4x4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            if row + i < m.rows && column + j < m.columns {
                let at = place_of(m, row + i, column + j);
                let advanced = m.a * iterate[at] + sums[i][j];
                @if(last) next[at] = m.scale * advanced;
                @if(!last) next[at] = advanced;
            }
        }
    }
}

@compute @workgroup_size(INVOCATIONS)
fn advance(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tile = tiles[workgroup.x];
    let m = matrices[tile.matrix];
    if is_idle(m) {
        return;
    }
    let x = lane % 8u;
    let y = lane / 8u;
    var sums = Sums();
    for (var first = 0u; first < m.rows; first += DEPTH) {
        for (var i = 0u; i < 4u; i++) {
            let left = quad_of(lane, i, false);
            let row = tile.row + 4u * left.y;
            let left_step = first + left.x;
            left_quads[left.x * STRIDE + left.y] = vec4<f32>(
                polynomial_element(m, row, left_step),
                polynomial_element(m, row + 1u, left_step),
                polynomial_element(m, row + 2u, left_step),
                polynomial_element(m, row + 3u, left_step),
            );
            let right = quad_of(lane, i, m.transposed != 0u);
            let column = tile.column + 4u * right.y;
            let right_step = first + right.x;
            right_quads[right.x * STRIDE + right.y] = vec4<f32>(
                iterate_element(m, right_step, column),
                iterate_element(m, right_step, column + 1u),
                iterate_element(m, right_step, column + 2u),
                iterate_element(m, right_step, column + 3u),
            );
        }
        workgroupBarrier();
        add_products(&sums, x, y);
        workgroupBarrier();
    }
    let row = tile.row + 4u * y;
    let column = tile.column + 4u * x;
    store_square(m, row, column, sums.upper_left);
    store_square(m, row, column + TILE / 2u, sums.upper_right);
    store_square(m, row + TILE / 2u, column, sums.lower_left);
    store_square(m, row + TILE / 2u, column + TILE / 2u, sums.lower_right);
}
