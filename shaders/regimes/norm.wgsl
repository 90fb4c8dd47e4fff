// Pass 3, AdaGradNorm: the rate goes by the sum of all squared norms. What it computes and its source: src/regime/norm.rs.

fn follow_regime(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    set_rate(c, g, s, r);
}

fn formula(c: GroupConstants, g: Gradient, old: Scaled, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) -> Scaled {
    let old_history = Scaled((*s).history_mantissa, (*s).history_exponent);
    var history = old_history;
    if g.first {
        history = product(scaled(c.offset, 0), scaled(c.offset, 0));
    }
    history = sum(history, direction_square_of(c, g.square));
    (*s).history_mantissa = history.mantissa;
    (*s).history_exponent = history.exponent;
    (*r).history_term = -0.5 * ln_ratio_or_0(history, old_history);
    return quotient(scaled(c.scale, 0), root(history));
}
