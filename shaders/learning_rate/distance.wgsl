// Code that DoG and DoWG share: r̄, the largest distance from the first parameters. CPU twin: src/regime/distance.rs.

import package::layout::{GroupConstants, GroupState, Scaled};
import package::learning_rate::gradient::{Gradient, from_squares, is_finite};
import package::scaled::{larger, root, scaled, sum, times};

// Returns r̄ of this step. At the first gradient it is r_ε = ε (1 + ‖w_0‖).
fn farthest_of(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>) -> Scaled {
    var farthest = (*s).regime.distance;
    if g.first {
        farthest = times(sum(Scaled(1.0, 0), root(from_squares(g.sums.initial_square))), c.first_step);
    } else if is_finite(g.sums.direction_square) {
        farthest = larger(farthest, root(scaled(g.sums.direction_square, 0)));
    }
    (*s).regime.distance = farthest;
    return farthest;
}
