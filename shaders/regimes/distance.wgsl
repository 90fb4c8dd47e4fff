// Pass 3, DoG and DoWG: the rate goes by the way from the first parameters. What they compute and its sources: src/regime/distance.rs.

fn follow_regime(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    set_rate(c, g, s, r);
}

fn formula(c: GroupConstants, g: Gradient, old: Scaled, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) -> Scaled {
    let old_history = Scaled((*s).history_mantissa, (*s).history_exponent);
    let old_distance = Scaled((*s).distance_mantissa, (*s).distance_exponent);
    var farthest = old_distance;
    if g.first {
        farthest = times(sum(Scaled(1.0, 0), root(from_squares(g.sums.initial_square))), c.first_step);
    } else if is_finite(g.sums.direction_square) {
        farthest = larger(farthest, root(scaled(g.sums.direction_square, 0)));
    }
    (*s).distance_mantissa = farthest.mantissa;
    (*s).distance_exponent = farthest.exponent;
    (*r).distance_term = ln_ratio_or_0(farthest, old_distance);
    var added = direction_square_of(c, g.square);
    var wanted = farthest;
    if c.regime == DOWG {
        let farthest_square = product(farthest, farthest);
        added = product(farthest_square, added);
        wanted = farthest_square;
        (*r).distance_term *= 2.0;
    }
    let history = sum(old_history, added);
    (*s).history_mantissa = history.mantissa;
    (*s).history_exponent = history.exponent;
    (*r).history_term = -0.5 * ln_ratio_or_0(history, old_history);
    return quotient(wanted, root(history));
}
