//! Averages of the parameters: updated by the pass that writes the parameters, swapped in for evaluation.

use crate::error::{Error, require};
use crate::layout::average_kinds;

/// Average of a group's parameters over its steps, kept beside the parameters. Except for [`Averaging::ScheduleFree`] it does not affect
/// training.
///
/// The iterate `w_t` is what the parameters are after a step; `t` counts the steps that were not skipped, from 0, as for
/// [`Schedule`](crate::Schedule). The average starts at `t = start`, with that step's iterate, bit for bit: nothing of the
/// parameters before it enters, and no bias is left to correct. Until then there is no average: the parameters stand in for it.
/// From then on each step does
///
/// ```text
/// w̄ ← w̄ + a_k (w_t - w̄),    k = t - start + 1,  a_1 = 1
/// ```
///
/// with a weight `a_k` that is computed on the device from the exact number of steps. A skipped step leaves the average as it is, bit
/// for bit. The sum is rounded to f32 once a step: where `a_k (w_t - w̄)` is below half of the last place of `w̄`, the average rests.
///
/// Memory: 4 bytes per parameter. Traffic: 8 bytes per parameter and step, once the average has started.
///
/// [`Optimizer::encode_swap_averages`](crate::Optimizer::encode_swap_averages) and
/// [`CpuOptimizer::swap_averages`](crate::CpuOptimizer::swap_averages) exchange parameters and averages, to evaluate them in place;
/// [`Optimizer::encode_copy_averages`](crate::Optimizer::encode_copy_averages) and
/// [`CpuOptimizer::averages`](crate::CpuOptimizer::averages) read them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
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
    /// The exponential moving average: `a_k = 1 - decay` for `k > 1`. As `torch.optim.swa_utils.get_ema_multi_avg_fn` under
    /// `AveragedModel` it starts from the first iterate instead of from zero, so that it is unbiased in the sense that its weights add
    /// up to 1, but remembers the first iterate with weight `decay^(k-1)`: let it start once the parameters are worth remembering.
    Exponential {
        /// From 0 to below 1; the average looks back over about `1/(1 - decay)` steps.
        decay: f32,
        /// The first step that counts.
        start: u32,
    },
    /// Polynomial decay: `a_k = (1 + η)/(k + η)` (Shamir & Zhang 2013, arXiv:1212.1824, section 4). The weight of the iterate `j` in
    /// `w̄_k` grows as `j^η`: a mean over the last `1/(1 + η)` or so of all steps, however many there will be. `η = 0` is `Running`.
    PolynomialDecay {
        /// η, at least 0. DoG (Ivgi et al. 2023, arXiv:2302.12022) is evaluated with 8.
        eta: f32,
        /// The first step that counts.
        start: u32,
    },
    /// Schedule-free training (Defazio et al. 2024, *The Road Less Scheduled*, arXiv:2405.15682): no schedule and no number of steps
    /// has to be chosen, and the average is what is evaluated, at any time.
    ///
    /// Unlike the other averages this one takes part in the training. Gradients are taken at a point `y` between the average `x` and
    /// the sequence `z` that takes the steps. With the direction `u` of the rule and the learning rate `η_k`, at the k-th step that was
    /// not skipped (from 1 on):
    ///
    /// ```text
    /// z ← z - η_k u(∇f(y))           a decoupled weight decay acts on z:  z ← (1 - η_k λ) z - η_k u
    /// w_k = (η_k k)²,  c_k = w_k / (w_1 + … + w_k)
    /// x ← x + c_k (z - x)
    /// y ← x + 0.15 (z - x)
    /// ```
    ///
    /// `η_k` is the learning rate of the step as the record has it, from any regime, with its schedule and trust ratio; in the weights of
    /// [`ScheduleFreePlus`](crate::ScheduleFreePlus), a regime for schedule-free training alone, it is the largest so far. While it is 0
    /// nothing moves and nothing counts. A skipped step leaves `x`, `y`, `z` and the sum of the weights as they are, bit for bit. The sum
    /// is kept on the device as a mantissa and an exponent, so that it cannot overflow, and a loss that is rescaled by a power of
    /// two leaves `c_k` as it is.
    ///
    /// # What lies where, and what to evaluate and save
    /// **The caller's buffer holds `y` during training. Evaluate and publish `x`, not `y`.** `x` has no buffer of its own: it follows from
    /// `y` and `z`.
    /// - [`encode_swap_averages`](crate::Optimizer::encode_swap_averages) ([`swap_averages`](crate::CpuOptimizer::swap_averages) on the
    ///   host) puts `x` into the caller's buffer, and `y` back again at the second call. No step can be taken in between. `x` is
    ///   chosen such that `y` comes back bit for bit. A device whose compiler rounds that formula differently in two kernels may
    ///   bring some elements back one unit in the last place (of the largest of `x`, `y` and `z`) away. 16-bit parameters are as exact
    ///   as their [masters](crate::Rounding::Masters).
    /// - [`encode_copy_averages`](crate::Optimizer::encode_copy_averages), [`read_averages`](crate::Optimizer::read_averages) and, on the
    ///   host, [`copy_averages`](crate::CpuOptimizer::copy_averages) give `x` and leave everything as it is.
    /// - A checkpoint with parameters holds `y` as `parameters/NAME`, `z` as `base_iterates/NAME`, and `x` as `averages/NAME`, which is
    ///   the tensor to take out of it for inference.
    /// - **An application that saves its own buffer during training saves `y`.** The optimizer cannot notice that. Swap first, or copy
    ///   the averages.
    /// - Parameters that the caller writes between steps do not reach `z`, and the average is taken to be what follows from both. To train
    ///   on from other parameters, build the optimizer anew.
    ///
    /// # What it works with
    /// Rules without momentum, whose place `z` takes: [`Sgd`](crate::Sgd), [`SignSgd`](crate::SignSgd), and [`AdamW`](crate::AdamW) with `β₁ = 0`
    /// ([`Rule::adamw_without_momentum`](crate::Rule::adamw_without_momentum)). [`Averaging::fits`] tells. With momentum it diverges: use
    /// [`Averaging::polynomial_decay`] there. It is refused with [`AutoSgd`](crate::AutoSgd) and [`Curvature`](crate::Curvature), and for 16-bit
    /// parameters without masters.
    ///
    /// Coupled weight decay is a part of the gradient at `y`. The telemetry, the trust ratio and the distance of DoG and DoWG see `y`;
    /// the secant regimes go by the steps of `z`.
    ///
    /// # Cost
    /// 4 bytes per parameter for `z`, 8 bytes per parameter and step of traffic, and no pass of its own. Under Seesaw
    /// and Hypergradient `Sgd` and `SignSgd` keep no direction memory beside it, and pass 1 reads `y` and `z` in its place: they move 32 bytes
    /// per parameter and step. `x` is recovered from `y` at every step, so that its rounding errors grow with the square root of
    /// the number of steps, and are held together by the factor `1 - c_k`.
    ScheduleFree,
}

