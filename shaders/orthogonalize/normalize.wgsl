// Divides each matrix by its norm.
//
// Reads:  updates, blocks, matrices, tiles, squares.
// Writes: iterate, the matrices that it also reads.
// Grid:   one workgroup of 64 invocations per tile of the matrices.

import package::layout::{Squares, MATRIX_TILE};
import package::orthogonalize::matrices::{INVOCATIONS, is_idle, matrices, place_of, tiles};
import package::reduction::totals::{add_squares, no_squares};
import package::scaled::{larger, power_of_two, quotient, root, scaled};

@group(1) @binding(0) var<storage, read> squares: array<Squares>;
@group(1) @binding(1) var<storage, read_write> iterate: array<f32>;

var<workgroup> tree: array<Squares, INVOCATIONS>;

@compute @workgroup_size(INVOCATIONS)
fn normalize_matrices(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tile = tiles[workgroup.x];
    let m = matrices[tile.matrix];
    if is_idle(m) {
        return;
    }
    var sum = no_squares();
    for (var block = lane; block < m.blocks; block += INVOCATIONS) {
        sum = add_squares(sum, squares[m.lead + block]);
    }
    tree[lane] = sum;
    for (var half = INVOCATIONS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            tree[lane] = add_squares(tree[lane], tree[lane + half]);
        }
    }
    workgroupBarrier();
    let norm = root(scaled(tree[0].sum, 2 * tree[0].exponent));
    let factor = quotient(scaled(1.0, 0), larger(norm, scaled(m.epsilon, 0)));
    // In two powers of two, since one factor may be outside the range of f32.
    let half = factor.exponent / 2;
    let first = factor.mantissa * power_of_two(half);
    let second = power_of_two(factor.exponent - half);
    let lane_row = lane / 8u;
    let lane_column = lane % 8u;
    for (var i = lane_row; i < MATRIX_TILE; i += 8u) {
        for (var j = lane_column; j < MATRIX_TILE; j += 8u) {
            // Neighbouring invocations take neighbouring elements, however the matrix lies.
            let row = tile.row + select(i, j, m.transposed != 0u);
            let column = tile.column + select(j, i, m.transposed != 0u);
            if row < m.rows && column < m.columns {
                let at = place_of(m, row, column);
                iterate[at] = (iterate[at] * first) * second;
            }
        }
    }
}
