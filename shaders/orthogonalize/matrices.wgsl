// Declarations that the passes over matrices share. A matrix X of `rows` × `columns`, with no more rows than columns,
// is stored like its tensor, row by row, or is the transpose of the stored matrix.
//
// `halves`: matrices between two products are stored in f16. Sums are in f32.

import package::layout::{Block, Matrix, Tile, Update};

@if(halves) enable f16;

@if(halves) alias Number = f16;
@if(!halves) alias Number = f32;

@group(0) @binding(0) var<storage, read> updates: array<Update>;
@group(0) @binding(1) var<storage, read> blocks: array<Block>;
@group(0) @binding(2) var<storage, read> matrices: array<Matrix>;
@group(0) @binding(3) var<storage, read> tiles: array<Tile>;

// Number of invocations of a workgroup.
const INVOCATIONS: u32 = 64u;

// Returns true if nothing is computed for the matrix, because its group takes no step or its tensor has no gradients.
fn is_idle(m: Matrix) -> bool {
    return updates[m.group].skip != 0u || blocks[m.lead].present == 0u;
}

// Returns the index of an element of X.
fn place_of(m: Matrix, row: u32, column: u32) -> u32 {
    return m.first + select(row * m.columns + column, column * m.rows + row, m.transposed != 0u);
}
