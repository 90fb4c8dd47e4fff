// Computes second moments of rows and columns from the sums of tiles.
//
// Reads:  updates, tiles, blocks, tensors, partials.
// Writes: moments, except for groups that take no step and tensors without gradients.
// Grid:   workgroups of 64 invocations, one for each moment of a stretch of 64. A tile of the table is such a stretch,
//         which begins at `row`. Its moments are those of rows if the tile's column is 0, and of columns if it is 1.

import package::factored::tiles::{number_of_tiles, tile_at};
import package::layout::{Block, FactoredTensor, Tile, Update, MATRIX_TILE};

@group(0) @binding(0) var<storage, read> updates: array<Update>;
@group(0) @binding(2) var<storage, read> blocks: array<Block>;
@group(0) @binding(3) var<storage, read> tensors: array<FactoredTensor>;
@group(1) @binding(0) var<storage, read> partials: array<f32>;
@group(1) @binding(1) var<storage, read_write> moments: array<f32>;

const PART: u32 = 256u;

fn tiles_of(length: u32) -> u32 {
    return (length + MATRIX_TILE - 1u) / MATRIX_TILE;
}

fn follow_moment(tile: Tile, lane: u32) {
    let t = tensors[tile.matrix];
    let update = updates[t.group];
    if update.skip != 0u || blocks[t.lead].present == 0u {
        return;
    }
    let rows = t.matrices * t.rows;
    var number = rows;
    var terms = tiles_of(t.columns);
    var squares = t.columns;
    var partial = t.partials_first;
    var moment = t.rows_first;
    if tile.column != 0u {
        partial += terms * rows;
        moment = t.columns_first;
        number = t.matrices * t.columns;
        terms = tiles_of(t.rows);
        squares = t.rows;
    }
    let entry = tile.row + lane;
    if entry >= number {
        return;
    }
    // The sum is computed in parts, which reduces rounding errors. Some drivers also stop a loop after 65,535
    // iterations.
    var sum = 0.0;
    for (var first = 0u; first < terms; first += PART) {
        var part = 0.0;
        for (var term = first; term < min(first + PART, terms); term++) {
            part += partials[partial + term * number + entry];
        }
        sum += part;
    }
    moments[moment + entry] = update.square_keep * moments[moment + entry] + update.square_share * (sum / f32(squares));
}

@compute @workgroup_size(MATRIX_TILE)
fn follow_moments(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    for (var i = workgroup.x; i < number_of_tiles(); i += workgroups.x) {
        follow_moment(tile_at(i), lane);
    }
}
