//! Regime that measures the curvature along the step with a second gradient of the same batch. `shaders/look.wgsl`
//! measures it on the device, and `shaders/regime/curvature.wgsl` sets the rate.

use super::{Details, Kernel, LearningRateRegime, Needs, RATE_MAX, Regime, require_first_step};
use super::first_rate::set_first_rate;
use super::secant::{Secant, secant_of};
use crate::averaging::Averaging;
use crate::error::{Error, require};
use crate::layout::terms::{CURVATURE_TERM, NORM_TERM};
use crate::layout::{
    GroupConstants, GroupState, RawRecord, RegimeConstants, Scaled, ScopeSums, record_flags, shared_structs,
};
use crate::reference::{Rate, RegimeLook, RegimeReference, RegimeStep, dot};
use crate::regime::formula::{MAX_FACTOR, ln_ratio_or_0, rate_along_signs, set_rate};
use crate::regime::gradient::{Gradient, is_sign_rule};
use crate::rule::Rule;

/// Learning rate from the curvature along the step, which a second gradient of the same batch measures.
///
/// After each step the caller computes the gradient of the *same* batch at the new parameters and calls
/// [`encode_look`](crate::Optimizer::encode_look) or, on the host, [`look`](crate::CpuOptimizer::look). Let `s` be the
/// step and `y` the change of the gradient over it, which contains no sampling noise. A look updates two moving
/// averages `A ← β A + (1-β) a`, `B ← β B + (1-β) b`. The next step uses the `η` that follows from them:
///
/// | [`form`](CurvatureForm) | a | b | η |
/// |---|---|---|---|
/// | `Short` | `s·y/s·s` | `y·y/s·s` | `A/B` |
/// | `Long` | `1` | `abs(s·y)/s·s` | `A/B` |
/// | `Geometric` | `1` | `y·y/s·s` | `√(A/B)` |
/// | `Newton` | `g·u` | `abs(u·y)/ρ` | `A/B` |
///
/// Here `u` is the direction of the step and `ρ` its rate, so that `s = -ρ u` and `u·y/ρ ≈ -u·H u`. The first three
/// forms are Barzilai and Borwein's rates (1988) and their geometric mean. Using the same batch at both points is the
/// idea of random Barzilai-Borwein steps (Yang, Chen & Wang 2019, arXiv:1906.08496). The averages and the limit are
/// this crate's.
///
/// `Newton` is the minimum of the quadratic model along the direction. With [`per_tensor`](crate::Group::per_tensor) it
/// is a rate per layer from the curvature of that layer, similar to Bahamou and Goldfarb (arXiv:2305.13664), whose
/// formula may differ. All layers move in the measured step, so that a layer's `y` also contains the curvature between
/// it and the others.
///
/// The rate of the step is `η` for SGD. It is `η (1-μ)` for heavy-ball and Nesterov momentum, whose steps add up to
/// `1/(1-μ)`. Rules with directions of length √d use `η n/√d` with the present gradient norm n, except in the form
/// `Newton`, whose `η` is already a rate along the direction.
///
/// Safeguards: `η` changes by at most a factor of `max_change` per step. It is carried over if `A ≤ 0` or `B = 0`,
/// after a step without a look, and after a look with non-finite gradients or sums
/// ([`Record::look`](crate::Record::look)). Every step needs one more gradient, so compare with other regimes at equal
/// numbers of gradients.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct Curvature {
    /// Formula of the rate.
    pub form: CurvatureForm,
    /// β, the weight of the past in the averages. The default is 0.9. With 0 only the last look is used.
    pub smoothing: f32,
    /// Largest growth factor of `η` per step, above 1. Its inverse is the largest shrink. The default is 2.
    pub max_change: f32,
    /// η of the first step. `None` derives it from the first step's length.
    pub initial_rate: Option<f32>,
    /// ε of the first step, used if `initial_rate` is `None`. The default is 1e-2.
    pub first_step: f32,
}

impl Curvature {
    /// Returns the regime in this form, with the default constants.
    pub fn new(form: CurvatureForm) -> Self {
        Curvature { form, smoothing: 0.9, max_change: 2.0, initial_rate: None, first_step: 1e-2 }
    }
}

/// Formula that turns looks into a rate. See the table of [`Curvature`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub enum CurvatureForm {
    /// The short Barzilai-Borwein rate, which depends on the largest curvatures and is the most cautious.
    Short,
    /// The long Barzilai-Borwein rate, which depends on the mean curvature along the step.
    Long,
    /// The geometric mean of the long and the short rate.
    Geometric,
    /// The minimum of the quadratic model along the direction.
    Newton,
}

