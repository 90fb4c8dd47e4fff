//! Policy for gradients that are not finite, and dynamic loss scaling.

use crate::error::{Error, require};
use crate::group::GroupConfig;
use crate::layout::{GroupConstants, group_flags};

/// Policy for steps whose gradient or loss is not finite. Every policy except [`Unchecked`](NonFinitePolicy::Unchecked) skips such a step:
/// parameters, momentum and the regime's state keep their bits, and the record names the tensor and the element. The policy determines what happens
/// afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum NonFinitePolicy {
    /// Training continues after any number of skipped steps.
    #[default]
    Skip,
    /// Training halts after `after` skipped steps in a row. From then on no step changes anything, and the caller gets
    /// [`ErrorKind::Halted`](crate::ErrorKind::Halted). Compare `optax.apply_if_finite(max_consecutive_errors)`, and DeepSpeed at its smallest loss
    /// scale.
    ///
    /// The device counts the steps, so that no step waits for the host. All steps after the halt are skipped, including steps that were already
    /// recorded and steps whose gradients are finite. [`Flags::halted`](crate::Flags::halted) marks their records. The host gets the error from
    /// [`drain_records`](crate::Optimizer::drain_records), [`try_drain_records`](crate::Optimizer::try_drain_records) and the steps of a
    /// [`CpuOptimizer`](crate::CpuOptimizer). [`resume`](crate::Optimizer::resume) continues training.
    ///
    /// Steps in which an element kept its value because the new value was out of range ([`Record::overflow`](crate::Record::overflow)) have a
    /// separate count. Training also halts after `after` such steps in a row, except over several ranks, because a rank does not know about the
    /// elements of the other ranks.
    ///
    /// With a [`LossScaler`] a skipped step counts only if the scale was already at its smallest value. Otherwise the scale is assumed to be the
    /// cause and is halved.
    Error {
        /// Number of skipped steps in a row, at least 1.
        after: u32,
    },
    /// Gradients are not checked unless their norm is needed for something else, as in `torch.optim`. A step then reads every gradient only once. In
    /// f32 it moves 12 bytes per parameter instead of 16 for SGD, 20 instead of 24 with momentum, and 28 instead of 32 for AdamW.
    ///
    /// This applies to groups with [`Regime::fixed`](crate::Regime::fixed), with or without a schedule, that have neither a clip by norm nor a trust
    /// ratio and share their norm only with groups of the same kind. All other groups are measured as with [`Skip`](NonFinitePolicy::Skip), and so
    /// are all groups of an optimizer with a global clip, [`NormOutliers`] or a [`LossScaler`]. A gradient element of a measured group that is not
    /// finite skips the step of all groups.
    ///
    /// For a group that is not measured:
    /// - The record's norms are NaN, and its flag [`unmeasured`](crate::Flags::unmeasured) is set.
    /// - Elements with a NaN or infinite gradient are not protected. With momentum or averages the damage may last. Rules with second moments clamp
    ///   gradients to 1.8e19, and a device may treat a NaN as this limit. The element then takes one step of ordinary length, which is not reported,
    ///   and hardly moves until its second moment has fallen. A parameter whose new value would be infinite or NaN usually keeps the old one, and
    ///   [`Record::overflow`](crate::Record::overflow) reports it. A driver that compiles arithmetic on the assumption that such values do not occur
    ///   may store the new value.
    /// - [`Controls::clip_norm`](crate::Controls::clip_norm) cannot be set.
    Unchecked,
}

impl NonFinitePolicy {
    /// Returns the number of skipped steps in a row after which training halts, or 0 for never.
    pub(crate) fn halt_after(self) -> u32 {
        match self {
            NonFinitePolicy::Skip | NonFinitePolicy::Unchecked => 0,
            NonFinitePolicy::Error { after } => after,
        }
    }

    fn validate(self) -> Result<(), Error> {
        require(
            self != NonFinitePolicy::Error { after: 0 },
            || "optimizer".to_owned(),
            "NonFinitePolicy::Error::after",
            0,
            "at least 1 (NonFinitePolicy::Skip never halts)",
        )
    }
}

