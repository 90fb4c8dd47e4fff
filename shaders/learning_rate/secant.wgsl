// Code that BarzilaiBorwein, AdGd and Curvature share: the last secant. CPU twin: src/regime/secant.rs.
//
// The last step is s = -η u_{t-1}, and the change of the gradient y = g_t - g_{t-1}. The sums of the first pass hold u·y, u·u and y·y, of u and
// y scaled by powers of two.

import package::layout::{GroupConstants, GroupState, Scaled, ScopeSums, SIGN_RULE};
import package::learning_rate::gradient::{Gradient, is_finite};
import package::scaled::{quotient, root, scaled};

struct Secant {
    finite: bool,
    u_dot_y: f32,
    u_square: f32,
    y_square: f32,
    shift: i32,  // log2 of the scale of u over that of y
    scale: i32,  // log2 of the scale of y
}

fn last_secant(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>) -> Secant {
    return secant_of(c, g.sums, g.scale_of_sums, s);
}

// Returns the secant. The gradients in the sums are scaled by 2^-scale.
fn secant_of(c: GroupConstants, sums: ScopeSums, scale: i32, s: ptr<function, GroupState>) -> Secant {
    // u is scaled by the exponent of the momentum's bound or of the gradient, or not scaled.
    var direction_exponent = scale;
    if (c.flags & SIGN_RULE) != 0u {
        direction_exponent = 0;
    } else if c.rule.momentum > 0.0 {
        direction_exponent = (*s).direction_exponent;
    }
    return Secant(
        is_finite(sums.slow_dot) && is_finite(sums.direction_square) && is_finite(sums.absolute),
        sums.slow_dot,
        sums.direction_square,
        sums.absolute,
        direction_exponent - scale,
        scale,
    );
}

// Returns ‖u‖/‖y‖, or 0 if either is 0.
fn ratio_of_lengths(secant: Secant) -> Scaled {
    if secant.u_square == 0.0 || secant.y_square == 0.0 {
        return Scaled(0.0, 0);
    }
    return root(quotient(scaled(secant.u_square, 2 * secant.shift), scaled(secant.y_square, 0)));
}
