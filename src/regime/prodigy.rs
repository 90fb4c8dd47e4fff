//! Prodigy. Its device code is `shaders/regime/prodigy.wgsl`.

use super::{Details, Estimate, Kernel, LearningRateRegime, Needs, RATE_MAX, Regime, require_within};
use crate::averaging::Averaging;
use crate::error::{Error, require};
use crate::layout::terms::DISTANCE_TERM;
use crate::layout::{
    GroupConstants, GroupState, RawRecord, RegimeConstants, RegimeState, Scaled, Update, shared_structs,
};
use crate::reference::{Rate, RegimeReference, RegimeStep, dot};
use crate::regime::formula::set_rate;
use crate::regime::gradient::Gradient;
use crate::rule::Rule;

/// Prodigy (Mishchenko & Defazio 2023, arXiv:2306.06101, algorithm 4), which estimates the distance d from the first
/// parameters w₀ to the solution and sets `η = γ d`. The estimate only grows. With the gradient g and the sums r and s,
/// which begin at 0,
///
/// ```text
/// d ← max(d, c r/Σ|s|)                      c = 1
/// η = γ d                                   γ = 1, times the schedule
/// r ← β₃ r + η d ⟨g, w₀ - w⟩                β₃ = √β₂ of the rule
/// s ← β₃ s + η d g
/// m ← β₁ m + (1 - β₁) d g,  v ← β₂ v + (1 - β₂) d² g²
/// w ← w - η m/(√v + d ε)                    AdamW; a sign rule goes along the signs
/// ```
///
/// The moments weight each gradient by the d of its step. Adam's bias corrections are left out unless
/// [`bias_correction`](Prodigy::bias_correction) is set. For a convex problem, `r/Σ|s|` is a lower bound of the largest
/// element of the displacement to the solution. This suits rules whose steps are about equally long in every element,
/// so that the regime is for AdamW and its relatives and for sign rules. It is refused for AMSGrad, Muon and Adafactor,
/// and for rules along the gradient, which work with [`DoG`](crate::DoG) and [`Mechanic`](crate::Mechanic). For the
/// published method's one estimate for all parameters, give all groups one norm
/// ([`global_norm`](crate::OptimizerBuilder::global_norm)).
///
/// The regime keeps w₀ and s, 8 bytes per parameter. Pass 1 reads both and the parameters. Pass 4 reads and writes s.
/// All sums are stored divided by d², and the moments by d and d², so that none of them overflows f32 when d grows by
/// many orders of magnitude.
///
/// The authors' package `prodigyopt` differs in one factor: it multiplies ε, and with β₁ = 0 also the gradient, by the
/// d of the next step. Gradients in r and s are taken before a clip. The rate is not limited to a change of ln 10 in
/// one step. [`growth`](Prodigy::growth) limits it.
///
/// In the record, `distance_term` is `ln` of the growth of d, and [`Record::estimate`](crate::Record::estimate) has r,
/// Σ|s| and d.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct Prodigy {
    /// γ, the rate in units of d. The default is 1.
    pub learning_rate: f32,
    /// d₀, the first estimate. It must be far below the distance to the solution. The default is 1e-6.
    pub initial_estimate: f32,
    /// c, the factor of the estimate. The default is 1. The authors recommend changing c (0.5 or 2) and not γ.
    pub coefficient: f32,
    /// Largest factor by which d grows in one step, once it is above d₀. The default is infinite. A factor of 1.02
    /// makes a warm-up.
    pub growth: f32,
    /// β₃. The default is √β₂ of the rule, and √0.999 for sign rules.
    pub beta3: Option<f32>,
    /// True to apply the rule's bias corrections m/(1 - β₁ᵏ) and v/(1 - β₂ᵏ). Steps are then also weighted by `√(1 -
    /// β₂ᵏ)/(1 - β₁ᵏ)` in r and s. The default is false.
    pub bias_correction: bool,
    /// True to weight gradients in s by d² without γ and the schedule. The authors recommend it with a warm-up. The
    /// default is false.
    pub safeguard_warmup: bool,
}

impl Default for Prodigy {
    fn default() -> Self {
        Prodigy {
            learning_rate: 1.0,
            initial_estimate: 1e-6,
            coefficient: 1.0,
            growth: f32::INFINITY,
            beta3: None,
            bias_correction: false,
            safeguard_warmup: false,
        }
    }
}

