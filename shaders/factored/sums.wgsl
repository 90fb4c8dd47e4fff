// First of Adafactor's passes, after pass 3: sums of squares of the rows and columns of each tile of a matrix.
//
// Reads:  updates, blocks, gradients, parameters with coupled decay, tensors, tiles.
// Writes: partials. For each tensor, a sum of each row of the stack for each column of tiles, then a sum of each column
//         for each row of tiles. Groups that take no step and tensors without gradients are skipped.
// Grid:   workgroups of 64 invocations, one for each column of a tile of 64 × 64. A workgroup processes the tiles
//         workgroup.x, workgroup.x + workgroups, …

import package::elements::gradients::load_gradients;
import package::elements::parameters::load_parameters;
import package::factored::tensors::tensors;
import package::factored::tiles::{number_of_tiles, tile_at};
import package::layout::{Block, Tile, Update, MATRIX_TILE};
import package::rule::admitted;
import package::update::step_gradient::step_gradient;

@group(0) @binding(0) var<storage, read> updates: array<Update>;
@group(1) @binding(0) var<storage, read> blocks: array<Block>;
@group(2) @binding(0) var<storage, read_write> partials: array<f32>;

const HALF: u32 = MATRIX_TILE / 2u;
// The stride is one more than a row, so that invocations that sum rows access different memory banks.
const STRIDE: u32 = MATRIX_TILE + 1u;

var<workgroup> squares: array<f32, HALF * STRIDE>;
var<workgroup> halves: array<f32, MATRIX_TILE>;

// Returns an element of the tensor that the block stands for.
fn gradient_at(block: Block, update: Update, element: u32) -> f32 {
    let quad = element / 4u;
    let w = load_parameters(block, quad);
    let g = admitted(step_gradient(update, update.unscale * load_gradients(block, quad), w));
    return g[element % 4u];
}

fn sum_tile(tile: Tile, lane: u32) {
    let t = tensors[tile.matrix];
    // This block stands for the whole tensor.
    var block = blocks[tile.matrix];
    let update = updates[block.group];
    if update.skip != 0u || block.present == 0u {
        return;
    }
    block.elements = t.elements;
    let rows = t.matrices * t.rows;
    let matrix = tile.row / t.rows;
    let end = min(tile.row + MATRIX_TILE, (matrix + 1u) * t.rows);
    let column = tile.column + lane;
    var of_column = 0.0;
    for (var first = tile.row; first < tile.row + MATRIX_TILE; first += HALF) {
        for (var i = 0u; i < HALF; i++) {
            let row = first + i;
            var square = 0.0;
            if row < end && column < t.columns {
                let g = gradient_at(block, update, row * t.columns + column);
                square = g * g;
            }
            of_column += square;
            squares[i * STRIDE + lane] = square;
        }
        workgroupBarrier();
        // Two invocations sum a row.
        let start = lane / 2u * STRIDE + lane % 2u * HALF;
        var half = 0.0;
        for (var i = 0u; i < HALF; i++) {
            half += squares[start + i];
        }
        halves[lane] = half;
        workgroupBarrier();
        let row = first + lane;
        if lane < HALF && row < end {
            let at = t.partials_first + tile.column / MATRIX_TILE * rows + row;
            partials[at] = halves[2u * lane] + halves[2u * lane + 1u];
        }
    }
    if column < t.columns {
        let of_rows = (t.columns + MATRIX_TILE - 1u) / MATRIX_TILE * rows;
        let tile_row = (tile.row - matrix * t.rows) / MATRIX_TILE;
        partials[t.partials_first + of_rows + (tile_row * t.matrices + matrix) * t.columns + column] = of_column;
    }
}

@compute @workgroup_size(MATRIX_TILE)
fn sums(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    for (var i = workgroup.x; i < number_of_tiles(); i += workgroups.x) {
        sum_tile(tile_at(i), lane);
    }
}