/// Result of the look at the last step that moved the group. See [`Record::look`](crate::Record::look).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Look {
    /// The look was measured.
    Measured,
    /// There was no look. The rate is carried over.
    Missing,
    /// A gradient of the look, or a sum over its gradients, was not finite. The look is ignored and the rate is carried
    /// over.
    NotFinite,
}

impl Regime {
    /// Returns [`Curvature`] in this form.
    pub fn curvature(form: CurvatureForm) -> Self {
        Regime::Curvature(Curvature::new(form))
    }
}

pub(super) fn examples() -> [Curvature; 4] {
    [CurvatureForm::Short, CurvatureForm::Long, CurvatureForm::Geometric, CurvatureForm::Newton].map(Curvature::new)
}

impl LearningRateRegime for Curvature {
    fn name(&self) -> &'static str {
        match self.form {
            CurvatureForm::Short => "look-short",
            CurvatureForm::Long => "look-long",
            CurvatureForm::Geometric => "look-geometric",
            CurvatureForm::Newton => "look-newton",
        }
    }

    fn summary(&self) -> &'static str {
        match self.form {
            CurvatureForm::Short => "Barzilai-Borwein s·y/y·y of the same batch, two gradients a step",
            CurvatureForm::Long => "Barzilai-Borwein s·s/s·y of the same batch, two gradients a step",
            CurvatureForm::Geometric => "Geometric mean of both Barzilai-Borwein rates, two gradients a step",
            CurvatureForm::Newton => "The minimum along the step by the batch's curvature, two gradients a step",
        }
    }

    fn kernel(&self) -> &'static Kernel {
        &KERNEL
    }

    fn needs(&self) -> Needs {
        Needs { last_gradient: true, looks: true, initial_norm: self.initial_rate.is_none(), ..Needs::NOTHING }
    }

    fn initial_rate(&self) -> Option<f32> {
        self.initial_rate
    }

    fn first_step(&self, _: &Rule, _: &Averaging) -> f32 {
        self.first_step
    }

    fn constants(&self, rule: &Rule) -> RegimeConstants {
        let form = match self.form {
            CurvatureForm::Short => forms::LOOK_SHORT,
            CurvatureForm::Long => forms::LOOK_LONG,
            CurvatureForm::Geometric => forms::LOOK_GEOMETRIC,
            CurvatureForm::Newton => forms::LOOK_NEWTON,
        };
        let numbers = rule.numbers();
        let share = if rule.is_scale_free() { 1.0 } else { (1.0 - numbers.momentum) / numbers.gradient_share };
        RegimeConstants::of(&CurvatureConstants {
            form,
            smoothing: self.smoothing,
            max_change: self.max_change.min(MAX_FACTOR),
            share,
        })
    }

    fn validate(&self) -> Result<(), Error> {
        let owner = || self.owner();
        require((0.0..1.0).contains(&self.smoothing), owner, "smoothing", self.smoothing, "at least 0 and below 1")?;
        let in_range = self.max_change.is_finite() && self.max_change > 1.0;
        require(in_range, owner, "max_change", self.max_change, "finite and above 1")?;
        require_first_step(self, Some(self.first_step), self.initial_rate)
    }

    fn reference(&self, rule: &Rule) -> Box<dyn RegimeReference> {
        // Sum of the steps that one gradient causes.
        let heavy = match rule {
            _ if rule.is_scale_free() => 1.0,
            Rule::Sgdm(sgdm) if sgdm.momentum > 0.0 => (1.0 - f64::from(sgdm.dampening)) / (1.0 - f64::from(sgdm.momentum)),
            _ => 1.0,
        };
        Box::new(Reference { regime: *self, heavy, a: 0.0, b: 0.0, eta: None, first_norm: 0.0, is_fresh: false })
    }
}

shared_structs! {
    /// Constants of Curvature.
    pub(crate) struct CurvatureConstants {
        /// One of [`forms`].
        pub(crate) form: u32,
        /// β.
        pub(crate) smoothing: f32,
        /// Largest factor by which one step changes η.
        pub(crate) max_change: f32,
        /// Fraction of η that a step uses: 1 over the sum of the steps that one gradient causes.
        pub(crate) share: f32,
    }

    /// State of Curvature.
    pub(crate) struct CurvatureState {
        /// Sum of the terms of A above 0.
        pub(crate) along: Scaled,
        /// Sum of the magnitudes of the terms of A below 0.
        pub(crate) against: Scaled,
        /// B.
        pub(crate) bend: Scaled,
        /// η before the multiplication by `share`.
        pub(crate) rate: Scaled,
        /// 1 after a step until its look, else 0.
        pub(crate) due: u32,
        /// Result of the last look, one of [`looks`], until a step uses it.
        pub(crate) look: u32,
    }

    /// Look in a record.
    pub(crate) struct CurvatureRecord {
        /// One of [`looks`].
        pub(crate) look: u32,
    }
}

