//! Outliers of the gradient norm. Twin of `shaders/learning_rate/outliers.wgsl`.

use crate::layout::numbers::LEAST_DEVIATION;
use crate::layout::{Fixed, GroupConstants, GroupState, Scaled};

/// Judges a norm by the previous norms, and remembers it. Returns the limit if the norm is an outlier above it. An
/// outlier is remembered as the limit, so that the limit follows a lasting change.
pub(crate) fn judge_norm(c: &GroupConstants, norm: Scaled, s: &mut GroupState) -> Option<Scaled> {
    if c.outlier_deviations <= 0.0 || norm.is_zero() {
        return None;
    }
    let mean = s.mean_ln_norm;
    let ln_limit = mean + c.outlier_deviations * s.ln_norm_variance.sqrt().max(LEAST_DEVIATION);
    let ln_norm = norm.ln_ratio(Scaled::ONE);
    let outlier = s.ln_norms >= c.outlier_window && ln_norm > ln_limit;
    let ln_norm = if outlier { ln_limit } else { ln_norm };
    s.ln_norms = (s.ln_norms + 1).min(c.outlier_window);
    let share = 1.0 / s.ln_norms as f32;
    let off = ln_norm - mean;
    s.mean_ln_norm = mean + share * off;
    s.ln_norm_variance = (1.0 - share) * (s.ln_norm_variance + share * off * off);
    outlier.then(|| Fixed::default().add_float(ln_limit).exp())
}