impl Regime {
    /// Returns [`Prodigy`] with the published constants.
    pub fn prodigy() -> Self {
        Regime::Prodigy(Prodigy::default())
    }
}

pub(super) fn examples() -> [Prodigy; 1] {
    [Prodigy::default()]
}

/// β₂ that gives β₃ for sign rules.
const USUAL_BETA2: f32 = 0.999;

impl Prodigy {
    fn beta3_for(&self, rule: &Rule) -> f32 {
        let beta2 = if rule.has_second_moment() { rule.numbers().square_keep } else { USUAL_BETA2 };
        self.beta3.unwrap_or_else(|| f64::from(beta2).sqrt() as f32)
    }
}

impl LearningRateRegime for Prodigy {
    fn name(&self) -> &'static str {
        "prodigy"
    }

    fn summary(&self) -> &'static str {
        "An estimate of the distance to the solution, for AdamW and sign rules"
    }

    fn kernel(&self) -> &'static Kernel {
        &KERNEL
    }

    fn needs(&self) -> Needs {
        Needs { estimate: true, ..Needs::NOTHING }
    }

    fn fits(&self, rule: &Rule) -> bool {
        let traits = rule.traits();
        (traits.sign || traits.squares) && !traits.largest_squares && !traits.owns_passes()
    }

    fn first_step(&self, _: &Rule, _: &Averaging) -> f32 {
        0.0
    }

    fn constants(&self, rule: &Rule) -> RegimeConstants {
        RegimeConstants::of(&ProdigyConstants {
            rate: self.learning_rate,
            initial: self.initial_estimate,
            coefficient: self.coefficient,
            growth: self.growth.min(f32::MAX),
            beta3: self.beta3_for(rule),
            corrects_bias: u32::from(self.bias_correction && rule.has_second_moment()),
            plain_sum: u32::from(self.safeguard_warmup),
        })
    }

    fn first_state(&self) -> RegimeState {
        let first = self.initial_estimate;
        RegimeState::of(&ProdigyState { estimate: first, largest: first, ratio: 1.0, keep: 1.0, ..Default::default() })
    }

    fn validate(&self) -> Result<(), Error> {
        require_within(self, "learning_rate", self.learning_rate, 1e-8..=1e8, "between 1e-8 and 1e8")?;
        require_within(self, "initial_estimate", self.initial_estimate, 1e-20..=1e8, "between 1e-20 and 1e8")?;
        require_within(self, "coefficient", self.coefficient, 1e-8..=1e8, "between 1e-8 and 1e8")?;
        let growth = self.growth;
        require(growth >= 1.0, || self.owner(), "growth", growth, "at least 1 (f32::INFINITY for no limit)")?;
        let beta3 = self.beta3.unwrap_or(0.0);
        require((0.0..1.0).contains(&beta3), || self.owner(), "beta3", beta3, "at least 0 and below 1")
    }

    fn reference(&self, rule: &Rule) -> Box<dyn RegimeReference> {
        let numbers = rule.numbers();
        let beta3 = match (self.beta3, rule.has_second_moment()) {
            (Some(beta3), _) => f64::from(beta3),
            (None, true) => f64::from(numbers.square_keep).sqrt(),
            (None, false) => 0.999f64.sqrt(),
        };
        Box::new(Reference {
            regime: *self,
            beta3,
            betas: [numbers.first_decay, numbers.second_decay].map(|decay| (-f64::from(decay)).exp()),
            corrects: self.bias_correction && rule.has_second_moment(),
            d: self.initial_estimate.into(),
            largest: self.initial_estimate.into(),
            ratio: 1.0,
            numerator: 0.0,
            size: 0.0,
            way: 0.0,
            roundings: 0.0,
            s: Vec::new(),
            seen: Vec::new(),
            rate_size: 0.0,
        })
    }
}

