//! Distance from the first parameters, which DoG and DoWG use. Twin of `shaders/learning_rate/distance.wgsl`.

use crate::error::{Error, require};
use crate::layout::{GroupConstants, Scaled, shared_structs};
use crate::reference::{RegimeStep, norm};
use crate::regime::LearningRateRegime;
use crate::regime::gradient::Gradient;
use crate::rule::Rule;

shared_structs! {
    /// State of DoG and DoWG.
    pub(crate) struct DistanceState {
        /// Sum of squared lengths, which DoWG weights.
        pub(crate) history: Scaled,
        /// r̄, the largest distance from the start.
        pub(crate) distance: Scaled,
    }
}

/// Returns r̄ of this step. At the first gradient it is r_ε = ε (1 + ‖w_0‖).
pub(crate) fn farthest_of(c: &GroupConstants, g: &Gradient, last: Scaled) -> Scaled {
    if g.first {
        return Scaled::ONE.sum(Scaled::of_squares(g.sums.initial_square).root()).times(c.first_step);
    }
    if !g.sums.direction_square.is_finite() {
        return last;
    }
    last.larger(Scaled::new(g.sums.direction_square, 0).root())
}

/// Returns false for rules with momentum except AdamW and its relatives. Momentum makes the direction many times longer
/// than the gradient, so that the distance and the rate grow without bound. AdamW's direction does not grow.
pub(crate) fn suits(rule: &Rule) -> bool {
    rule.momentum() == 0.0 || rule.has_second_moment()
}

pub(crate) fn validate(regime: &dyn LearningRateRegime, initial_distance: f32) -> Result<(), Error> {
    let in_range = initial_distance.is_finite() && initial_distance > 0.0;
    require(in_range, || regime.owner(), "initial_distance", initial_distance, "finite and above 0")
}

/// Distance r̄ in f64.
#[derive(Default)]
pub(crate) struct Farthest(f64);

impl Farthest {
    pub(crate) fn of(&mut self, step: &RegimeStep) -> f64 {
        if step.first {
            self.0 = step.first_length;
        }
        let way: Vec<f64> = step.w.iter().zip(step.first_w).map(|(a, b)| a - b).collect();
        self.0 = self.0.max(norm(&way));
        self.0
    }
}
