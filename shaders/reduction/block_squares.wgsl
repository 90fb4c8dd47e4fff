// Stores the sum of squares of a block, for passes that need it tensor by tensor.

import package::geometry::WORKGROUP;
import package::layout::Squares;
import package::reduction::scaled_squares::{ScaledSquares, trusted};
import package::reduction::totals::add_squares;

@group(2) @binding(0) var<storage, read_write> squares: array<Squares>;

var<workgroup> tree: array<Squares, WORKGROUP>;

// All invocations of a workgroup must call this function. Their number is a power of two.
fn leave_squares(seen: ScaledSquares, block: u32, lane: u32) {
    tree[lane] = trusted(seen);
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            tree[lane] = add_squares(tree[lane], tree[lane + half]);
        }
    }
    if lane == 0u {
        squares[block] = tree[0];
    }
}
