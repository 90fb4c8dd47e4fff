//! Distance over weighted gradients. Its device code is `shaders/regime/dowg.wgsl`.

use super::{Kernel, LearningRateRegime, Needs, Regime, distance};
use super::RATE_MAX;
use super::distance::{DistanceState, Farthest};
use crate::averaging::Averaging;
use crate::error::Error;
use crate::layout::terms::{DISTANCE_TERM, HISTORY_TERM};
use crate::layout::{GroupConstants, GroupState, RawRecord};
use crate::reference::{Rate, RegimeReference, RegimeStep};
use crate::regime::formula::{MAX_FACTOR, direction_square_of, ln_ratio_or_0, set_rate};
use crate::regime::gradient::{Gradient};
use crate::rule::Rule;

/// Distance over *weighted* gradients: `η_t = r̄_t² / √v_t`, `v_t = Σ_{i≤t} r̄_i² ‖u_i‖²` (Khaled, Mishchenko & Jin
/// 2023, arXiv:2305.16284, algorithm 1). Memory and limits are those of [`DoG`](crate::DoG).
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct DoWG {
    /// ε of the initial distance. The default is 1e-6.
    pub initial_distance: f32,
}

impl Default for DoWG {
    fn default() -> Self {
        DoWG { initial_distance: 1e-6 }
    }
}

impl Regime {
    /// Returns [`DoWG`] with `ε = 1e-6`.
    pub fn dowg() -> Self {
        Regime::DoWG(DoWG::default())
    }
}

pub(super) fn examples() -> [DoWG; 1] {
    [DoWG::default()]
}

impl LearningRateRegime for DoWG {
    fn name(&self) -> &'static str {
        "dowg"
    }

    fn summary(&self) -> &'static str {
        "Distance over weighted gradients"
    }

    fn kernel(&self) -> &'static Kernel {
        &KERNEL
    }

    fn needs(&self) -> Needs {
        Needs { first_parameters: true, initial_norm: true, ..Needs::NOTHING }
    }

    fn suits(&self, rule: &Rule) -> bool {
        distance::suits(rule)
    }

    fn first_step(&self, _: &Rule, _: &Averaging) -> f32 {
        self.initial_distance
    }

    fn validate(&self) -> Result<(), Error> {
        distance::validate(self, self.initial_distance)
    }

    fn reference(&self, _: &Rule) -> Box<dyn RegimeReference> {
        Box::new(Reference::default())
    }
}

pub(super) const KERNEL: Kernel = Kernel {
    state: Some(DistanceState::DECLARED),
    follow,
    ..Kernel::new("dowg", include_str!("../../shaders/regime/dowg.wgsl"))
};

fn follow(c: &GroupConstants, g: &Gradient, s: &mut GroupState, r: &mut RawRecord) {
    let own: &mut DistanceState = s.regime.own_mut();
    let last = *own;
    own.distance = distance::farthest_of(c, g, last.distance);
    let square = own.distance.product(own.distance);
    own.history = last.history.sum(square.product(direction_square_of(c, g.square)));
    let wanted = square.quotient(own.history.root());
    r.terms[DISTANCE_TERM as usize] = 2.0 * ln_ratio_or_0(own.distance, last.distance);
    r.terms[HISTORY_TERM as usize] = -0.5 * ln_ratio_or_0(own.history, last.history);
    set_rate(wanted, MAX_FACTOR, RATE_MAX, g, s, r);
}

/// DoWG in f64.
#[derive(Default)]
struct Reference {
    farthest: Farthest,
    history: f64,
}

impl RegimeReference for Reference {
    fn follow(&mut self, step: &RegimeStep) -> Rate {
        let farthest = self.farthest.of(step);
        self.history += farthest.powi(2) * step.direction_square();
        Rate::wanted(farthest.powi(2) / self.history.sqrt())
    }
}
