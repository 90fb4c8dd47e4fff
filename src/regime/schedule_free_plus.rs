//! ScheduleFree+. Its device code is `shaders/regime/schedule_free_plus.wgsl`.

use super::{Kernel, LearningRateRegime, Needs, RATE_MAX, Regime, require_above_0};
use crate::averaging::Averaging;
use crate::error::{Error, require};
use crate::layout::terms::{LOSS_TERM, NORM_TERM};
use crate::layout::{GroupConstants, GroupState, RawRecord, RegimeConstants, Scaled, shared_structs};
use crate::reference::{Rate, RegimeReference, RegimeStep, dot};
use crate::regime::formula::{MAX_FACTOR, ln_ratio_or_0, set_rate};
use crate::regime::gradient::{Gradient, direction_length, is_sign_rule};
use crate::rule::Rule;

/// ScheduleFree+ (arXiv:2605.19095): Polyak's rate for [schedule-free training](crate::Averaging::ScheduleFree), which
/// it requires. With the loss f and the gradient g, both at y, and the sequence z that takes the steps,
///
/// ```text
/// a = f - f* - ⟨g, y - z⟩
/// η = c max(0, a)/n²                 for Sgd, whose step is along the gradient
/// η = c max(0, a)/(√(π/2) Σ|g|)      for SignSgd and rules with a second moment, as published
/// ```
///
/// For a convex loss with its minimum f* at w*, ⟨g, z - w*⟩ = ⟨g, y - w*⟩ - ⟨g, y - z⟩ is at least f - f* - ⟨g, y - z⟩
/// = a. The step z - η g therefore ends at a squared distance from w* of at most ‖z - w*‖² - 2 η a + η² n², which is
/// smallest at η = a/n². A step along the signs lowers the same linear model of the loss by η Σ|g|. The factor √(π/2)
/// is the paper's: for normally distributed elements √(π/2) Σ|g| is √d n.
///
/// The device reads the loss, and nothing waits for it. The regime keeps no memory beside z. Pass 1 reads y and z and
/// measures ⟨g, y - z⟩ and Σ|g| with the norm. If Σ|g| overflows f32, √d n replaces √(π/2) Σ|g|.
///
/// As in the published code, a step is weighted in the average by the largest rate so far, so that the average also
/// approaches z while η is small. The differences from the published code are:
///
/// - The change of ln η in one step is limited to ±ln 10. If `a ≤ 0`, the rate falls by that limit. The published rate
///   is 0.
/// - The weights of the average grow with the square of the step's number.
/// - y lies at 0.15 z + 0.85 x and not at 0.1 z + 0.9 x.
/// - There is no momentum.
/// - A decoupled weight decay applies to z and is multiplied by η and not by η².
/// - Each group divides the loss by its own norm. For one norm, as published, use `share_norm` or `global_norm`.
///
/// In the record, `loss_term` is `ln` of the growth of a, and `norm_term` is minus `ln` of the growth of the divisor.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct ScheduleFreePlus {
    /// f*, the smallest possible loss. The default is 0.
    pub optimum: f32,
    /// c, the factor of the rate. The default is 1.
    pub factor: f32,
}

impl Default for ScheduleFreePlus {
    fn default() -> Self {
        ScheduleFreePlus { optimum: 0.0, factor: 1.0 }
    }
}

impl Regime {
    /// Returns [`ScheduleFreePlus`] with `f* = 0` and `c = 1`.
    pub fn schedule_free_plus() -> Self {
        Regime::ScheduleFreePlus(ScheduleFreePlus::default())
    }
}

pub(super) fn examples() -> [ScheduleFreePlus; 1] {
    [ScheduleFreePlus::default()]
}

impl LearningRateRegime for ScheduleFreePlus {
    fn name(&self) -> &'static str {
        "schedule-free-plus"
    }

    fn summary(&self) -> &'static str {
        "Loss over norm, for schedule-free training"
    }

    fn kernel(&self) -> &'static Kernel {
        &KERNEL
    }

    fn needs(&self) -> Needs {
        Needs { loss: true, schedule_free: true, ..Needs::NOTHING }
    }

    fn fits(&self, rule: &Rule) -> bool {
        Averaging::ScheduleFree.fits(rule)
    }

    fn first_step(&self, _: &Rule, _: &Averaging) -> f32 {
        0.0
    }

    fn constants(&self, _: &Rule) -> RegimeConstants {
        RegimeConstants::of(&ScheduleFreePlusConstants { factor: self.factor, optimum: self.optimum })
    }

    fn validate(&self) -> Result<(), Error> {
        require(self.optimum.is_finite(), || self.owner(), "optimum", self.optimum, "finite")?;
        require_above_0(self, "factor", self.factor)
    }

    fn reference(&self, _: &Rule) -> Box<dyn RegimeReference> {
        Box::new(Reference { regime: *self, rate_size: 0.0 })
    }
}

