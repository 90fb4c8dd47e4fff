//! Schedules, which are factors of the learning rate that depend only on the number of the step. The device evaluates
//! them, so that a command buffer can be replayed.

use std::sync::Arc;

use crate::error::{Error, require};
use crate::layout::{TABLE_FACTORS, numbers};

mod constants;
mod table;

pub(crate) use table::Tables;
#[cfg(feature = "checkpoint")]
pub(crate) use table::serialize as serialize_factors;

/// Factor of the learning rate as a function of the step. It works with any regime: `Regime::fixed(peak)` with a
/// schedule is the usual scheduled rate. It needs no memory per parameter and no readback.
///
/// `t` counts the steps of the group that were not skipped, from 0. A factor never falls below 1e-6, so that ln η stays
/// finite. In the record, `schedule_term` is the change of `ln` of the factor.
///
/// If a schedule has a `warmup`, the factor is `(t+1)/warmup` for `t < warmup`, and the rest of the formula begins at
/// `t = warmup`. PyTorch's equivalent is a `SequentialLR` that begins with `LinearLR(start_factor=1/warmup,
/// total_iters=warmup-1)`. Hugging Face's `get_*_schedule_with_warmup` use `t/warmup`, whose first step does nothing. A
/// `warmup` of 0 disables the warm-up.
///
/// `steps` is the total number of steps, including the warm-up. After them the factor stays `last`. `x` is the
/// completed fraction of the fall, `(t-warmup)/(steps-warmup)`.
///
/// Under [`Regime::Seesaw`](crate::Regime::Seesaw) and `Hypergradient`, a rising schedule takes back the agreement that
/// was gained while the factor was lower. Otherwise they would undo a warm-up and end it at far too high a rate.
/// [`Seesaw`](crate::Seesaw) has the formula.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Schedule {
    /// The factor is always 1.
    #[default]
    Constant,
    /// Warm-up, then 1. It is Hugging Face's `get_constant_schedule_with_warmup`.
    WarmupConstant {
        /// Steps of linear warm-up, at least 1.
        warmup: u32,
    },
    /// Warm-up, then a half cosine from 1 to `last`: `last + (1-last) (1 + cos πx)/2` (Loshchilov & Hutter 2017,
    /// arXiv:1608.03983, eq. 5, without restarts). It is `torch.optim.lr_scheduler.CosineAnnealingLR` up to its
    /// `T_max`, and optax's `warmup_cosine_decay_schedule`.
    WarmupCosine {
        /// Steps of linear warm-up, fewer than `steps`.
        warmup: u32,
        /// Total number of steps.
        steps: u32,
        /// Factor at the end, from 0 to 1.
        last: f32,
    },
    /// Warm-up, then a straight line from 1 to `last`: `last + (1-last) (1-x)`. It is Hugging Face's
    /// `get_linear_schedule_with_warmup`, the default of its `Trainer`, and optax's `linear_schedule`.
    Linear {
        /// Steps of linear warm-up, fewer than `steps`.
        warmup: u32,
        /// Total number of steps.
        steps: u32,
        /// Factor at the end, from 0 to 1.
        last: f32,
    },
    /// Warm-up, then `last + (1-last) (1-x)^power`. It is `torch.optim.lr_scheduler.PolynomialLR`, Hugging Face's
    /// `get_polynomial_decay_schedule_with_warmup` and optax's `polynomial_schedule`.
    Polynomial {
        /// Steps of linear warm-up, fewer than `steps`.
        warmup: u32,
        /// Total number of steps.
        steps: u32,
        /// Exponent, above 0 and at most 10.
        power: f32,
        /// Factor at the end, from 0 to 1.
        last: f32,
    },
    /// Warm-up, then `factor^((t-warmup)/every)`. `torch.optim.lr_scheduler.ExponentialLR(γ)` is `every: 1, factor: γ`,
    /// with γ rounded to f32. optax's `exponential_decay` has both numbers.
    Exponential {
        /// Steps of linear warm-up.
        warmup: u32,
        /// Number of steps in which the rate is multiplied by `factor` once, at least 1.
        every: u32,
        /// Factor over `every` steps, from 1e-6 to 1e6.
        factor: f32,
    },
    /// Warm-up, then consecutive half cosines from 1 to `last`: `last + (1-last) (1 + cos πx)/2`, where `x` is the
    /// completed fraction of the cosine (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5). The first cosine takes
    /// `period` steps, and each later one `growth` times as many as the one before. It is
    /// `torch.optim.lr_scheduler.CosineAnnealingWarmRestarts` with `T_0 = period`, `T_mult = growth` and `eta_min =
    /// last` times the rate, and optax's `sgdr_schedule`.
    CosineRestarts {
        /// Steps of linear warm-up, which is not in the paper.
        warmup: u32,
        /// Steps of the first cosine, at least 1.
        period: u32,
        /// Ratio of the length of a cosine to that of the one before, at least 1.
        growth: u32,
        /// Factor at the end of each cosine, from 0 to 1.
        last: f32,
    },
    /// Warm-up, then 1, then `last + (1-last) d(x)` over the last `decay` steps, where `x` is their completed fraction
    /// and `d` is given by [`DecayShape`] (Hu et al. 2024, arXiv:2404.06395, section 4; Hägele et al. 2024,
    /// arXiv:2405.18392). The factor does not depend on `steps` until the fall begins, so that a run can be extended
    /// from a checkpoint of its stable part. It is Hugging Face's `get_wsd_schedule`.
    WarmupStableDecay {
        /// Steps of linear warm-up.
        warmup: u32,
        /// Total number of steps, at least `warmup + decay`.
        steps: u32,
        /// Steps of the fall, at least 1. A tenth to a fifth of the steps is usual.
        decay: u32,
        /// Factor at the end, from 0 to 1.
        last: f32,
        /// Shape of the fall.
        shape: DecayShape,
    },
    /// Warm-up, then `√(warmup/(t+1))` (Vaswani et al. 2017, arXiv:1706.03762, section 5.3, scaled to a peak of 1).
    InverseSqrt {
        /// Steps of linear warm-up, at least 1.
        warmup: u32,
    },
    /// `factor^⌊t/every⌋`, which is `torch.optim.lr_scheduler.StepLR`.
    Step {
        /// Steps between two falls, at least 1.
        every: u32,
        /// Factor of one fall, from 1e-6 to 1e6.
        factor: f32,
    },
    /// A half cosine from `first` up to 1 over `rise` steps, then a half cosine down to `last` over the remaining steps
    /// (Smith & Topin 2018, arXiv:1708.07120). It is the learning rate of `torch.optim.lr_scheduler.OneCycleLR`.
    OneCycle {
        /// Steps of the rise, fewer than `steps`.
        rise: u32,
        /// Total number of steps.
        steps: u32,
        /// Factor at the start, above 0 and at most 1. PyTorch uses 1/25.
        first: f32,
        /// Factor at the end, from 0 to 1. PyTorch uses 4e-6.
        last: f32,
    },
    /// Custom factors: `factors[i]` at step `i * every`, with linear interpolation as in `numpy.interp`. The last
    /// factor stays. With `every: 1` it is `torch.optim.lr_scheduler.LambdaLR`.
    ///
    /// The factors are in one uniform buffer of 16 KiB on the device. All groups of an optimizer together can have 4096
    /// factors. Groups with the same factors share them.
    ///
    /// ```
    /// use wgpu_optim::Schedule;
    ///
    /// // Up over 1000 steps, 3000 steps at the peak, and down to a tenth over 1000.
    /// let trapezium = Schedule::Table { factors: [0.0, 1.0, 1.0, 1.0, 1.0, 0.1].into(), every: 1000 };
    /// # let _ = trapezium;
    /// ```
    #[cfg_attr(feature = "checkpoint", serde(skip_deserializing))]
    Table {
        /// 1 to 4096 factors, each from 0 to 1e6.
        #[cfg_attr(feature = "checkpoint", serde(serialize_with = "table::serialize"))]
        factors: Arc<[f32]>,
        /// Steps from one factor to the next, at least 1.
        every: u32,
    },
}