impl Averaging {
    /// Returns [`Averaging::PolynomialDecay`] from the first step on, with `η = 8`, as DoG is evaluated.
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

    /// Returns the number by which the learning-rate pass selects the weights: one of [`average_kinds`].
    pub(crate) fn kind(&self) -> u32 {
        match self {
            Averaging::Off => average_kinds::OFF,
            Averaging::Running { .. } | Averaging::PolynomialDecay { .. } => average_kinds::POLYNOMIAL,
            Averaging::Exponential { .. } => average_kinds::EXPONENTIAL,
            Averaging::ScheduleFree => average_kinds::SCHEDULE_FREE,
        }
    }

    /// The first step that counts.
    pub(crate) fn start(&self) -> u32 {
        match *self {
            Averaging::Off | Averaging::ScheduleFree => 0,
            Averaging::Running { start }
            | Averaging::Exponential { start, .. }
            | Averaging::PolynomialDecay { start, .. } => start,
        }
    }

    /// 1 + η, or the share 1 - decay of a new iterate.
    pub(crate) fn gain(&self) -> f32 {
        match *self {
            Averaging::Off | Averaging::ScheduleFree => 0.0,
            Averaging::Running { .. } => 1.0,
            Averaging::Exponential { decay, .. } => 1.0 - decay,
            Averaging::PolynomialDecay { eta, .. } => 1.0 + eta,
        }
    }

    /// Refuses numbers outside their ranges.
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
