//! Trust ratio, a factor of a group's learning rate that keeps its steps in proportion to its parameters.

use crate::error::{Error, require};
use crate::layout::numbers::{TRUST_MAX, TRUST_MIN};
use crate::layout::{GroupConstants, GroupState, Scaled, ScopeSums, group_flags};

/// Factor of the learning rate that makes the step's length proportional to the parameters' norm, with any regime and
/// schedule:
///
/// ```text
/// η_t = η (regime, schedule) · coefficient ‖w_t‖ / ‖g_t + λ w_t‖
/// η_t = min(η (regime, schedule), coefficient ‖w_t‖ / ‖g_t + λ w_t‖)     with `cap`
/// ```
///
/// If either norm is 0, the factor is 1 (You, Gitman & Ginsburg 2017, arXiv:1708.03888, eq. 6, with the weight decay
/// inside the norm as in `optax.scale_by_trust_ratio`). For rules that step along signs, and for AdamW, `√d` replaces
/// the gradient's norm, because it is about the length of their direction
/// ([`Rule::is_scale_free`](crate::Rule::is_scale_free)). The ratio is clamped to `[1e-8, 1e8]`. After a gradient of
/// zero the last ratio is used. Like every learning rate in this crate, it multiplies the direction after the momentum.
///
/// With [`Group::per_tensor`](crate::Group::per_tensor) the ratio is layer-wise, which is its main use. A group with
/// several tensors has one ratio for all of them. The group must not share its norm.
///
/// The pass that writes `w_t` also measures `‖w_t‖`, without memory traffic. Before the first step, pass 1 measures it.
/// Parameters that the caller changes between two steps are therefore taken into account one step late.
///
/// A regime that derives its first rate from the length of the first step still takes a first step of that length. The
/// coefficient therefore only matters for regimes with a given rate, such as [`Regime::Fixed`](crate::Regime::Fixed).
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct TrustRatio {
    /// Coefficient, above 0. LARS uses 0.001 with rates above 1, and `optax` uses 1.
    pub coefficient: f32,
    /// Smallest value of coefficient times ratio, from 1e-8 to 1e8, or `None`. It also applies if the parameters are 0.
    ///
    /// With [`Rule::adafactor`](crate::Rule::adafactor) and a coefficient of 1 it is ε₂, the smallest root mean square
    /// of the parameters that steps are relative to (Shazeer & Stern 2018, arXiv:1804.04235, algorithm 4; 1e-3 in
    /// PyTorch).
    pub least: Option<f32>,
    /// If true, the ratio only lowers the learning rate: η becomes the smaller of η and coefficient times ratio, as in
    /// LARC. The first rate of a regime is then derived without the ratio. The default is false.
    ///
    /// The source's warm-up for networks with normalisation layers limits the effective rates of scale-invariant layers
    /// (Mehmeti-Göpel & Wand 2023, arXiv:2306.00700). With [`Group::per_tensor`](crate::Group::per_tensor), plain SGD
    /// and a coefficient of ½ no step is longer than half of its layer. The number ½ is this project's own choice.
    pub cap: bool,
}

impl Default for TrustRatio {
    /// Returns LARS with its coefficient of 0.001.
    fn default() -> Self {
        TrustRatio { coefficient: 1e-3, least: None, cap: false }
    }
}

impl TrustRatio {
    /// Returns an error if a number is outside its range.
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

/// Returns the factor of the learning rate for a direction of this length and the parameters after the last step. It is
/// 1 if either is 0 and there is no least value. Twin of `shaders/learning_rate/trust_ratio.wgsl`.
pub(crate) fn trust_of(c: &GroupConstants, sums: &ScopeSums, direction: Scaled, s: &GroupState) -> Scaled {
    let parameters =
        if s.momentum_started == 0 { Scaled::of_squares(sums.initial_square).root() } else { s.parameter_norm };
    if direction.is_zero() || parameters.is_zero() && c.trust_least == 0.0 {
        return Scaled::ONE;
    }
    let mut wanted = parameters.times(c.trust_coefficient).quotient(direction);
    if c.flags & group_flags::TRUST_CAPS != 0 {
        // There is no quotient by a rate of 0, and no factor changes it.
        if s.learning_rate == 0.0 {
            return Scaled::ONE;
        }
        wanted = wanted.quotient(Scaled::new(s.learning_rate, 0)).smaller(Scaled::ONE);
    }
    wanted
        .larger(Scaled::new(if c.trust_least > 0.0 { c.trust_least } else { TRUST_MIN }, 0))
        .smaller(Scaled::new(TRUST_MAX, 0))
}