/// Treatment of steps whose gradient norm is an outlier, which is a finite norm far above those of the previous steps. The device decides without a
/// readback, and [`Flags::outlier`](crate::Flags::outlier) reports it.
///
/// A norm n is an outlier if ln n is more than `deviations` standard deviations above its mean over about the last `window` steps. (Mean and variance
/// are exponential moving averages that begin as plain averages.) The logarithm is used because norms vary by factors, and because the scale of the
/// loss then does not matter. The standard deviation counts as at least 0.01. No norm is an outlier before `window` norms have been measured. An
/// outlier enters the mean as the norm at which outliers begin, so that the mean follows a lasting change after some steps.
///
/// The norm is the one that the group's regime uses: the norm of the group, or of all groups that [share](crate::Group::share_norm) it. A step leaves
/// out only the groups with this norm. For a decision about the whole model, use a global norm
/// ([`global_norm`](crate::OptimizerBuilder::global_norm)).
///
/// Compare llm.c's outlier detector and OLMo-core's `SkipStepOptimizer`, which skip, and ZClip (Kumar et al. 2025, arXiv:2504.02507), which
/// clips. They use the norm itself in place of its logarithm.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum NormOutliers {
    /// Leaves the groups with this norm unchanged, including momentum and the regime's state. The step does not count for [`NonFinitePolicy::Error`].
    Skip {
        /// Standard deviations above the mean, above 0. llm.c and OLMo use 3 to 6.
        deviations: f32,
        /// Steps, at least 2. llm.c and OLMo use 128.
        window: u32,
    },
    /// Clips the gradient to the norm at which outliers begin.
    Clip {
        /// Standard deviations above the mean, above 0. ZClip uses 2.5.
        deviations: f32,
        /// Steps, at least 2.
        window: u32,
    },
}

impl NormOutliers {
    fn numbers(self) -> (f32, u32) {
        let (NormOutliers::Skip { deviations, window } | NormOutliers::Clip { deviations, window }) = self;
        (deviations, window)
    }

    fn validate(self) -> Result<(), Error> {
        let owner = || "norm outliers".to_owned();
        let (deviations, window) = self.numbers();
        let fits = deviations > 0.0 && deviations <= 1e6;
        require(fits, owner, "deviations", deviations, "above 0 and at most 1e6")?;
        require((2..=1 << 20).contains(&window), owner, "window", window, "between 2 and 2^20")
    }
}

/// Dynamic loss scale on the device, like `torch.amp.GradScaler` (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2). It keeps
/// gradients that pass through 16-bit numbers from underflowing.
///
/// The caller's kernels multiply the loss (or the gradient of the loss by the outputs) by the f32 in
/// [`Optimizer::loss_scale`](crate::Optimizer::loss_scale), so that all gradients arrive multiplied by it. The step divides it out: rule, regime,
/// clip, decay and record see the true gradient. A step whose gradient is not finite is skipped and halves the scale. After `growth_interval` good
/// steps in a row the scale doubles. Both happen in order on the device, so that the next gradients are computed with the scale that will be divided
/// out of them, even within one submission.
///
/// Scales are powers of two, so that dividing them out is exact: with any scale the parameters have the same bits as without one, unless a true
/// gradient is too small for a normal f32 (2⁻¹²⁶). The norm is correct even then.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct LossScaler {
    /// Scale of the first step. A power of two.
    pub initial_scale: f32,
    /// Number of good steps in a row after which the scale doubles, at least 1.
    pub growth_interval: u32,
    /// Smallest scale, at least 1. A power of two.
    pub min_scale: f32,
    /// Largest scale. A power of two.
    pub max_scale: f32,
}

/// Starts at 2¹⁶ and doubles every 2000 good steps (torch), between 1 (DeepSpeed) and 2²⁴ (apex).
impl Default for LossScaler {
    fn default() -> Self {
        LossScaler { initial_scale: 65536.0, growth_interval: 2000, min_scale: 1.0, max_scale: 16_777_216.0 }
    }
}

