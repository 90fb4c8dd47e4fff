//! Averages of the parameters. The pass that writes the parameters updates them, and they are swapped in for
//! evaluation.

use crate::error::{Error, require};
use crate::layout::average_kinds;

/// Average of a group's parameters over its steps, kept beside the parameters. Except for [`Averaging::ScheduleFree`]
/// it does not affect training.
///
/// The iterate `w_t` is the parameters after step t. `t` counts the steps that were not skipped, from 0, as for
/// [`Schedule`](crate::Schedule). The average starts at `t = start` as a bit-exact copy of that step's iterate. Earlier
/// parameters do not enter it, so that there is no bias to correct. Before the start the parameters take the place of
/// the average. From the start on each step does
///
/// ```text
/// w̄ ← w̄ + a_k (w_t - w̄),    k = t - start + 1,  a_1 = 1
/// ```
///
/// with a weight `a_k` that the device computes from the exact number of steps. A skipped step leaves the average
/// bit-identical. The sum is rounded to f32 once a step. If `a_k (w_t - w̄)` is below half of the last place of `w̄`,
/// the average does not change.
///
/// Memory: 4 bytes per parameter. Traffic: 8 bytes per parameter and step, once the average has started.
///
/// [`Optimizer::encode_swap_averages`](crate::Optimizer::encode_swap_averages) and
/// [`CpuOptimizer::swap_averages`](crate::CpuOptimizer::swap_averages) exchange parameters and averages, to evaluate
/// the averages in place. [`Optimizer::encode_copy_averages`](crate::Optimizer::encode_copy_averages) and
/// [`CpuOptimizer::averages`](crate::CpuOptimizer::averages) read them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Averaging {
    /// Keeps no average.
    #[default]
    Off,
    /// The mean of the iterates from step `start` on: `a_k = 1/k` (Polyak & Juditsky 1992, SIAM J. Control Optim. 30(4); Ruppert 1988).
    Running {
        /// The first step that counts.
        start: u32,
    },
    /// The exponential moving average: `a_k = 1 - decay` for `k > 1`. Like `torch.optim.swa_utils.get_ema_multi_avg_fn`
    /// under `AveragedModel`, it starts from the first iterate instead of from zero. Its weights therefore add up to 1,
    /// but the first iterate keeps the weight `decay^(k-1)`. Start it once the parameters are good enough to be
    /// remembered.
    Exponential {
        /// Decay, at least 0 and below 1. The average covers about the last `1/(1 - decay)` steps.
        decay: f32,
        /// The first step that counts.
        start: u32,
    },
    /// Polynomial decay: `a_k = (1 + η)/(k + η)` (Shamir & Zhang 2013, arXiv:1212.1824, section 4). The weight of the
    /// iterate `j` in `w̄_k` grows as `j^η`, which makes it a mean over about the last `1/(1 + η)` of all steps, for
    /// any number of steps. `η = 0` is `Running`.
    PolynomialDecay {
        /// η, at least 0. DoG (Ivgi et al. 2023, arXiv:2302.12022) was evaluated with 8.
        eta: f32,
        /// The first step that counts.
        start: u32,
    },
    /// Schedule-free training (Defazio et al. 2024, *The Road Less Scheduled*, arXiv:2405.15682). It needs no schedule
    /// and no number of steps, and the average can be evaluated at any time.
    ///
    /// Unlike the other averages it takes part in the training. Gradients are taken at a point `y` between the average
    /// `x` and the sequence `z` that takes the steps. With the direction `u` of the rule and the learning rate `η_k`,
    /// at the k-th step that was not skipped (counted from 1):
    ///
    /// ```text
    /// z ← z - η_k u(∇f(y))           a decoupled weight decay acts on z:  z ← (1 - η_k λ) z - η_k u
    /// w_k = (η_k k)²,  c_k = w_k / (w_1 + … + w_k)
    /// x ← x + c_k (z - x)
    /// y ← x + 0.15 (z - x)
    /// ```
    ///
    /// `η_k` is the learning rate of the step's record. It may come from any regime and includes schedule and trust
    /// ratio. For the regime [`ScheduleFreePlus`](crate::ScheduleFreePlus), the weights use the largest `η` so far.
    /// While `η_k` is 0, nothing moves and no step is counted. A skipped step leaves `x`, `y`, `z` and the sum of the
    /// weights bit-identical. The device keeps the sum as a mantissa and an exponent, so that it cannot overflow and
    /// rescaling the loss by a power of two does not change `c_k`.
    ///
    /// # Buffers, evaluation and saving
    /// **The caller's buffer holds `y` during training. Evaluate and publish `x`, not `y`.** `x` has no buffer of its
    /// own, because it follows from `y` and `z`.
    ///
    /// - [`encode_swap_averages`](crate::Optimizer::encode_swap_averages) (on the host
    ///   [`swap_averages`](crate::CpuOptimizer::swap_averages)) puts `x` into the caller's buffer, and `y` back at the
    ///   second call. No step can be taken in between. `x` is chosen such that `y` comes back bit for bit. If a
    ///   device's compiler rounds the formula differently in two kernels, some elements may differ by one unit in the
    ///   last place of the largest of `x`, `y` and `z`. 16-bit parameters are as exact as their
    ///   [masters](crate::Rounding::Masters).
    /// - [`encode_copy_averages`](crate::Optimizer::encode_copy_averages),
    ///   [`read_averages`](crate::Optimizer::read_averages) and, on the host,
    ///   [`copy_averages`](crate::CpuOptimizer::copy_averages) return `x` and change nothing.
    /// - A checkpoint with parameters holds `y` as `parameters/NAME`, `z` as `base_iterates/NAME`, and `x` as
    ///   `averages/NAME`. Use `averages/NAME` for inference.
    /// - **An application that saves its own buffer during training saves `y`.** The optimizer cannot detect that. Swap
    ///   first, or copy the averages.
    /// - Parameters that the caller writes between steps do not change `z`, and the average is then computed from both.
    ///   To continue from other parameters, build a new optimizer.
    ///
    /// # Supported rules
    /// Rules without momentum, because `z` replaces it: [`Sgd`](crate::Sgd), [`SignSgd`](crate::SignSgd), and
    /// [`AdamW`](crate::AdamW) with `β₁ = 0` ([`Rule::adamw_without_momentum`](crate::Rule::adamw_without_momentum)).
    /// [`Averaging::fits`] tests this. For rules with momentum, with which it would diverge, use
    /// [`Averaging::polynomial_decay`]. It is refused with [`AutoSgd`](crate::AutoSgd),
    /// [`Curvature`](crate::Curvature), [`Prodigy`](crate::Prodigy) and [`Mechanic`](crate::Mechanic), and for 16-bit
    /// parameters without masters.
    ///
    /// Coupled weight decay is part of the gradient at `y`. The telemetry, the trust ratio and the distance of DoG and
    /// DoWG use `y`. The secant regimes use the steps of `z`.
    ///
    /// # Cost
    /// Memory: 4 bytes per parameter for `z`. Traffic: 8 bytes per parameter and step. There is no extra pass. Under
    /// Seesaw and Hypergradient, `Sgd` and `SignSgd` keep no direction memory. Pass 1 reads `y` and `z` instead, and a
    /// step moves 32 bytes per parameter. Every step recovers `x` from `y`, so that its rounding errors grow with the
    /// square root of the number of steps, and the factor `1 - c_k` bounds them.
    ScheduleFree,
}

