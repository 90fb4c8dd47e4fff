// Norms that are outliers: src/safeguards.rs.

import package::layout::{Fixed, GroupConstants, GroupState, Scaled, LEAST_DEVIATION};
import package::scaled::{add_float, exp_fixed, is_zero, ln_ratio};

// Whether the norm of this step is an outlier, and the norm at which outliers begin.
struct Judgement {
    outlier: bool,
    limit: Scaled,
}

// Judges a norm by the previous norms, and remembers it. An outlier is remembered as the limit, so that the limit follows a lasting change.
fn judge_norm(c: GroupConstants, norm: Scaled, s: ptr<function, GroupState>) -> Judgement {
    var judgement = Judgement(false, norm);
    if c.outlier_deviations <= 0.0 || is_zero(norm) {
        return judgement;
    }
    let mean = (*s).mean_ln_norm;
    let ln_limit = mean + c.outlier_deviations * max(sqrt((*s).ln_norm_variance), LEAST_DEVIATION);
    var ln_norm = ln_ratio(norm, Scaled(1.0, 0));
    if (*s).ln_norms >= c.outlier_window && ln_norm > ln_limit {
        judgement = Judgement(true, exp_fixed(add_float(Fixed(0, 0u), ln_limit)));
        ln_norm = ln_limit;
    }
    (*s).ln_norms = min((*s).ln_norms + 1u, c.outlier_window);
    let share = 1.0 / f32((*s).ln_norms);
    let off = ln_norm - mean;
    (*s).mean_ln_norm = mean + share * off;
    (*s).ln_norm_variance = (1.0 - share) * ((*s).ln_norm_variance + share * off * off);
    return judgement;
}
