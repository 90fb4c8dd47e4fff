//! Trust ratio: a factor of a group's learning rate that keeps its steps in proportion to its parameters.

use crate::error::{Error, require};
use crate::layout::numbers::{TRUST_MAX, TRUST_MIN};
use crate::layout::{GroupConstants, GroupState, Scaled, ScopeSums};

/// A factor of the learning rate that makes the step's length proportional to the parameters' norm, over any regime and schedule:
///
/// ```text
/// η_t = η (regime, schedule) · coefficient ‖w_t‖ / ‖g_t + λ w_t‖
/// ```
///
/// and 1 in the place of coefficient and ratio where either norm is 0 (You, Gitman & Ginsburg 2017, arXiv:1708.03888, eq. 6, with the weight decay
/// inside the norm as in `optax.scale_by_trust_ratio`). Rules that step along signs, and AdamW, have `√d` in the place of the gradient's norm, which
/// is about the length of that direction ([`Rule::is_scale_free`](crate::Rule::is_scale_free)). The ratio is kept within `[1e-8, 1e8]`; after
/// a gradient of zero the last ratio is used. Like every learning rate here it multiplies the direction after the momentum.
///
/// It is meant for [`Group::per_tensor`](crate::Group::per_tensor), which makes it layer-wise; a group with several tensors has one ratio
/// for all of them. The group's norm must be its own.
///
/// `‖w_t‖` is measured by the pass that writes `w_t`, at no cost in memory traffic, and before the first step by the first pass. Parameters
/// that the caller changes between two steps are therefore taken into account one step late.
///
/// A regime that finds its first rate by the length of the first step still takes a first step of that length, so that the coefficient
/// matters for the regimes that are given a rate, such as [`Regime::Fixed`](crate::Regime::Fixed).
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub struct TrustRatio {
    /// Above 0. LARS has 0.001 beside rates above 1; `optax` has 1.
    pub coefficient: f32,
    /// The smallest value of coefficient times ratio, from 1e-8 to 1e8, if there is one: also where the parameters are 0.
    ///
    /// With [`Rule::adafactor`](crate::Rule::adafactor) and a coefficient of 1 it is ε₂, the smallest root mean square of the parameters to
    /// which steps are relative (Shazeer & Stern 2018, arXiv:1804.04235, algorithm 4; 1e-3 in PyTorch).
    pub least: Option<f32>,
}

impl Default for TrustRatio {
    /// LARS's 0.001.
    fn default() -> Self {
        TrustRatio { coefficient: 1e-3, least: None }
    }
}

impl TrustRatio {
    /// Refuses numbers outside their ranges.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        require(
            self.coefficient.is_finite() && self.coefficient >= f32::MIN_POSITIVE,
            || "trust ratio".to_owned(),
            "coefficient",
            self.coefficient,
            "finite, above 0 and not denormal",
        )?;
        self.least.map_or(Ok(()), |least| {
            let in_range = (TRUST_MIN..=TRUST_MAX).contains(&least);
            require(in_range, || "trust ratio".to_owned(), "least", least, "from 1e-8 to 1e8")
        })
    }
}

/// The ratio for a direction of this length, of the parameters as they were after the last step, and 1 where either is 0 and there is no least: twin of
/// `shaders/learning_rate/trust_ratio.wgsl`.
pub(crate) fn trust_of(c: &GroupConstants, sums: &ScopeSums, direction: Scaled, s: &GroupState) -> Scaled {
    let parameters =
        if s.momentum_started == 0 { Scaled::of_squares(sums.initial_square).root() } else { s.parameter_norm };
    if direction.is_zero() || parameters.is_zero() && c.trust_least == 0.0 {
        return Scaled::ONE;
    }
    parameters
        .times(c.trust_coefficient)
        .quotient(direction)
        .larger(Scaled::new(if c.trust_least > 0.0 { c.trust_least } else { TRUST_MIN }, 0))
        .smaller(Scaled::new(TRUST_MAX, 0))
}
