//! Mechanic. Its device code is `shaders/regime/mechanic.wgsl`.

use super::{Details, Estimate, Kernel, LearningRateRegime, Needs, RATE_MAX, RATE_MIN, Regime, require_within};
use crate::averaging::Averaging;
use crate::error::Error;
use crate::layout::terms::ALIGNMENT_TERM;
use crate::layout::{
    GroupConstants, GroupState, RawRecord, RegimeConstants, RegimeState, Scaled, Update, group_flags, record_flags,
    shared_structs,
};
use crate::reference::{Rate, RegimeReference, RegimeStep, dot, norm};
use crate::regime::gradient::{Gradient, hold_rate};
use crate::rule::Rule;

/// Mechanic (Cutkosky, Defazio & Mehta 2023, arXiv:2306.00144), which learns a scale S for the sum of all steps so far.
/// With the first parameters w₀, the sum Δ of the rule's own steps at a rate γ times the schedule, and the gradient g
/// at w,
///
/// ```text
/// w = w₀ - S Δ
/// h = ⟨g + λ S ‖g‖ w/(‖w‖ + ε), Δ>                   λ = 0.01
/// for each β = 0.9, 0.99, … 0.999999:
///     r ← β r + s clamp(h, -m, m)
///     m ← max(β m, |h| + ε),  v ← β² v + h²
///     s ← (m s₀/6 + max(0, r))/(√v + ε)              s₀ = 1e-6, ε = 1e-8
/// S ← Σ s
/// Δ ← Δ + γ u,  w ← w₀ - S Δ                         u the rule's direction
/// ```
///
/// S grows if the gradient asks to continue along the displacement so far. It falls, and the parameters go back with
/// it, if the gradient asks to return. A decoupled weight decay of the rule is part of u. The regime works with every
/// rule. η in the record is γ S times the schedule: the parameters move by η u and by the change of S times Δ.
///
/// These are the formulas of the authors' code in `optax.contrib.mechanize`. They include its clamp of h, which is not
/// in the paper, and its factor S/(S + ε), by which the code shrinks Δ when it computes Δ from the parameters.
///
/// The regime keeps the displacement S Δ, 4 bytes per parameter. It is stored as a separate number, because a
/// difference of parameters in f32 would lose the first steps at S = 1e-6. Pass 1 reads it and the parameters. Each
/// group has its own scale. For the one scale of the published method, give all groups one norm
/// ([`global_norm`](crate::OptimizerBuilder::global_norm)). Gradients in h are taken before a clip.
///
/// The rate is not limited to a change of ln 10 in one step. ε and s₀ make the scale depend on the unit of the loss
/// unless |h| is far above 1e-8, and |h| counts as at most 1e18. With a rule along the gradient, choose γ so that γ‖g‖²
/// lies between these.
///
/// In the record, `alignment_term` is `ln` of the growth of S, and [`Record::estimate`](crate::Record::estimate) has h
/// and S.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct Mechanic {
    /// γ, the rate of the rule's own steps. The default is 1.
    pub learning_rate: f32,
    /// λ, the decay in h. The default is 0.01.
    pub decay: f32,
    /// s₀, the first scale. The default is 1e-6.
    pub initial_scale: f32,
    /// ε of the divisions. The default is 1e-8.
    pub epsilon: f32,
}

impl Default for Mechanic {
    fn default() -> Self {
        Mechanic { learning_rate: 1.0, decay: 0.01, initial_scale: 1e-6, epsilon: 1e-8 }
    }
}

impl Regime {
    /// Returns [`Mechanic`] with the constants of the authors' code in optax, and γ = 1.
    pub fn mechanic() -> Self {
        Regime::Mechanic(Mechanic::default())
    }
}

pub(super) fn examples() -> [Mechanic; 1] {
    [Mechanic::default()]
}

impl LearningRateRegime for Mechanic {
    fn name(&self) -> &'static str {
        "mechanic"
    }

    fn summary(&self) -> &'static str {
        "A scale of all steps so far, learnt from the gradients"
    }

    fn kernel(&self) -> &'static Kernel {
        &KERNEL
    }

    fn needs(&self) -> Needs {
        Needs { displacement: true, ..Needs::NOTHING }
    }

    fn first_step(&self, _: &Rule, _: &Averaging) -> f32 {
        0.0
    }

    fn constants(&self, _: &Rule) -> RegimeConstants {
        RegimeConstants::of(&MechanicConstants {
            rate: self.learning_rate,
            decay: self.decay,
            initial: self.initial_scale,
            epsilon: self.epsilon,
        })
    }

    fn first_state(&self) -> RegimeState {
        RegimeState::of(&MechanicState { scale: self.initial_scale, keep: 1.0, ..Default::default() })
    }

    fn validate(&self) -> Result<(), Error> {
        require_within(self, "learning_rate", self.learning_rate, 1e-8..=1e8, "between 1e-8 and 1e8")?;
        require_within(self, "decay", self.decay, 0.0..=1e6, "between 0 and 1e6")?;
        require_within(self, "initial_scale", self.initial_scale, 1e-12..=1.0, "between 1e-12 and 1")?;
        require_within(self, "epsilon", self.epsilon, 1e-20..=1e-2, "between 1e-20 and 0.01")
    }

    fn reference(&self, _: &Rule) -> Box<dyn RegimeReference> {
        Box::new(Reference {
            regime: *self,
            betas: std::array::from_fn(|i| 1.0 - 0.1f64.powi(i as i32 + 1)),
            m: [0.0; BETAS],
            v: [0.0; BETAS],
            r: [0.0; BETAS],
            s: [f64::from(self.initial_scale) / BETAS as f64; BETAS],
            delta: Vec::new(),
            leak: 1.0,
            rate_size: 0.0,
        })
    }
}