shared_structs! {
    /// Constants of ScheduleFree+.
    pub(crate) struct ScheduleFreePlusConstants {
        /// c.
        pub(crate) factor: f32,
        /// f*.
        pub(crate) optimum: f32,
    }

    /// State of ScheduleFree+.
    pub(crate) struct ScheduleFreePlusState {
        /// a of the last step with a gradient, at least 0.
        pub(crate) last_gap: Scaled,
        /// n² or √(π/2) Σ|g| of that step.
        pub(crate) last_divisor: Scaled,
        /// Largest η of a step, with schedule and trust ratio.
        pub(crate) largest_rate: f32,
    }
}

/// Numbers of the formula.
pub(crate) mod numbers {
    crate::layout::shared_constants! { ""
        /// √(π/2)
        pub const ROOT_OF_HALF_PI: f32 = 1.253_314_1;
        /// Smallest scaled Σ|g| that is used as it is.
        pub const SMALLEST_SUM: f32 = f32::MIN_POSITIVE;
    }
}

pub(super) const KERNEL: Kernel = Kernel {
    constants: Some(ScheduleFreePlusConstants::DECLARED),
    state: Some(ScheduleFreePlusState::DECLARED),
    follow,
    averaged_rate,
    own_constants: numbers::wgsl,
    ..Kernel::new("schedule_free_plus", include_str!("../../shaders/regime/schedule_free_plus.wgsl"))
};

fn follow(c: &GroupConstants, g: &Gradient, s: &mut GroupState, r: &mut RawRecord) {
    let k: &ScheduleFreePlusConstants = c.regime_constants.own();
    let own: &mut ScheduleFreePlusState = s.regime.own_mut();
    let (gap, divisor) = (gap(k, g), divisor(c, g));
    r.terms[LOSS_TERM as usize] = ln_ratio_or_0(gap, own.last_gap);
    r.terms[NORM_TERM as usize] = -ln_ratio_or_0(divisor, own.last_divisor);
    (own.last_gap, own.last_divisor) = (gap, divisor);
    let wanted = if gap.is_zero() { gap } else { gap.times(k.factor).quotient(divisor) };
    set_rate(wanted, MAX_FACTOR, RATE_MAX, g, s, r);
}

/// Computes a, at least 0.
fn gap(k: &ScheduleFreePlusConstants, g: &Gradient) -> Scaled {
    let excess = g.sums.loss - k.optimum;
    let along = if g.sums.slow_dot.is_finite() { g.sums.slow_dot } else { 0.0 };
    let of_loss = |x: f32| Scaled::new(x.max(0.0), 0);
    let of_way = |x: f32| Scaled::new(x.max(0.0), g.scale_of_sums);
    of_loss(excess).sum(of_way(-along)).excess_over(of_loss(-excess).sum(of_way(along)))
}

fn divisor(c: &GroupConstants, g: &Gradient) -> Scaled {
    if !is_sign_rule(c) {
        return g.square;
    }
    let sum = g.sums.absolute;
    if sum.is_finite() && sum >= numbers::SMALLEST_SUM {
        Scaled::new(sum, g.scale_of_sums).times(numbers::ROOT_OF_HALF_PI)
    } else {
        direction_length(c).product(g.norm)
    }
}

/// Returns the largest η so far, which weights steps in the average.
fn averaged_rate(s: &mut GroupState) -> f32 {
    let rate = s.learning_rate;
    let own: &mut ScheduleFreePlusState = s.regime.own_mut();
    own.largest_rate = own.largest_rate.max(rate);
    own.largest_rate
}

/// ScheduleFree+ in f64.
struct Reference {
    regime: ScheduleFreePlus,
    rate_size: f64,
}

impl RegimeReference for Reference {
    fn follow(&mut self, step: &RegimeStep) -> Rate {
        let to_base: Vec<f64> = step.base.iter().zip(step.w).map(|(z, y)| z - y).collect();
        let (excess, way) = (step.loss - f64::from(self.regime.optimum), dot(step.g, &to_base));
        let divisor = if step.scale_free {
            (std::f64::consts::PI / 2.0).sqrt() * step.g.iter().map(|g| g.abs()).sum::<f64>()
        } else {
            dot(step.g, step.g)
        };
        // Parameters that start on a common grid are all rounded the same way, so that the errors of y and z add up: a
        // few half ulps of each element. The suite allows 200 ulps of these terms, and division by 100 makes that 2
        // ulps of each element.
        let roundings: f64 = step.g.iter().zip(step.w).map(|(g, y)| (g * y).abs()).sum::<f64>() / 100.0;
        let rate_of = |gap: f64| f64::from(self.regime.factor) * gap / divisor;
        let rate = rate_of((excess + way).max(0.0));
        self.rate_size = rate_of(excess.abs() + way.abs() + roundings);
        Rate::wanted(rate)
    }

    fn rate_size(&self) -> f64 {
        self.rate_size
    }
}
