// Divides each matrix by its norm.
//
// Reads:  updates, blocks, matrices, tiles, squares, and with `halves` the prepared matrices.
// Writes: iterate. Without `halves` it is also read, because it holds the prepared matrices.
// Grid:   one workgroup of 64 invocations per tile of the matrices.

import package::layout::MATRIX_TILE;
import package::orthogonalize::matrices::{INVOCATIONS, Number, is_idle, matrices, place_of, tiles};
import package::reduction::tensor_norm::norm_of_blocks;
import package::scaled::{larger, power_of_two, quotient, scaled};

@if(!halves) @group(1) @binding(1) var<storage, read_write> iterate: array<f32>;
@if(halves) @group(1) @binding(1) var<storage, read> prepared: array<f32>;
@if(halves) @group(1) @binding(2) var<storage, read_write> iterate: array<Number>;

@compute @workgroup_size(INVOCATIONS)
fn normalize_matrices(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tile = tiles[workgroup.x];
    let m = matrices[tile.matrix];
    if is_idle(m) {
        return;
    }
    let norm = norm_of_blocks(m.lead, m.blocks, lane);
    let factor = quotient(scaled(1.0, 0), larger(norm, scaled(m.epsilon, 0)));
    // The factor is split into two powers of two, because it may be outside the range of f32.
    let half = factor.exponent / 2;
    let first = factor.mantissa * power_of_two(half);
    let second = power_of_two(factor.exponent - half);
    let lane_row = lane / 8u;
    let lane_column = lane % 8u;
    for (var i = lane_row; i < MATRIX_TILE; i += 8u) {
        for (var j = lane_column; j < MATRIX_TILE; j += 8u) {
            // Adjacent invocations take adjacent elements, whether the matrix is transposed or not.
            let row = tile.row + select(i, j, m.transposed != 0u);
            let column = tile.column + select(j, i, m.transposed != 0u);
            if row < m.rows && column < m.columns {
                let at = place_of(m, row, column);
                @if(!halves) iterate[at] = (iterate[at] * first) * second;
                @if(halves) iterate[at] = Number((prepared[at] * first) * second);
            }
        }
    }
}