/// Formulas of the rate.
pub(crate) mod forms {
    crate::layout::shared_constants! { ""
        /// `s·y/y·y`.
        pub const LOOK_SHORT: u32 = 0;
        /// `s·s/s·y`.
        pub const LOOK_LONG: u32 = 1;
        /// `‖s‖/‖y‖`.
        pub const LOOK_GEOMETRIC: u32 = 2;
        /// `g·u/u·Hu`.
        pub const LOOK_NEWTON: u32 = 3;
    }
}

/// Results of looks.
pub(crate) mod looks {
    crate::layout::shared_constants! { ""
        /// There was nothing to look at: no step yet, or a step that moved nothing.
        pub const LOOK_NONE: u32 = 0;
        /// A and B were updated.
        pub const LOOK_MEASURED: u32 = 1;
        /// There was no look at the last step.
        pub const LOOK_MISSING: u32 = 2;
        /// The look was not finite and was ignored.
        pub const LOOK_NOT_FINITE: u32 = 3;
    }
}

pub(super) const KERNEL: Kernel = Kernel {
    constants: Some(CurvatureConstants::DECLARED),
    state: Some(CurvatureState::DECLARED),
    record: Some(CurvatureRecord::DECLARED),
    own_constants: || forms::wgsl() + &looks::wgsl(),
    follow,
    look,
    explain,
    ..Kernel::new("curvature", include_str!("../../shaders/regime/curvature.wgsl"))
};

fn explain(raw: &RawRecord) -> Details {
    let look = match raw.regime.own::<CurvatureRecord>().look {
        looks::LOOK_MEASURED => Some(Look::Measured),
        looks::LOOK_MISSING => Some(Look::Missing),
        looks::LOOK_NOT_FINITE => Some(Look::NotFinite),
        _ => None,
    };
    Details { look, ..Details::default() }
}

/// Returns true if the look at a group's last step is still missing.
#[cfg(feature = "checkpoint")]
pub(crate) fn is_look_due(c: &GroupConstants, s: &GroupState) -> bool {
    Kernel::of(c).name == KERNEL.name && s.regime.own::<CurvatureState>().due != 0
}

/// Measures the curvature of the last step. `finite` is false if a gradient of some group is not finite.
fn look(c: &GroupConstants, sums: &ScopeSums, finite: bool, s: &mut GroupState) {
    let k: &CurvatureConstants = c.regime_constants.own();
    let secant = secant_of(c, sums, s.gradient_exponent, s);
    let rate = Scaled::new(s.learning_rate, 0);
    let own: &mut CurvatureState = s.regime.own_mut();
    if own.due == 0 {
        return;
    }
    own.due = 0;
    let Some(secant) = secant.filter(|_| finite && sums.fast_dot.is_finite()) else {
        own.look = looks::LOOK_NOT_FINITE;
        return;
    };
    if Scaled::new(secant.u_square, 0).is_zero() || rate.is_zero() {
        return;
    }
    own.look = looks::LOOK_MEASURED;
    let (along, against, bend) = terms_of(k.form, &secant, sums.fast_dot, rate);
    let mix = |old: Scaled, new: Scaled| old.times(k.smoothing).sum(new.times(1.0 - k.smoothing));
    own.along = mix(own.along, along);
    own.against = mix(own.against, against);
    own.bend = mix(own.bend, bend);
}

/// Returns the terms of A above and below 0, and the term of B. Newton's terms are in units of the scale of the sums,
/// which is a power of two.
fn terms_of(form: u32, secant: &Secant, u_dot_g: f32, rate: Scaled) -> (Scaled, Scaled, Scaled) {
    let u_dot_y = Scaled::new(secant.u_dot_y, 0);
    let signed = |term: Scaled, is_above: bool| if is_above { (term, Scaled::ZERO) } else { (Scaled::ZERO, term) };
    if form == forms::LOOK_NEWTON {
        let scale = |sum: f32| Scaled::new(sum, secant.shift + 2 * secant.scale);
        let (along, against) = signed(scale(u_dot_g), u_dot_g > 0.0);
        return (along, against, scale(secant.u_dot_y).quotient(rate));
    }
    let step_square = rate.product(Scaled::new(secant.u_square, secant.shift));
    let curvature = u_dot_y.quotient(step_square);
    let y_square = Scaled::new(secant.y_square, 0);
    let change = y_square.quotient(step_square).quotient(rate.product(Scaled::new(1.0, secant.shift)));
    match form {
        forms::LOOK_SHORT => {
            let (along, against) = signed(curvature, secant.u_dot_y < 0.0);
            (along, against, change)
        }
        forms::LOOK_LONG => (Scaled::ONE, Scaled::ZERO, curvature),
        _ => (Scaled::ONE, Scaled::ZERO, change),
    }
}

