// Measures a step, block by block: ‖w‖² of the new parameters, and ‖s‖² of their difference from the old ones. Both are
// in registers, so that nothing else is read.

import package::layout::{Block, Squares, StepSums, INFINITY_BITS};
import package::geometry::WORKGROUP;
import package::reduction::scaled_squares::{ScaledSquares, add_squares_of, largest_of, trusted};
import package::update::in_range::overflow_key;
import package::reduction::step_sums::{INFINITE_EXPONENT, NAN_EXPONENT, add_step_sums};

@group(2) @binding(1) var<storage, read_write> step_partials: array<StepSums>;

struct Measured {
    parameters: ScaledSquares,
    step: ScaledSquares,
}

var<private> seen: Measured;
var<workgroup> step_tree: array<StepSums, WORKGROUP>;

fn watch(w: vec4<f32>, next: vec4<f32>) {
    var parameters = seen.parameters;
    add_squares_of(next, &parameters);
    var step = seen.step;
    add_squares_of(next - w, &step);
    seen = Measured(parameters, step);
}

// The exponent marks sums that are not finite, because a compiler may assume that computed sums are finite.
fn total_of(squares: ScaledSquares) -> Squares {
    let largest = largest_of(squares.largest);
    if largest >= INFINITY_BITS {
        return Squares(1.0, select(INFINITE_EXPONENT, NAN_EXPONENT, largest > INFINITY_BITS));
    }
    return trusted(squares);
}

// Either every invocation of a workgroup or none calls this function. Without gradients the parameters keep their norm.
fn leave(block: Block, lane: u32, present: bool) {
    step_tree[lane] = StepSums(total_of(seen.parameters), total_of(seen.step), overflow_key());
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            step_tree[lane] = add_step_sums(step_tree[lane], step_tree[lane + half]);
        }
    }
    if lane == 0u && present {
        step_partials[block.row] = step_tree[0];
    } else if lane == 0u {
        step_partials[block.row].step = step_tree[0].step;
        step_partials[block.row].overflow_key = 0u;
    }
}