impl Averaging {
    /// Returns [`Averaging::PolynomialDecay`] from the first step on, with `η = 8` as in the evaluation of DoG.
    pub fn polynomial_decay() -> Self {
        Averaging::PolynomialDecay { eta: 8.0, start: 0 }
    }

    /// Returns the name that tables and the command line use.
    pub fn name(&self) -> &'static str {
        match self {
            Averaging::Off => "off",
            Averaging::Running { .. } => "running",
            Averaging::Exponential { .. } => "exponential",
            Averaging::PolynomialDecay { .. } => "polynomial",
            Averaging::ScheduleFree => "schedule-free",
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        *self != Averaging::Off
    }

    /// Returns the number by which the learning-rate pass selects the weights, one of [`average_kinds`].
    pub(crate) fn kind(&self) -> u32 {
        match self {
            Averaging::Off => average_kinds::OFF,
            Averaging::Running { .. } | Averaging::PolynomialDecay { .. } => average_kinds::POLYNOMIAL,
            Averaging::Exponential { .. } => average_kinds::EXPONENTIAL,
            Averaging::ScheduleFree => average_kinds::SCHEDULE_FREE,
        }
    }

    /// Returns the first step that counts.
    pub(crate) fn start(&self) -> u32 {
        match *self {
            Averaging::Off | Averaging::ScheduleFree => 0,
            Averaging::Running { start }
            | Averaging::Exponential { start, .. }
            | Averaging::PolynomialDecay { start, .. } => start,
        }
    }

    /// Returns 1 + η, or the weight 1 - decay of a new iterate.
    pub(crate) fn gain(&self) -> f32 {
        match *self {
            Averaging::Off | Averaging::ScheduleFree => 0.0,
            Averaging::Running { .. } => 1.0,
            Averaging::Exponential { decay, .. } => 1.0 - decay,
            Averaging::PolynomialDecay { eta, .. } => 1.0 + eta,
        }
    }

    /// Returns an error if a number is outside its range.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let owner = || format!("averaging {}", self.name());
        match *self {
            Averaging::Off | Averaging::Running { .. } | Averaging::ScheduleFree => Ok(()),
            Averaging::Exponential { decay, .. } => {
                require((0.0..1.0).contains(&decay), owner, "decay", decay, "at least 0 and below 1")
            }
            Averaging::PolynomialDecay { eta, .. } => {
                require(eta.is_finite() && eta >= 0.0, owner, "eta", eta, "finite and at least 0")
            }
        }
    }
}
