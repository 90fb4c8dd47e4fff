// Pass 3, Polyak and Ngn: the rate goes by the loss. What they compute and its sources: src/regime/loss.rs.

fn follow_regime(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    set_rate(c, g, s, r);
}

fn formula(c: GroupConstants, g: Gradient, old: Scaled, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) -> Scaled {
    let last_loss = (*s).last_loss;
    let loss = max(g.sums.loss - select(0.0, c.offset, c.regime == POLYAK), 0.0);
    (*s).last_loss = loss;
    let norm_change = ln_ratio_or_0(g.norm, g.last_norm);
    var wanted = Scaled(0.0, 0);
    if c.regime == POLYAK {
        if loss > 0.0 {
            wanted = quotient(scaled(loss, 0), times(g.square, c.scale));
        }
        (*r).norm_term = -2.0 * norm_change;
        (*r).loss_term = ln_ratio_or_0(scaled(loss, 0), scaled(last_loss, 0));
    } else if loss > 0.0 {
        let divisor = ngn_divisor(c.scale, g.square, loss);
        wanted = quotient(scaled(c.scale, 0), divisor);
        if last_loss > 0.0 {
            let between = ngn_divisor(c.scale, g.square, last_loss);
            (*r).norm_term = ln_ratio(ngn_divisor(c.scale, product(g.last_norm, g.last_norm), last_loss), between);
            (*r).loss_term = ln_ratio(between, divisor);
        }
    }
    // A step along the signs as long as that along the gradient.
    if (c.flags & SIGN_RULE) != 0u {
        wanted = quotient(product(wanted, g.norm), scaled(c.sqrt_elements, 0));
        (*r).norm_term += norm_change;
    }
    return wanted;
}

// 1 + σ n²/(2 f) for f above 0.
fn ngn_divisor(rate: f32, square: Scaled, loss: f32) -> Scaled {
    return sum(Scaled(1.0, 0), quotient(times(square, rate), scaled(2.0 * loss, 0)));
}
