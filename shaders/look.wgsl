// Pass 3 of a look: from the sums over a second gradient of the same batch to the curvature along the last step.
//
// Reads:  groups, sums, updates.
// Writes: states.
// Grid:   one invocation per group.
//
// A look only changes the curvature in the states of the groups with one regime. The next step derives its rate from it
// (regime/curvature.wgsl). Only the first look after a step counts. CPU twin: src/regime/curvature.rs.

import package::geometry::WORKGROUP;
import package::layout::{
    CurvatureState, GroupConstants, GroupState, Scaled, ScopeSums, LOOK_LONG, LOOK_MEASURED, LOOK_NEWTON, LOOK_NOT_FINITE, LOOK_SHORT,
    LOSS_ELEMENT, NO_ELEMENT, Update,
};
import package::learning_rate::gradient::is_finite;
import package::learning_rate::secant::{Secant, secant_of};
import package::scaled::{choose, is_zero, product, quotient, scaled, sum, times};

// Number of the regime whose groups have looks, as in GroupConstants.regime.
override REGIME: u32;

@group(0) @binding(0) var<storage, read> groups: array<GroupConstants>;
@group(0) @binding(1) var<storage, read> sums: array<ScopeSums>;
@group(0) @binding(2) var<storage, read_write> states: array<GroupState>;
@group(0) @binding(3) var<storage, read> updates: array<Update>;

@compute @workgroup_size(WORKGROUP)
fn look(@builtin(global_invocation_id) id: vec3<u32>) {
    let group = id.x;
    if group >= arrayLength(&groups) {
        return;
    }
    let c = groups[group];
    if c.regime != REGIME {
        return;
    }
    var s = states[group];
    // A look has no effect after a step that was skipped or left the group out.
    if s.regime.due == 0u || updates[group].skip != 0u {
        return;
    }
    var first_nonfinite = NO_ELEMENT;
    for (var scope = 0u; scope < arrayLength(&sums); scope++) {
        first_nonfinite = min(first_nonfinite, sums[scope].first_nonfinite);
    }
    s.regime.due = 0u;
    let measured = sums[c.scope];
    let secant = secant_of(c, measured, s.gradient_exponent, &s);
    // A look ignores whether the loss is finite. Pass 2 reads the loss for other regimes.
    if first_nonfinite < LOSS_ELEMENT || !secant.finite || !is_finite(measured.fast_dot) {
        s.regime.look = LOOK_NOT_FINITE;
    } else {
        measure_curvature(c, secant, measured.fast_dot, &s);
    }
    states[group] = s;
}

fn measure_curvature(c: GroupConstants, secant: Secant, u_dot_g: f32, s: ptr<function, GroupState>) {
    let rate = scaled((*s).learning_rate, 0);
    let u_square = scaled(secant.u_square, secant.shift);
    if is_zero(u_square) || is_zero(rate) {
        return;
    }
    (*s).regime.look = LOOK_MEASURED;
    let nothing = Scaled(0.0, 0);
    var along = Scaled(1.0, 0);
    var against = nothing;
    var bend = nothing;
    if c.regime_constants.form == LOOK_NEWTON {
        // The units are those of the scale of the sums, which is a power of two.
        let exponent = secant.shift + 2 * secant.scale;
        let slope = scaled(u_dot_g, exponent);
        along = choose(nothing, slope, u_dot_g > 0.0);
        against = choose(slope, nothing, u_dot_g > 0.0);
        bend = quotient(scaled(secant.u_dot_y, exponent), rate);
    } else {
        let step_square = product(rate, u_square);
        let curvature = quotient(scaled(secant.u_dot_y, 0), step_square);
        bend = quotient(quotient(scaled(secant.y_square, 0), step_square), product(rate, Scaled(1.0, secant.shift)));
        if c.regime_constants.form == LOOK_SHORT {
            along = choose(nothing, curvature, secant.u_dot_y < 0.0);
            against = choose(curvature, nothing, secant.u_dot_y < 0.0);
        } else if c.regime_constants.form == LOOK_LONG {
            bend = curvature;
        }
    }
    (*s).regime.along = mixed(c, (*s).regime.along, along);
    (*s).regime.against = mixed(c, (*s).regime.against, against);
    (*s).regime.bend = mixed(c, (*s).regime.bend, bend);
}

fn mixed(c: GroupConstants, old: Scaled, now: Scaled) -> Scaled {
    return sum(times(old, c.regime_constants.smoothing), times(now, 1.0 - c.regime_constants.smoothing));
}
