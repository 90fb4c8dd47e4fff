// Ngn: src/regime/ngn.rs.

import package::layout::{GroupConstants, GroupState, RawRecord, Scaled, LOSS_TERM, NORM_TERM, SIGN_RULE, MAX_FACTOR, RATE_MAX};
import package::learning_rate::formula::{ln_ratio_or_0, rate_along_signs, set_rate};
import package::learning_rate::gradient::Gradient;
import package::scaled::{ln_ratio, product, quotient, scaled, sum, times};

fn follow_regime(c: GroupConstants, g: Gradient, s: ptr<function, GroupState>, r: ptr<function, RawRecord>) {
    let rate = c.regime_constants.rate;
    let last_loss = (*s).regime.last_loss;
    let loss = max(g.sums.loss, 0.0);
    (*s).regime.last_loss = loss;
    var wanted = Scaled(0.0, 0);
    if loss > 0.0 {
        let divisor = ngn_divisor(rate, g.square, loss);
        wanted = quotient(scaled(rate, 0), divisor);
        if last_loss > 0.0 {
            let between = ngn_divisor(rate, g.square, last_loss);
            (*r).terms[NORM_TERM] = ln_ratio(ngn_divisor(rate, product(g.last_norm, g.last_norm), last_loss), between);
            (*r).terms[LOSS_TERM] = ln_ratio(between, divisor);
        }
    }
    if (c.flags & SIGN_RULE) != 0u {
        wanted = rate_along_signs(c, wanted, g.norm);
        (*r).terms[NORM_TERM] += ln_ratio_or_0(g.norm, g.last_norm);
    }
    set_rate(wanted, MAX_FACTOR, RATE_MAX, g, s, r);
}

// Computes 1 + σ n²/(2 f) for f above 0.
fn ngn_divisor(rate: f32, square: Scaled, loss: f32) -> Scaled {
    return sum(Scaled(1.0, 0), quotient(times(square, rate), scaled(2.0 * loss, 0)));
}
