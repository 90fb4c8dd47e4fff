// Norm of a tensor, from its blocks' sums of squares that block_squares.wgsl has stored.

import package::layout::{Scaled, Squares};
import package::reduction::totals::{add_squares, no_squares};
import package::scaled::{root, scaled};

@group(1) @binding(0) var<storage, read> squares: array<Squares>;

// Number of invocations of a workgroup.
const LEAVES: u32 = 64u;

var<workgroup> tree: array<Squares, LEAVES>;

// All invocations of a workgroup must call this function.
fn norm_of_blocks(lead: u32, blocks: u32, lane: u32) -> Scaled {
    var sum = no_squares();
    for (var block = lane; block < blocks; block += LEAVES) {
        sum = add_squares(sum, squares[lead + block]);
    }
    workgroupBarrier();
    tree[lane] = sum;
    for (var half = LEAVES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            tree[lane] = add_squares(tree[lane], tree[lane + half]);
        }
    }
    workgroupBarrier();
    return root(scaled(tree[0].sum, 2 * tree[0].exponent));
}