shared_structs! {
    /// Constants of Prodigy.
    pub(crate) struct ProdigyConstants {
        /// γ.
        pub(crate) rate: f32,
        /// d₀.
        pub(crate) initial: f32,
        /// c.
        pub(crate) coefficient: f32,
        /// Largest factor by which d grows in one step, or `f32::MAX` without a limit.
        pub(crate) growth: f32,
        /// β₃.
        pub(crate) beta3: f32,
        /// 1 if the rule's bias corrections are applied, else 0.
        pub(crate) corrects_bias: u32,
        /// 1 if gradients in s are weighted by d² alone, else 0.
        pub(crate) plain_sum: u32,
    }

    /// State of Prodigy. Divisions by d² use the d of the last step with a gradient.
    pub(crate) struct ProdigyState {
        /// d.
        pub(crate) estimate: f32,
        /// Largest c r/Σ|s| so far, or d₀.
        pub(crate) largest: f32,
        /// Sum of the positive terms of r, divided by d².
        pub(crate) ahead: Scaled,
        /// Sum of the magnitudes of the negative terms of r, divided by d².
        pub(crate) behind: Scaled,
        /// Factor of the momentum in the next update: the d that the momentum is divided by, over the present d.
        pub(crate) ratio: f32,
        /// Factor of s in the next update, which includes β₃.
        pub(crate) keep: f32,
        /// Weight of the next gradient in s.
        pub(crate) share: f32,
    }

    /// Prodigy's part of a record.
    pub(crate) struct ProdigyRecord {
        /// r before the step, divided by d² of the previous step.
        pub(crate) numerator: f32,
        /// Σ|s| before the step, divided by the same d².
        pub(crate) denominator: f32,
        /// d.
        pub(crate) estimate: f32,
    }
}

pub(super) const KERNEL: Kernel = Kernel {
    constants: Some(ProdigyConstants::DECLARED),
    state: Some(ProdigyState::DECLARED),
    record: Some(ProdigyRecord::DECLARED),
    follow,
    settle: Some(settle),
    amend,
    explain,
    ..Kernel::new("prodigy", include_str!("../../shaders/regime/prodigy.wgsl"))
};

fn follow(c: &GroupConstants, g: &Gradient, s: &mut GroupState, r: &mut RawRecord) {
    let k: &ProdigyConstants = c.regime_constants.own();
    let own: &mut ProdigyState = s.regime.own_mut();
    let old = own.estimate;
    let (numerator, total) = (own.ahead.excess_over(own.behind), Scaled::new(g.sums.absolute, g.scale_of_sums));
    let known = !g.first && g.sums.absolute.is_finite() && !total.is_zero();
    let found = if known { numerator.quotient(total).times(k.coefficient).to_float().min(RATE_MAX) } else { 0.0 };
    own.largest = own.largest.max(found);
    let from = if old == k.initial { old.max(found) } else { old };
    let estimate = Scaled::new(own.largest, 0).smaller(Scaled::new(from, 0).times(k.growth)).to_float();
    let ratio = old / estimate;
    let fall = k.beta3 * (ratio * ratio);
    let record: &mut ProdigyRecord = r.regime.own_mut();
    *record = ProdigyRecord {
        numerator: numerator.to_float() - own.behind.excess_over(own.ahead).to_float(),
        denominator: if known { total.to_float() } else { 0.0 },
        estimate,
    };
    own.estimate = estimate;
    own.ratio *= ratio;
    own.keep *= fall;
    own.ahead = own.ahead.times(fall);
    own.behind = own.behind.times(fall);
    if !g.first {
        r.terms[DISTANCE_TERM as usize] = Scaled::new(estimate, 0).ln_ratio(Scaled::new(old, 0));
    }
    set_rate(Scaled::new(estimate, 0).times(k.rate), RATE_MAX, RATE_MAX, g, s, r);
}

/// Adds the step's gradient to r. The step's η is final, with schedule and controls.
fn settle(c: &GroupConstants, g: &Gradient, (first, second): (f32, f32), s: &mut GroupState) {
    let k: &ProdigyConstants = c.regime_constants.own();
    let correction = if k.corrects_bias != 0 { first / second } else { 1.0 };
    let rate = Scaled::new(s.learning_rate, 0);
    let own: &mut ProdigyState = s.regime.own_mut();
    let share = rate.quotient(Scaled::new(own.estimate, 0)).times(correction).to_float();
    own.share = if k.plain_sum != 0 { 1.0 } else { share };
    let way = g.sums.slow_dot;
    if !way.is_finite() {
        return;
    }
    let term = Scaled::new(way, g.scale_of_sums).times(share);
    if way > 0.0 {
        own.ahead = own.ahead.sum(term);
    } else {
        own.behind = own.behind.sum(term);
    }
}

