// Pass 3, Barzilai-Borwein (long, short and geometric) and AdGd: the rate goes by how the gradient has changed along the last step. What
// they compute and its sources: src/regime/secant.rs.

fn follow_regime(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    if g.first {
        set_first_rate(c, g, s, r);
    } else {
        set_rate(c, g, s, r);
    }
}

// From s = -η u_{t-1} and y = g_t - g_{t-1}: the sums hold u·y, u·u and y·y, of u and y scaled by powers of two.
fn formula(c: GroupConstants, g: Gradient, old: Scaled, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) -> Scaled {
    let u_dot_y = g.sums.slow_dot;
    let u_square = g.sums.direction_square;
    let y_square = g.sums.absolute;
    if !is_finite(u_dot_y) || !is_finite(u_square) || !is_finite(y_square) {
        return Scaled(0.0, 0);
    }
    // u is scaled by the exponent of the momentum's bound, by that of the gradient, or not at all.
    var direction_exponent = g.scale_of_sums;
    if (c.flags & SIGN_RULE) != 0u {
        direction_exponent = 0;
    } else if c.momentum > 0.0 {
        direction_exponent = (*s).direction_exponent;
    }
    let shift = direction_exponent - g.scale_of_sums;
    var factor = Scaled(0.0, 0);
    var share_of_norm = 0.0;
    if c.regime == SECANT_LONG {
        if u_dot_y >= 0.0 || u_square == 0.0 {
            return old;
        }
        factor = quotient(scaled(u_square, shift), scaled(u_dot_y, 0));
    } else if c.regime == SECANT_SHORT {
        if u_dot_y >= 0.0 || y_square == 0.0 {
            return old;
        }
        factor = quotient(scaled(u_dot_y, shift), scaled(y_square, 0));
        share_of_norm = -1.0;
    } else {
        if u_square == 0.0 || y_square == 0.0 {
            return old;
        }
        factor = root(quotient(scaled(u_square, 2 * shift), scaled(y_square, 0)));
        share_of_norm = -0.5;
    }
    if is_zero(factor) {
        return old;
    }
    if (c.flags & SIGN_RULE) != 0u {
        factor = quotient(product(factor, g.norm), scaled(c.sqrt_elements, 0));
        share_of_norm += 1.0;
    }
    (*r).norm_term = share_of_norm * ln_ratio_or_0(g.norm, g.last_norm);
    var rate = product(old, factor);
    if c.regime == ADGD {
        rate = times(rate, 0.5);
        (*r).curvature_term = ln_ratio(rate, old) - (*r).norm_term;
        let most = product(old, root(sum(Scaled(1.0, 0), scaled((*s).last_growth, 0))));
        if less(most, rate) {
            (*r).gate_term = ln_ratio(most, rate);
            rate = most;
        }
    } else {
        (*r).curvature_term = ln_ratio(rate, old) - (*r).norm_term;
    }
    return rate;
}