impl LossScaler {
    /// Returns a loss scaler whose scale never changes.
    pub fn fixed(scale: f32) -> Self {
        LossScaler { initial_scale: scale, min_scale: scale, max_scale: scale, ..LossScaler::default() }
    }

    fn validate(self) -> Result<(), Error> {
        let owner = || "loss scaler".to_owned();
        for (field, scale, smallest, largest, expected) in [
            ("min_scale", self.min_scale, 1.0, MAX_SCALE, "a power of two between 1 and 2^126"),
            ("max_scale", self.max_scale, self.min_scale, MAX_SCALE, "a power of two between min_scale and 2^126"),
            (
                "initial_scale",
                self.initial_scale,
                self.min_scale,
                self.max_scale,
                "a power of two between min_scale and max_scale",
            ),
        ] {
            let is_power = scale.to_bits() & MANTISSA_BITS == 0;
            let fits = (smallest..=largest).contains(&scale);
            require(is_power && fits, owner, field, scale, expected)?;
        }
        require(
            self.growth_interval >= 1,
            owner,
            "growth_interval",
            self.growth_interval,
            "at least 1 (LossScaler::fixed never grows)",
        )
    }
}

/// 2^126, whose inverse is the smallest normal f32.
const MAX_SCALE: f32 = 8.507_059e37;
const MANTISSA_BITS: u32 = 0x007f_ffff;

/// Non-finite policy and loss scaler of the optimizer.
#[derive(Debug, Clone, Copy, Default)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub(crate) struct Safeguards {
    pub(crate) nonfinite: NonFinitePolicy,
    pub(crate) loss_scaler: Option<LossScaler>,
    pub(crate) norm_outliers: Option<NormOutliers>,
    /// Largest norm of the gradients of all groups.
    pub(crate) global_clip_norm: Option<f32>,
}

impl Safeguards {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        self.nonfinite.validate()?;
        self.loss_scaler.map_or(Ok(()), LossScaler::validate)?;
        self.norm_outliers.map_or(Ok(()), NormOutliers::validate)?;
        GroupConfig::check_clip(self.global_clip_norm.unwrap_or(f32::INFINITY), || "global clip".to_owned())
    }

    /// Returns the largest norm of the gradients of all groups, or `f32::MAX` without such a clip.
    pub(crate) fn global_clip(&self) -> f32 {
        self.global_clip_norm.unwrap_or(f32::MAX).min(f32::MAX)
    }

    /// Returns true if the gradients of all groups are measured, even if a group does not need it.
    pub(crate) fn measures_every_group(&self) -> bool {
        let clips = self.global_clip() < f32::MAX;
        self.nonfinite != NonFinitePolicy::Unchecked
            || clips
            || self.loss_scaler.is_some()
            || self.norm_outliers.is_some()
    }

    /// Writes the settings into a group's constants for the learning-rate pass.
    pub(crate) fn write_to(&self, constants: &mut GroupConstants) {
        constants.halt_after = self.nonfinite.halt_after();
        constants.halt_after_overflows = constants.halt_after;
        if let Some(scaler) = self.loss_scaler {
            constants.loss_scale_first = exponent_of(scaler.initial_scale);
            constants.loss_scale_least = exponent_of(scaler.min_scale);
            constants.loss_scale_most = exponent_of(scaler.max_scale);
            constants.growth_interval = scaler.growth_interval;
        }
        constants.global_clip = self.global_clip();
        if let Some(outliers) = self.norm_outliers {
            (constants.outlier_deviations, constants.outlier_window) = outliers.numbers();
            if matches!(outliers, NormOutliers::Clip { .. }) {
                constants.flags |= group_flags::OUTLIER_CLIPS;
            }
        }
    }
}

/// Returns e of a scale 2^e.
fn exponent_of(scale: f32) -> i32 {
    (scale.to_bits() >> 23) as i32 - 127
}
