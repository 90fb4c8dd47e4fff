// Pass 3, the first rate of the regimes that say how a rate changes, and not what it is, where the caller has given none. Source: src/regime/alignment.rs.

// η_0 = ε (1 + ‖w_0‖) / n_0, or over √d where the direction is a vector of signs.
fn set_first_rate(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    if (c.flags & INITIAL_RATE) != 0u {
        return;
    }
    let initial_norm = root(from_squares(g.sums.initial_square));
    let length = times(sum(Scaled(1.0, 0), initial_norm), c.first_step);
    let wanted = before_trust(c, g, s, quotient(length, direction_of(c, g.norm)));
    let rate = smaller(larger(wanted, scaled(RATE_MIN, 0)), scaled(RATE_MAX, 0));
    if differ(rate, wanted) {
        (*r).flags |= CLAMPED_RATE;
    }
    hold_rate(rate, s);
}