/// Adjusts the weights of momentum, second moment and s, which are stored divided by d.
fn amend(c: &GroupConstants, s: &mut GroupState, u: &mut Update) {
    let k: &ProdigyConstants = c.regime_constants.own();
    let own: &mut ProdigyState = s.regime.own_mut();
    let ratio = own.ratio;
    u.momentum_keep *= ratio;
    u.square_keep *= ratio * ratio;
    if ratio < 1.0 && c.rule.epsilon <= 0.0 {
        // Lion takes the sign of a mixture of gradient and momentum. A common factor does not change it.
        let share = u.momentum * ratio;
        u.momentum = share / (share + (1.0 - u.momentum));
    }
    if k.corrects_bias == 0 && c.rule.epsilon > 0.0 {
        (u.first_correction, u.second_correction) = (1.0, 1.0);
    }
    (u.memory_keep, u.memory_share) = (own.keep, own.share);
    (own.ratio, own.keep) = (1.0, 1.0);
}

fn explain(r: &RawRecord) -> Details {
    let &ProdigyRecord { numerator, denominator, estimate } = r.regime.own();
    let known = estimate > 0.0;
    Details {
        estimate: known.then_some(Estimate::Distance { numerator, denominator, distance: estimate }),
        ..Details::default()
    }
}

/// Prodigy in f64, with sums that are not divided by d².
struct Reference {
    regime: Prodigy,
    beta3: f64,
    /// β₁ and β₂ of the bias corrections.
    betas: [f64; 2],
    corrects: bool,
    d: f64,
    largest: f64,
    /// d of the previous step over d.
    ratio: f64,
    numerator: f64,
    /// Sum of the magnitudes of the terms of r. `roundings` is the error that rounding the parameters causes in them.
    size: f64,
    way: f64,
    roundings: f64,
    s: Vec<f64>,
    seen: Vec<f64>,
    rate_size: f64,
}

impl RegimeReference for Reference {
    fn follow(&mut self, step: &RegimeStep) -> Rate {
        let total: f64 = self.s.iter().map(|s| s.abs()).sum();
        let coefficient = f64::from(self.regime.coefficient);
        let (found, size) = match total > 0.0 {
            true => (coefficient * self.numerator / total, coefficient * self.size / total),
            false => (0.0, 0.0),
        };
        let before = self.d;
        self.largest = self.largest.max(found);
        let from = if self.d == f64::from(self.regime.initial_estimate) { self.d.max(found) } else { self.d };
        self.d = self.largest.min(from * f64::from(self.regime.growth));
        self.ratio = before / self.d;
        let to_start: Vec<f64> = step.first_w.iter().zip(step.w).map(|(first, w)| first - w).collect();
        self.way = dot(step.g, &to_start);
        // The suite allows 200 ulps of these terms. Division by 50 makes that 4 ulps of each element, because rounding
        // may move an element by half an ulp in each of some steps.
        let roundings: f64 = step.g.iter().zip(step.w).map(|(g, w)| (g * w).abs()).sum::<f64>() / 50.0;
        self.roundings = step.g.iter().zip(&to_start).map(|(g, way)| (g * way).abs()).sum::<f64>() + roundings;
        self.seen = step.g.to_vec();
        let rate = f64::from(self.regime.learning_rate);
        self.rate_size = (rate * size).max(rate * self.d);
        Rate::Wanted { rate: rate * self.d, max_change: 1e30, max_rate: 1e30 }
    }

    fn rate_size(&self) -> f64 {
        self.rate_size
    }

    fn settle(&mut self, rate: f64, k: f64) {
        let [beta1, beta2] = self.betas;
        let correction = if self.corrects { (1.0 - beta2.powf(k)).sqrt() / (1.0 - beta1.powf(k)) } else { 1.0 };
        let weight = self.d * rate * correction;
        self.numerator = self.beta3 * self.numerator + weight * self.way;
        self.size = self.beta3 * self.size + weight * self.roundings;
        let of_gradient = if self.regime.safeguard_warmup { self.d * self.d } else { weight };
        self.s.resize(self.seen.len(), 0.0);
        for (s, g) in self.s.iter_mut().zip(&self.seen) {
            *s = self.beta3 * *s + of_gradient * g;
        }
    }

    fn moment_ratio(&mut self) -> f64 {
        std::mem::replace(&mut self.ratio, 1.0)
    }

    fn corrects_bias(&self) -> bool {
        self.corrects
    }
}
