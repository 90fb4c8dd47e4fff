//! Distance over gradients. Its device code is `shaders/regime/dog.wgsl`.

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

/// Distance over gradients: `η_t = r̄_t / √(Σ_{i≤t} ‖u_i‖²)`, `r̄_t = max(r_ε, max_{i≤t} ‖w_i - w_0‖)`, `r_ε = ε (1 +
/// ‖w_0‖)` (Ivgi, Hinder & Carmon 2023, arXiv:2302.12022, eq. 2 and 3; with the paper's `ε = 1e-6` and without its
/// averaging of the parameters).
///
/// It keeps `w_0`, 4 bytes per parameter, which pass 1 reads together with the parameters. `‖u‖` is the norm n of the
/// gradient, or √d for sign rules. Momentum is not taken into account. The change per step is limited as in the other
/// regimes. In f32 the first distances are only as precise as the last place of the parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct DoG {
    /// ε of the initial distance. The default is 1e-6.
    pub initial_distance: f32,
}

impl Default for DoG {
    fn default() -> Self {
        DoG { initial_distance: 1e-6 }
    }
}

impl Regime {
    /// Returns [`DoG`] with `ε = 1e-6`.
    pub fn dog() -> Self {
        Regime::DoG(DoG::default())
    }
}

pub(super) fn examples() -> [DoG; 1] {
    [DoG::default()]
}

impl LearningRateRegime for DoG {
    fn name(&self) -> &'static str {
        "dog"
    }

    fn summary(&self) -> &'static str {
        "Distance over gradients"
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
    ..Kernel::new("dog", include_str!("../../shaders/regime/dog.wgsl"))
};

fn follow(c: &GroupConstants, g: &Gradient, s: &mut GroupState, r: &mut RawRecord) {
    let own: &mut DistanceState = s.regime.own_mut();
    let last = *own;
    own.distance = distance::farthest_of(c, g, last.distance);
    own.history = last.history.sum(direction_square_of(c, g.square));
    let wanted = own.distance.quotient(own.history.root());
    r.terms[DISTANCE_TERM as usize] = ln_ratio_or_0(own.distance, last.distance);
    r.terms[HISTORY_TERM as usize] = -0.5 * ln_ratio_or_0(own.history, last.history);
    set_rate(wanted, MAX_FACTOR, RATE_MAX, g, s, r);
}

/// DoG in f64.
#[derive(Default)]
struct Reference {
    farthest: Farthest,
    history: f64,
}

impl RegimeReference for Reference {
    fn follow(&mut self, step: &RegimeStep) -> Rate {
        let farthest = self.farthest.of(step);
        self.history += step.direction_square();
        Rate::wanted(farthest / self.history.sqrt())
    }
}
