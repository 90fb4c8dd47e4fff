// Pass 3, what the regimes share that say what the rate is: they start over from it at every step. Their formulas are in the files beside
// this one, and the formulas' sources in src/regime/. CPU twin: src/cpu/regimes.rs.

// A finite, non-zero gradient sets the rate. At the first gradient the last norm is 0.
fn set_rate(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    let old = scaled((*s).regime_rate, 0);
    // 0 asks for the lowest rate that the clamps allow.
    let wanted = formula(c, g, old, s, r);

    var rate = wanted;
    if !g.first {
        rate = larger(smaller(rate, times(old, c.max_change)), quotient(old, scaled(c.max_change, 0)));
        if differ(rate, wanted) {
            (*r).flags |= CLAMPED_CHANGE;
        }
    }
    let within = larger(smaller(rate, scaled(c.max_rate, 0)), scaled(RATE_MIN, 0));
    if differ(rate, within) {
        (*r).flags |= CLAMPED_RATE;
    }
    hold_rate(within, s);
    if g.first {
        return;
    }
    (*s).last_growth = to_float(quotient(within, old));
    let change = ln_ratio(within, old);
    let explained = (*r).norm_term + (*r).curvature_term + (*r).gate_term + (*r).distance_term + (*r).history_term + (*r).loss_term;
    // Also what earlier clamps had taken away, where the formula is of this step alone. What the rounding of the terms leaves is no clamp.
    (*r).clamp_term = change - explained;
    if abs((*r).clamp_term) < 4e-6 * max(1.0, abs(explained)) {
        (*r).clamp_term = 0.0;
    }
}

// The squared length of the step's direction, as far as these regimes know it: that of the gradient, or of its signs.
fn direction_square_of(c: GroupConstants, square: Scaled) -> Scaled {
    let signs = scaled(c.sqrt_elements, 0);
    return choose(square, product(signs, signs), (c.flags & SIGN_RULE) != 0u);
}

// ln(a / b), and 0 where there is nothing to compare.
fn ln_ratio_or_0(a: Scaled, b: Scaled) -> f32 {
    return select(ln_ratio(a, b), 0.0, is_zero(a) | is_zero(b));
}
