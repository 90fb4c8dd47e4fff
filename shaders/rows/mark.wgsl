// Marks the rows that have a gradient, after pass 3.
//
// Reads:  updates, tiles, blocks, gradients.
// Writes: the flags in rows, except for groups that take no step and tensors without gradients.
// Grid:   workgroups of 64 invocations, one for each row of a stretch of 64. A workgroup processes the stretches
//         workgroup.x, workgroup.x + workgroups, … A tile of the table is such a stretch, which begins at its row.

import package::elements::gradients::bits_of_gradients;
import package::factored::tiles::{number_of_tiles, tile_at};
import package::layout::{Block, Tile, Update, MAGNITUDE_BITS, MATRIX_TILE, COLUMNS_WORD, ELEMENTS_WORD, FLAGS_WORD};
import package::rows::table::{rows, word_of};

@group(0) @binding(0) var<storage, read> updates: array<Update>;
@group(1) @binding(0) var<storage, read> blocks: array<Block>;

var<workgroup> touched: array<atomic<u32>, MATRIX_TILE>;

// Number of quads that an invocation checks in one loop. Some drivers stop a loop after 65,535 iterations.
const TRIPS: u32 = 4096u;

fn mark_stretch(tile: Tile, lane: u32) {
    let lead = tile.matrix;
    // This block stands for the whole tensor.
    var block = blocks[lead];
    if updates[block.group].skip != 0u || block.present == 0u {
        return;
    }
    let columns = word_of(lead, COLUMNS_WORD);
    block.elements = word_of(lead, ELEMENTS_WORD);
    let first = tile.row * columns;
    let end = min(first + MATRIX_TILE * columns, block.elements);
    atomicStore(&touched[lane], 0u);
    workgroupBarrier();
    let step = MATRIX_TILE * TRIPS;
    for (var part = first / 4u; 4u * part < end; part += step) {
        for (var quad = part + lane; quad < part + step && 4u * quad < end; quad += MATRIX_TILE) {
            let bits = bits_of_gradients(block, quad) & vec4<u32>(MAGNITUDE_BITS);
            for (var i = 0u; i < 4u; i++) {
                let at = 4u * quad + i;
                if bits[i] != 0u && at >= first && at < end {
                    atomicOr(&touched[at / columns - tile.row], 1u);
                }
            }
        }
    }
    workgroupBarrier();
    let row = tile.row + lane;
    if row * columns < block.elements {
        rows[word_of(lead, FLAGS_WORD) + row] = atomicLoad(&touched[lane]);
    }
    workgroupBarrier();
}

@compute @workgroup_size(MATRIX_TILE)
fn mark_rows(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    for (var i = workgroup.x; i < number_of_tiles(); i += workgroups.x) {
        mark_stretch(tile_at(i), lane);
    }
}
