//! Schedules: factors of the learning rate that depend only on the number of the step. They are evaluated on the device, so that a command
//! buffer can be replayed.

use crate::error::{Error, require};
use crate::layout::{numbers, schedule_kinds};

/// A factor of the learning rate as a function of the step, for any regime: `Regime::fixed(peak)` with a schedule is the usual scheduled
/// rate. No memory, no readback.
///
/// `t` counts the steps of the group that were not skipped, from 0. A factor never falls below 1e-6, so that ln η stays
/// finite. In the record `schedule_term` is the change of `ln` of the factor.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Schedule {
    /// The factor 1.
    #[default]
    Constant,
    /// `(t+1)/warmup` for `t < warmup`; then a half cosine from 1 to `last` (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without
    /// restarts): `last + (1-last) (1 + cos πx)/2`, `x = (t-warmup)/(steps-warmup)`; `last` from `steps` on.
    WarmupCosine {
        /// Steps of linear warm-up, fewer than `steps`.
        warmup: u32,
        /// Steps in all.
        steps: u32,
        /// The factor at the end, from 0 to 1.
        last: f32,
    },
    /// `(t+1)/warmup` for `t < warmup`; then `√(warmup/(t+1))` (Vaswani et al. 2017, arXiv:1706.03762, section 5.3, with its peak at 1).
    InverseSqrt {
        /// Steps of linear warm-up; at least 1.
        warmup: u32,
    },
    /// `factor^⌊t/every⌋`, as `torch.optim.lr_scheduler.StepLR`.
    Step {
        /// Steps between two falls; at least 1.
        every: u32,
        /// The factor of a fall, above 0.
        factor: f32,
    },
    /// Up from `first` to 1 over `rise` steps, then down to `last` over the rest, each a half cosine (Smith & Topin 2018,
    /// arXiv:1708.07120; as `torch.optim.lr_scheduler.OneCycleLR`, the rate's part of it).
    OneCycle {
        /// Steps of the rise, fewer than `steps`.
        rise: u32,
        /// Steps in all.
        steps: u32,
        /// The factor at the start, above 0 and at most 1; PyTorch has 1/25.
        first: f32,
        /// The factor at the end, from 0 to 1; PyTorch has 4e-6.
        last: f32,
    },
}

impl Schedule {
    /// The smallest factor.
    pub(crate) const FLOOR: f32 = numbers::FACTOR_FLOOR;

    /// Returns the name that tables and the command line use.
    pub fn name(&self) -> &'static str {
        match self {
            Schedule::Constant => "constant",
            Schedule::WarmupCosine { .. } => "warmup-cosine",
            Schedule::InverseSqrt { .. } => "inverse-sqrt",
            Schedule::Step { .. } => "step",
            Schedule::OneCycle { .. } => "one-cycle",
        }
    }

    /// Returns the number by which the learning-rate pass selects the formula: one of [`schedule_kinds`].
    pub(crate) fn kind(&self) -> u32 {
        match self {
            Schedule::Constant => schedule_kinds::CONSTANT,
            Schedule::WarmupCosine { .. } => schedule_kinds::WARMUP_COSINE,
            Schedule::InverseSqrt { .. } => schedule_kinds::INVERSE_SQRT,
            Schedule::Step { .. } => schedule_kinds::STEP,
            Schedule::OneCycle { .. } => schedule_kinds::ONE_CYCLE,
        }
    }

    /// Steps of the rise, or between two falls.
    pub(crate) fn rise(&self) -> u32 {
        match *self {
            Schedule::Constant => 0,
            Schedule::WarmupCosine { warmup, .. } | Schedule::InverseSqrt { warmup } => warmup,
            Schedule::Step { every, .. } => every,
            Schedule::OneCycle { rise, .. } => rise,
        }
    }

    /// Steps in all.
    pub(crate) fn steps(&self) -> u32 {
        match *self {
            Schedule::WarmupCosine { steps, .. } | Schedule::OneCycle { steps, .. } => steps,
            _ => 0,
        }
    }

    /// The factor at the start.
    pub(crate) fn first(&self) -> f32 {
        match *self {
            Schedule::OneCycle { first, .. } => first,
            _ => 1.0,
        }
    }

    /// The factor at the end; ln of the factor of a fall.
    pub(crate) fn last(&self) -> f32 {
        match *self {
            Schedule::WarmupCosine { last, .. } | Schedule::OneCycle { last, .. } => last,
            Schedule::Step { factor, .. } => f64::from(factor).ln() as f32,
            _ => 1.0,
        }
    }

    /// Refuses numbers outside their ranges.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let owner = || format!("schedule {}", self.name());
        let share = |field, x: f32| require((0.0..=1.0).contains(&x), owner, field, x, "between 0 and 1");
        match *self {
            Schedule::Constant => Ok(()),
            Schedule::WarmupCosine { warmup, steps, last } => {
                require(warmup < steps, owner, "warmup", warmup, "fewer than the steps in all")?;
                share("last", last)
            }
            Schedule::InverseSqrt { warmup } => require(warmup >= 1, owner, "warmup", warmup, "at least 1"),
            Schedule::Step { every, factor } => {
                require(every >= 1, owner, "every", every, "at least 1")?;
                require((Self::FLOOR..=1e6).contains(&factor), owner, "factor", factor, "between 1e-6 and 1e6")
            }
            Schedule::OneCycle { rise, steps, first, last } => {
                require(rise < steps, owner, "rise", rise, "fewer than the steps in all")?;
                share("first", first)?;
                share("last", last)
            }
        }
    }
}