fn follow(c: &GroupConstants, g: &Gradient, s: &mut GroupState, r: &mut RawRecord) {
    let k: &CurvatureConstants = c.regime_constants.own();
    let along_signs = is_sign_rule(c) && k.form != forms::LOOK_NEWTON;
    let share = if along_signs { rate_along_signs(c, Scaled::ONE, g.norm) } else { Scaled::new(k.share, 0) };
    if g.first {
        set_first_rate(c, g, s, r);
        let rate = Scaled::new(s.regime_rate, 0).quotient(share);
        *s.regime.own_mut() = CurvatureState { rate, due: 1, ..CurvatureState::default() };
        return;
    }
    let own: &mut CurvatureState = s.regime.own_mut();
    *r.regime.own_mut() = CurvatureRecord { look: if own.due == 0 { own.look } else { looks::LOOK_MISSING } };
    if own.look == looks::LOOK_MEASURED && own.against.less(own.along) && !own.bend.is_zero() {
        let wanted = wanted_rate(k.form, own);
        let most = own.rate.times(k.max_change);
        let rate = wanted.smaller(most).larger(own.rate.quotient(Scaled::new(k.max_change, 0)));
        if rate != wanted {
            r.flags |= record_flags::CLAMPED_CHANGE;
        }
        r.terms[CURVATURE_TERM as usize] = rate.ln_ratio(own.rate);
        own.rate = rate;
    }
    (own.look, own.due) = (looks::LOOK_NONE, 1);
    let rate = own.rate.product(share);
    if along_signs {
        r.terms[NORM_TERM as usize] = ln_ratio_or_0(g.norm, g.last_norm);
    }
    set_rate(rate, MAX_FACTOR, RATE_MAX, g, s, r);
}

/// Computes A/B, or its root in the geometric form, for A and B above 0.
fn wanted_rate(form: u32, own: &CurvatureState) -> Scaled {
    let rate = own.along.excess_over(own.against).quotient(own.bend);
    if form == forms::LOOK_GEOMETRIC { rate.root() } else { rate }
}

/// Curvature in f64.
struct Reference {
    regime: Curvature,
    /// Sum of the steps that one gradient causes.
    heavy: f64,
    a: f64,
    b: f64,
    eta: Option<f64>,
    first_norm: f64,
    is_fresh: bool,
}

impl Reference {
    /// Returns the rate of a step for this η.
    fn of_step(&self, eta: f64, norm: f64, step: &RegimeStep) -> f64 {
        match self.regime.form {
            CurvatureForm::Newton => eta / self.heavy,
            _ if step.scale_free => eta * norm / (step.g.len() as f64).sqrt(),
            _ => eta / self.heavy,
        }
    }
}

impl RegimeReference for Reference {
    fn follow(&mut self, step: &RegimeStep) -> Rate {
        if step.first {
            self.first_norm = step.norm;
            return Rate::Unchanged;
        }
        let eta = self.eta.unwrap_or_else(|| step.rate / self.of_step(1.0, self.first_norm, step));
        let most = f64::from(self.regime.max_change.min(10.0));
        let eta = match self.regime.form {
            _ if !std::mem::take(&mut self.is_fresh) || self.a <= 0.0 || self.b == 0.0 => eta,
            CurvatureForm::Geometric => (self.a / self.b).sqrt().clamp(eta / most, eta * most),
            _ => (self.a / self.b).clamp(eta / most, eta * most),
        };
        self.eta = Some(eta);
        Rate::wanted(self.of_step(eta, step.norm, step))
    }

    fn look(&mut self, look: &RegimeLook) {
        let RegimeLook { s, y, u, g, rate } = *look;
        let (ss, sy, yy) = (dot(s, s), dot(s, y), dot(y, y));
        if ss == 0.0 {
            return;
        }
        let (a, b) = match self.regime.form {
            CurvatureForm::Short => (sy / ss, yy / ss),
            CurvatureForm::Long => (1.0, (sy / ss).abs()),
            CurvatureForm::Geometric => (1.0, yy / ss),
            CurvatureForm::Newton => (dot(g, u), (dot(u, y) / rate).abs()),
        };
        let beta = f64::from(self.regime.smoothing);
        self.a = beta * self.a + (1.0 - beta) * a;
        self.b = beta * self.b + (1.0 - beta) * b;
        self.is_fresh = true;
    }
}