/// Number of β.
const BETAS: usize = 6;

shared_structs! {
    /// Constants of Mechanic.
    pub(crate) struct MechanicConstants {
        /// γ.
        pub(crate) rate: f32,
        /// λ.
        pub(crate) decay: f32,
        /// s₀.
        pub(crate) initial: f32,
        /// ε.
        pub(crate) epsilon: f32,
    }

    /// State of Mechanic. s is computed from m, v and r.
    pub(crate) struct MechanicState {
        /// m for each β.
        pub(crate) largest: [f32; 6],
        /// √v for each β.
        pub(crate) root: [f32; 6],
        /// r for each β.
        pub(crate) reward: [f32; 6],
        /// S.
        pub(crate) scale: f32,
        /// Factor of the displacement in the next update.
        pub(crate) keep: f32,
    }

    /// Mechanic's part of a record.
    pub(crate) struct MechanicRecord {
        /// h.
        pub(crate) product: f32,
        /// S.
        pub(crate) scale: f32,
    }
}

/// Numbers of the formula.
pub(crate) mod numbers {
    crate::layout::shared_constants! { ""
        /// Number of β in the regime Mechanic.
        pub const MECHANIC_BETAS: u32 = 6;
        /// Largest magnitude of h. Larger values count as this one.
        pub const MOST_PRODUCT: f32 = 1e18;
        /// Largest magnitude of r.
        pub const MOST_REWARD: f32 = 1e29;
        /// Largest value of s.
        pub const MOST_SCALE: f32 = 1e18;
    }
}
use numbers::{MECHANIC_BETAS, MOST_PRODUCT, MOST_REWARD, MOST_SCALE};

pub(super) const KERNEL: Kernel = Kernel {
    constants: Some(MechanicConstants::DECLARED),
    state: Some(MechanicState::DECLARED),
    record: Some(MechanicRecord::DECLARED),
    own_constants: numbers::wgsl,
    follow,
    amend,
    explain,
    ..Kernel::new("mechanic", include_str!("../../shaders/regime/mechanic.wgsl"))
};

fn follow(c: &GroupConstants, g: &Gradient, s: &mut GroupState, r: &mut RawRecord) {
    let k: &MechanicConstants = c.regime_constants.own();
    let own: &mut MechanicState = s.regime.own_mut();
    let old = own.scale;
    own.keep = 1.0;
    if let Some(h) = product(k, g, old) {
        let mut total = 0.0;
        let mut fall = 1.0;
        for i in 0..MECHANIC_BETAS as usize {
            fall *= 0.1;
            let (m, root, reward) = (own.largest[i], own.root[i], own.reward[i]);
            let share = scale_of(k, m, root, reward);
            let reward = ((reward - fall * reward) + share * h.clamp(-m, m)).clamp(-MOST_REWARD, MOST_REWARD);
            let m = (m - fall * m).max(h.abs() + k.epsilon);
            let root = root_of_squares(root - fall * root, h.abs());
            (own.largest[i], own.root[i], own.reward[i]) = (m, root, reward);
            total += scale_of(k, m, root, reward);
        }
        own.scale = total;
        own.keep = total / (old + k.epsilon);
        *r.regime.own_mut() = MechanicRecord { product: h, scale: total };
    } else {
        *r.regime.own_mut() = MechanicRecord { product: 0.0, scale: old };
    }
    let wanted = Scaled::new(own.scale, 0).times(k.rate);
    let rate = wanted.smaller(Scaled::new(RATE_MAX, 0)).larger(Scaled::new(RATE_MIN, 0));
    if rate != wanted {
        r.flags |= record_flags::CLAMPED_RATE;
    }
    if !g.first {
        r.terms[ALIGNMENT_TERM as usize] = rate.ln_ratio(Scaled::new(s.regime_rate, 0));
    }
    hold_rate(rate, s);
}

/// Computes s for one β.
fn scale_of(k: &MechanicConstants, m: f32, root: f32, reward: f32) -> f32 {
    ((k.initial / MECHANIC_BETAS as f32 * m + reward.max(0.0)) / (root + k.epsilon)).min(MOST_SCALE)
}

