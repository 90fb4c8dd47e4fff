// Computes the mean of the second moments of each matrix's rows.
//
// Reads:  tiles, tensors.
// Writes: moments, after the second moments that it reads.
// Grid:   workgroups of 64 invocations, one for each matrix: number `row` of the stack of a tile.

import package::factored::tiles::{number_of_tiles, tile_at};
import package::layout::{FactoredTensor, Tile, MATRIX_TILE};

@group(0) @binding(3) var<storage, read> tensors: array<FactoredTensor>;
@group(1) @binding(1) var<storage, read_write> moments: array<f32>;

const PART: u32 = 256u;

var<workgroup> sums: array<f32, MATRIX_TILE>;

fn average_rows(tile: Tile, lane: u32) {
    let t = tensors[tile.matrix];
    let first = t.rows_first + tile.row * t.rows;
    // The sum is computed in parts, which reduces rounding errors. Some drivers also stop a loop after 65,535
    // iterations.
    var sum = 0.0;
    for (var start = lane; start < t.rows; start += PART * MATRIX_TILE) {
        var part = 0.0;
        for (var row = start; row < min(start + PART * MATRIX_TILE, t.rows); row += MATRIX_TILE) {
            part += moments[first + row];
        }
        sum += part;
    }
    workgroupBarrier();
    sums[lane] = sum;
    for (var half = MATRIX_TILE / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    if lane == 0u {
        moments[t.means_first + tile.row] = sums[0] / f32(t.rows);
    }
}

@compute @workgroup_size(MATRIX_TILE)
fn average_moments(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    for (var i = workgroup.x; i < number_of_tiles(); i += workgroups.x) {
        average_rows(tile_at(i), lane);
    }
}