/// Shape `d(x)` of the fall of [`Schedule::WarmupStableDecay`], where `x` is the completed fraction of the fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum DecayShape {
    /// `1 - √x`, which performed better than a line in Hägele et al. (2024, arXiv:2405.18392, section 3). It is Hugging
    /// Face's `"1-sqrt"`.
    #[default]
    OneMinusSqrt,
    /// `1 - x`.
    Linear,
    /// `(1 + cos πx)/2`.
    Cosine,
}

impl Schedule {
    /// Smallest factor of a schedule.
    pub(crate) const FLOOR: f32 = numbers::FACTOR_FLOOR;
    /// Largest factor that a fall or a table may have.
    const CEILING: f32 = 1e6;

    /// Returns every kind of schedule except [`Schedule::Table`] for a run of `steps` steps. Warm-ups take a twentieth
    /// of the steps, and falls end at 0 unless [`Schedule::summary`] says otherwise.
    pub fn all(steps: u32) -> Vec<Self> {
        let steps = steps.max(1);
        let warmup = steps / 20;
        // The product is in u64 because `steps` may be near the largest u32.
        let share = |part: u64, of: u64| (u64::from(steps) * part / of) as u32;
        vec![
            Schedule::Constant,
            Schedule::WarmupConstant { warmup: warmup.max(1) },
            Schedule::WarmupCosine { warmup, steps, last: 0.0 },
            Schedule::Linear { warmup, steps, last: 0.0 },
            Schedule::Polynomial { warmup, steps, power: 2.0, last: 0.0 },
            Schedule::Exponential { warmup, every: steps - warmup, factor: 0.01 },
            Schedule::CosineRestarts { warmup: 0, period: steps.div_ceil(7), growth: 2, last: 0.0 },
            Schedule::WarmupStableDecay {
                warmup,
                steps,
                decay: share(1, 5).max(1),
                last: 0.0,
                shape: DecayShape::OneMinusSqrt,
            },
            Schedule::InverseSqrt { warmup: warmup.max(1) },
            Schedule::Step { every: steps.div_ceil(3), factor: 0.1 },
            Schedule::OneCycle { rise: share(3, 10), steps, first: 0.04, last: 4e-6 },
        ]
    }