/// Computes √(a² + b²) for non-negative numbers.
fn root_of_squares(a: f32, b: f32) -> f32 {
    let (larger, smaller) = (a.max(b), a.min(b));
    if larger == 0.0 {
        return 0.0;
    }
    let ratio = smaller / larger;
    larger * (1.0 + ratio * ratio).sqrt()
}

/// Computes h. Returns `None` if a sum overflows f32.
fn product(k: &MechanicConstants, g: &Gradient, scale: f32) -> Option<f32> {
    let sums = [g.sums.slow_dot, g.sums.fast_dot, g.sums.direction_square];
    if g.first || !sums.iter().all(|sum| sum.is_finite()) {
        return g.first.then_some(0.0);
    }
    let epsilon = Scaled::new(k.epsilon, 0);
    let of_gradient = Scaled::new(g.sums.slow_dot, g.scale_of_sums);
    let length = Scaled::new(g.sums.direction_square, 0).root().sum(epsilon);
    let of_decay = Scaled::new(g.sums.fast_dot, 0).product(g.norm).times(k.decay).times(scale).quotient(length);
    let signed = |x: f32, size: Scaled| if x > 0.0 { (size, Scaled::ZERO) } else { (Scaled::ZERO, size) };
    let (first, second) = (signed(g.sums.slow_dot, of_gradient), signed(g.sums.fast_dot, of_decay));
    let (above, below) = (first.0.sum(second.0), first.1.sum(second.1));
    let divisor = Scaled::new(scale + k.epsilon, 0);
    let part = |size: Scaled| size.quotient(divisor).to_float().min(MOST_PRODUCT);
    Some(part(above.excess_over(below)) - part(below.excess_over(above)))
}

/// Scales the displacement to the new scale.
fn amend(c: &GroupConstants, s: &mut GroupState, u: &mut Update) {
    let own: &mut MechanicState = s.regime.own_mut();
    u.memory_keep = own.keep;
    own.keep = 1.0;
    if c.flags & group_flags::COUPLES_DECAY == 0 {
        u.memory_share = u.learning_rate * c.controls.weight_decay;
    }
}

fn explain(r: &RawRecord) -> Details {
    let &MechanicRecord { product, scale } = r.regime.own();
    let known = scale > 0.0;
    Details { estimate: known.then_some(Estimate::Scale { product, scale }), ..Details::default() }
}

/// Mechanic in f64, computed with Δ and not with the displacement.
struct Reference {
    regime: Mechanic,
    betas: [f64; BETAS],
    m: [f64; BETAS],
    v: [f64; BETAS],
    r: [f64; BETAS],
    s: [f64; BETAS],
    delta: Vec<f64>,
    /// S/(S + ε) of the previous scale, by which Δ shrinks in the step.
    leak: f64,
    rate_size: f64,
}

impl RegimeReference for Reference {
    fn follow(&mut self, step: &RegimeStep) -> Rate {
        let Mechanic { learning_rate, decay, initial_scale, epsilon } = self.regime;
        let [rate, decay, initial, epsilon] = [learning_rate, decay, initial_scale, epsilon].map(f64::from);
        let old: f64 = self.s.iter().sum();
        self.delta.resize(step.w.len(), 0.0);
        self.leak = old / (old + epsilon);
        let along = dot(step.g, &self.delta) * self.leak;
        let weight = decay * old * step.norm / (norm(step.w) + epsilon);
        let of_decay = weight * dot(step.w, &self.delta) * self.leak;
        let h = (along + of_decay).clamp(-1e18, 1e18);
        let size = self.leak * step.g.iter().zip(&self.delta).map(|(g, d)| (g * d).abs()).sum::<f64>();
        let mut errors = 0.0;
        for i in 0..BETAS {
            let beta = self.betas[i];
            self.r[i] = beta * self.r[i] + h.clamp(-self.m[i], self.m[i]) * self.s[i];
            let share = self.s[i];
            self.m[i] = (beta * self.m[i]).max(h.abs() + epsilon);
            self.v[i] = beta * beta * self.v[i] + h * h;
            let root = self.v[i].sqrt() + epsilon;
            self.s[i] = (initial / BETAS as f64 * self.m[i] + self.r[i].max(0.0)) / root;
            errors += (size + of_decay.abs()) * (share + self.s[i]) / root;
        }
        let scale: f64 = self.s.iter().sum();
        self.rate_size = rate * errors.max(scale);
        Rate::Wanted { rate: rate * scale, max_change: 1e60, max_rate: 1e30 }
    }

    fn rate_size(&self) -> f64 {
        self.rate_size
    }

    fn place(&mut self, first_w: &[f64], step: &[f64]) -> Option<Vec<f64>> {
        let scale: f64 = self.s.iter().sum();
        let leak = std::mem::replace(&mut self.leak, 1.0);
        self.delta.resize(step.len(), 0.0);
        for (delta, step) in self.delta.iter_mut().zip(step) {
            *delta = leak * *delta + step / scale;
        }
        Some(first_w.iter().zip(&self.delta).map(|(first, delta)| first - scale * delta).collect())
    }
}
