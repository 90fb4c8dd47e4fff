// What the passes over matrices have in common. A matrix X of `rows` × `columns`, with no more rows than columns, lies in a buffer as its tensor
// does, row by row, or is the transpose of what lies there.
//
// `halves`: what is kept between two products is in f16. Sums are in f32.

import package::layout::{Block, Matrix, Tile, Update};

@if(halves) enable f16;

@if(halves) alias Number = f16;
@if(!halves) alias Number = f32;

@group(0) @binding(0) var<storage, read> updates: array<Update>;
@group(0) @binding(1) var<storage, read> blocks: array<Block>;
@group(0) @binding(2) var<storage, read> matrices: array<Matrix>;
@group(0) @binding(3) var<storage, read> tiles: array<Tile>;

// Invocations of a workgroup.
const INVOCATIONS: u32 = 64u;

// Whether nothing is to be made of the matrix: its group takes no step, or its tensor has no gradients.
fn is_idle(m: Matrix) -> bool {
    return updates[m.group].skip != 0u || blocks[m.lead].present == 0u;
}

// Where an element of X lies.
fn place_of(m: Matrix, row: u32, column: u32) -> u32 {
    return m.first + select(row * m.columns + column, column * m.rows + row, m.transposed != 0u);
}