    /// Returns the name that tables and the command line use.
    pub fn name(&self) -> &'static str {
        match self {
            Schedule::Constant => "constant",
            Schedule::WarmupConstant { .. } => "warmup-constant",
            Schedule::WarmupCosine { .. } => "warmup-cosine",
            Schedule::Linear { .. } => "linear",
            Schedule::Polynomial { .. } => "polynomial",
            Schedule::Exponential { .. } => "exponential",
            Schedule::CosineRestarts { .. } => "cosine-restarts",
            Schedule::WarmupStableDecay { .. } => "warmup-stable-decay",
            Schedule::InverseSqrt { .. } => "inverse-sqrt",
            Schedule::Step { .. } => "step",
            Schedule::OneCycle { .. } => "one-cycle",
            Schedule::Table { .. } => "table",
        }
    }

    /// Returns a description of the schedule that [`Schedule::all`] has of this kind. The command line's help shows it.
    #[doc(hidden)]
    pub fn summary(&self) -> &'static str {
        match self {
            Schedule::Constant => "None",
            Schedule::WarmupConstant { .. } => "Warm-up over a twentieth of the steps, then constant",
            Schedule::WarmupCosine { .. } => "Warm-up over a twentieth of the steps, then half a cosine down to 0",
            Schedule::Linear { .. } => "Warm-up over a twentieth of the steps, then a line down to 0",
            Schedule::Polynomial { .. } => "Warm-up over a twentieth of the steps, then a parabola down to 0",
            Schedule::Exponential { .. } => "Warm-up over a twentieth of the steps, then exponentially to a hundredth",
            Schedule::CosineRestarts { .. } => "Three half cosines down to 0, each twice as long as the one before",
            Schedule::WarmupStableDecay { .. } => {
                "Warm-up over a twentieth of the steps, then constant, and down to 0 as 1 - √x over the last fifth"
            }
            Schedule::InverseSqrt { .. } => "Warm-up over a twentieth of the steps, then the inverse square root",
            Schedule::Step { .. } => "Divided by ten after each third of the steps",
            Schedule::OneCycle { .. } => {
                "Half a cosine from a twenty-fifth up over three tenths of the steps, then half a cosine down to 4e-6: PyTorch's defaults"
            }
            Schedule::Table { .. } => "Custom factors",
        }
    }

    /// Returns an error if a number is outside its range.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let owner = || format!("schedule {}", self.name());
        let positive = |field, x: u32| require(x >= 1, owner, field, x, "at least 1");
        let share = |x: f32| require((0.0..=1.0).contains(&x), owner, "last", x, "between 0 and 1");
        let fall = |field, x: u32, steps: u32, last: f32| {
            require(x < steps, owner, field, x, "fewer than the steps in all")?;
            share(last)
        };
        let factor =
            |x: f32| require((Self::FLOOR..=Self::CEILING).contains(&x), owner, "factor", x, "between 1e-6 and 1e6");
        match self {
            Schedule::Constant => Ok(()),
            &Schedule::WarmupConstant { warmup } | &Schedule::InverseSqrt { warmup } => positive("warmup", warmup),
            &Schedule::WarmupCosine { warmup, steps, last } | &Schedule::Linear { warmup, steps, last } => {
                fall("warmup", warmup, steps, last)
            }
            &Schedule::Polynomial { warmup, steps, power, last } => {
                require(power > 0.0 && power <= 10.0, owner, "power", power, "above 0 and at most 10")?;
                fall("warmup", warmup, steps, last)
            }
            &Schedule::Exponential { every, factor: of_fall, .. } | &Schedule::Step { every, factor: of_fall } => {
                positive("every", every)?;
                factor(of_fall)
            }
            &Schedule::CosineRestarts { period, growth, last, .. } => {
                positive("period", period)?;
                positive("growth", growth)?;
                share(last)
            }
            &Schedule::WarmupStableDecay { warmup, steps, decay, last, .. } => {
                positive("decay", decay)?;
                let rest = steps.saturating_sub(warmup);
                require(decay <= rest, owner, "decay", decay, "at most the steps that the warm-up leaves")?;
                share(last)
            }
            &Schedule::OneCycle { rise, steps, first, last } => {
                require((0.0..=1.0).contains(&first), owner, "first", first, "between 0 and 1")?;
                fall("rise", rise, steps, last)
            }
            Schedule::Table { factors, every } => {
                positive("every", *every)?;
                let count = factors.len();
                let most = TABLE_FACTORS as usize;
                require((1..=most).contains(&count), owner, "the number of factors", count, "from 1 to 4096")?;
                let outside = factors.iter().find(|factor| !(0.0..=Self::CEILING).contains(*factor));
                outside.map_or(Ok(()), |factor| require(false, owner, "factors", factor, "between 0 and 1e6"))
            }
        }
    }
}
