//! Seesaw, and the formula that NormRatio, Hypergradient and Fixed are special cases of. Its device code is
//! `shaders/regime/seesaw.wgsl`.

use super::{Details, Kernel, LearningRateRegime, MAX_CHANGE, Needs, RATE_MAX, RATE_MIN, Regime, require_factor, require_first_step, require_slow};
use crate::averaging::Averaging;
use crate::error::{Error, require};
use crate::layout::terms::{ALIGNMENT_TERM, BRAKE_TERM, CLAMP_TERM, HELD_TERM, NORM_TERM};
use crate::layout::{Fixed, GroupConstants, GroupState, RawRecord, RegimeConstants, RegimeRecord, RegimeState, Scaled, group_flags, record_flags, shared_structs};
use crate::reference::{Rate, RegimeReference, RegimeStep};
use crate::regime::first_rate::set_first_rate;
use crate::regime::gradient::Gradient;
use crate::rule::Rule;

/// Learning rate from the gradient norm and the alignment, relative to the first step. This is the default regime.
///
/// The learning rate rises as the gradient norm falls, and falls as the norm rises. The idea is from Z. Yang,
/// arXiv:2508.13639. The formula is this project's own derivation from the secant equation, not the paper's:
///
/// ```text
/// ln η_t = ln η_0 + p ln(n̂_1 / n̂_t) + A_t  rules whose step shrinks with the gradient: p' for p where n̂_t > n̂_1
/// η_0    = ε (1 + ‖w_0‖) / n_1             rules whose step does not shrink with the gradient: / √d
/// r      = A_{t-1} + κ_k (n_t / n̂_t) a_t   κ_k = max(κ, h / (h + k - 2)) at the k-th non-zero gradient
/// F      = the least A so far, at most 0
/// A_t    = r                               where r ≥ F
///          F + x (r - F)                   elsewhere, with x = clamp(log2(n̂_t / n̂_1) - 1, 0, 1)
/// ```
///
/// While a [`Schedule`](crate::Schedule) rises, by `δ_t` of ln η in a step, it takes back the agreement that was gained
/// while the factor was lower:
///
/// ```text
/// G   = max(0, G_{t-1} + κ_k (n_t / n̂_t) a_t)            0 where the schedule does not rise
/// r   = A_{t-1} + κ_k (n_t / n̂_t) a_t - min(G, δ_t)
/// G_t = G - min(G, δ_t)
/// ```
///
/// During a warm-up the steps are small and agree. Without this correction the regime would undo the warm-up and
/// overshoot at its end ([`guide::tried`](crate::guide::tried) has the figures). Without a rising schedule the
/// correction is 0.
///
/// In words: the first step is a fixed fraction of the parameters' length. After that the rate follows the smoothed
/// norm n̂. Steps that agree raise the rate above this anchor, and steps that contradict each other take back that
/// gain. They lower the rate below its anchor only while the smoothed norm is above twice its first value, and in full
/// only from four times on.
///
/// The alignment `a_t` is a cosine of the gradient with the past steps:
/// - Rules with momentum compare it with the momentum: `a = ⟨g, m⟩ / (‖g‖ ‖m‖)`. They have no brake.
/// - Rules without momentum keep a direction memory of one byte per parameter: `q ← clamp(q + sign g, -7, 7)` and the sign of the last
///   step. With `f` the bias-corrected moving average (weight 0.8 on the past) of `⟨g, sign u_{t-1}⟩ / ‖g‖₁`,
///   `a = ⟨g, q⟩ / (‖g‖ ‖q‖) + min(0, f + slack)`. The second part is the brake.
/// - `Sgd` and `SignSgd` in [schedule-free training](Averaging::ScheduleFree) need neither memory nor brake:
///   `a = ⟨g, y - z⟩ / (‖g‖ ‖y - z‖)`, the slope along the line from `z`, which takes the steps, to the average. It is
///   0 up to the second gradient, where `y = z`. If they share a norm with a group of another kind, they use the
///   direction memory too.
///
/// [`Record`](crate::Record) has each part as a term: `norm_term`, `alignment_term`, `brake_term`, and `held_term`, the
/// part of a fall that the floor `F` held back. A rise of ln η by more than ln 10 in one step is clamped. η is clamped
/// to `[1e-30, 1e30]`, and A to twice the logarithm of that, so that a rate at its limit recovers soon after the
/// gradients change.
///
/// On mini-batches the alignment is negative on average whatever the rate is: along a direction of curvature `h` that
/// is dominated by noise, the expected cosine of successive gradients is `-ηh/2` (the short-horizon bias of Wu et al.
/// 2018, arXiv:1803.02021). Therefore steps that contradict each other cannot lower the rate below its anchor while the
/// norm has not risen. Otherwise the rate would decay like `1/t`, at a pace that the sharpest noisy direction sets.
///
/// The defaults are constants of the method. They are fields so that they can be studied, and need no tuning.
/// [`guide::tried`](crate::guide::tried) explains how they were chosen and what did not help, and
/// [`guide::results`](crate::guide::results) compares the regime with tuned rates.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct Seesaw {
    /// p, between 0 for a fixed rate and 1 for a fixed step length. The default is 1/2.
    pub exponent: f32,
    /// p', which replaces p while `n̂` is above its first value, for rules whose step shrinks with the gradient (`Sgd`,
    /// `Sgdm`). Their steps also grow with the gradient, so that with an exponent of 1/2 a first step that is too long
    /// is followed by longer ones. The default is 3/2.
    pub exponent_above: f32,
    /// κ, the gain of the alignment. The default is 0.1. With 0 there is no alignment and no memory for it.
    pub gain: f32,
    /// h, which sets how slowly the gain falls from 1 to κ. The first step's length is a guess, and a rate that changes
    /// by at most 10 % a step needs dozens of steps to correct it. The default is 5. With 0 the gain is κ from the
    /// start.
    pub early_steps: f32,
    /// β of the moving average in the smoothed norm. The default is 0.9.
    pub smoothing: f32,
    /// φ. The smoothed norm n̂ never falls below this fraction of the mean norm, so that the rate stops rising once a
    /// problem is solved to the last bit. The default is 1e-4.
    pub norm_floor: f32,
    /// Slack of the brake: how much successive steps may contradict each other before the brake acts. The default is
    /// 0.5.
    pub brake_slack: f32,
    /// ε. The first step has length `ε (1 + ‖w₀‖)`. `None` uses [`Rule::first_step`].
    pub first_step: Option<f32>,
}

impl Default for Seesaw {
    fn default() -> Self {
        Seesaw {
            exponent: 0.5,
            exponent_above: 1.5,
            gain: 0.1,
            early_steps: 5.0,
            smoothing: 0.9,
            norm_floor: 1e-4,
            brake_slack: 0.5,
            first_step: None,
        }
    }
}

impl Regime {
    /// Returns [`Seesaw`] with its default constants.
    pub fn seesaw() -> Self {
        Regime::Seesaw(Seesaw::default())
    }
}

pub(super) fn examples() -> [Seesaw; 1] {
    [Seesaw::default()]
}

impl Seesaw {
    /// Returns an error, in the name of `regime`, if a number is outside its range.
    pub(super) fn validate_as(&self, regime: &dyn LearningRateRegime) -> Result<(), Error> {
        require_factor(regime, "exponent", self.exponent)?;
        require_factor(regime, "exponent_above", self.exponent_above)?;
        require_factor(regime, "gain", self.gain)?;
        let at_least_0 = |x: f32| x.is_finite() && x >= 0.0;
        let owner = || regime.owner();
        require(at_least_0(self.early_steps), owner, "early_steps", self.early_steps, "finite and at least 0")?;
        require_slow(regime, self.smoothing, self.norm_floor)?;
        require(at_least_0(self.brake_slack), owner, "brake_slack", self.brake_slack, "finite and at least 0")
    }
}

impl LearningRateRegime for Seesaw {
    fn name(&self) -> &'static str {
        "seesaw"
    }

    fn summary(&self) -> &'static str {
        "Norm and alignment, nothing to tune"
    }

    fn kernel(&self) -> &'static Kernel {
        &KERNEL
    }

    fn needs(&self) -> Needs {
        Needs { alignment: self.gain > 0.0, initial_norm: true, ..Needs::NOTHING }
    }

    fn first_step(&self, rule: &Rule, averaging: &Averaging) -> f32 {
        self.first_step.unwrap_or_else(|| rule.first_step(averaging))
    }

    fn smoothing(&self) -> f32 {
        self.smoothing
    }

    fn norm_floor(&self) -> f32 {
        self.norm_floor
    }

    fn constants(&self, rule: &Rule) -> RegimeConstants {
        RegimeConstants::of(&SeesawConstants::of(self, rule))
    }

    fn validate(&self) -> Result<(), Error> {
        self.validate_as(self)?;
        require_first_step(self, self.first_step, None)
    }

    fn reference(&self, rule: &Rule) -> Box<dyn RegimeReference> {
        Box::new(Law::of(self, rule))
    }
}

shared_structs! {
    /// Constants of Seesaw.
    pub(crate) struct SeesawConstants {
        /// p while the smoothed norm is below its first value.
        pub(crate) exponent: f32,
        /// p while the smoothed norm is above its first value.
        pub(crate) exponent_above: f32,
        /// κ.
        pub(crate) gain: f32,
        /// h, which sets the gain of the first steps.
        pub(crate) early_steps: f32,
        /// Slack of the brake.
        pub(crate) brake_slack: f32,
    }

    /// State of Seesaw.
    pub(crate) struct SeesawState {
        /// A, the sum of alignment, brake and held terms since the first step.
        pub(crate) agreement: Fixed,
        /// F, the least A so far, at most 0.
        pub(crate) least_agreement: Fixed,
        /// n̂₁, n̂ at the first step.
        pub(crate) anchor_norm: Scaled,
        /// Moving average of a_fast, without bias correction.
        pub(crate) mean_fast: f32,
        /// Sum of the weights in the moving average of a_fast.
        pub(crate) mean_fast_weight: f32,
        /// G, the agreement gained since the schedule began to rise, minus what the schedule has taken back.
        pub(crate) ahead: f32,
    }

    /// Alignment in a record.
    pub(crate) struct SeesawRecord {
        /// a_slow.
        pub(crate) slow_alignment: f32,
        /// a_fast.
        pub(crate) fast_alignment: f32,
    }
}

impl SeesawConstants {
    fn of(seesaw: &Seesaw, rule: &Rule) -> Self {
        SeesawConstants {
            exponent: seesaw.exponent,
            exponent_above: if rule.is_scale_free() { seesaw.exponent } else { seesaw.exponent_above },
            gain: seesaw.gain,
            early_steps: seesaw.early_steps,
            brake_slack: seesaw.brake_slack,
        }
    }
}

/// Numbers of Seesaw.
mod numbers {
    crate::layout::shared_constants! { ""
        /// ln of [`RATE_MAX`].
        pub const LN_RATE_LIMIT: f32 = 69.077_55;
        /// Largest magnitude of A: the distance between the limits of ln η.
        pub const AGREEMENT_LIMIT: f32 = 138.155_1;
        /// Weight of the past in the moving average of a_fast.
        pub const FAST_KEEP: f32 = 0.8;
    }
}
use numbers::{AGREEMENT_LIMIT, FAST_KEEP, LN_RATE_LIMIT};

pub(super) const KERNEL: Kernel = Kernel {
    constants: Some(SeesawConstants::DECLARED),
    state: Some(SeesawState::DECLARED),
    record: Some(SeesawRecord::DECLARED),
    own_constants: numbers::wgsl,
    follow,
    explain,
    ..Kernel::new("seesaw", include_str!("../../shaders/regime/seesaw.wgsl"))
};

fn explain(raw: &RawRecord) -> Details {
    let own: &SeesawRecord = raw.regime.own();
    Details { slow_alignment: own.slow_alignment, fast_alignment: own.fast_alignment, ..Details::default() }
}


fn follow(c: &GroupConstants, g: &Gradient, s: &mut GroupState, r: &mut RawRecord) {
    let k: &SeesawConstants = c.regime_constants.own();
    if g.first {
        s.regime.own_mut::<SeesawState>().anchor_norm = g.smoothed;
        set_first_rate(c, g, s, r);
        return;
    }
    let before = s.change;
    let mut own: SeesawState = *s.regime.own();
    let from_last_norm = from_norm_ratio(k, own.anchor_norm.ln_ratio_fixed(g.last_smoothed));
    let from_norm = from_norm_ratio(k, own.anchor_norm.ln_ratio_fixed(g.smoothed));
    let wanted_before = own.agreement.add(from_last_norm);
    r.terms[NORM_TERM as usize] = from_norm.subtract(from_last_norm).to_float();
    let mut lost = 0.0;
    if k.gain > 0.0 {
        lost = follow_alignment(c, g, s.mean_steps, &mut own, r);
    }
    let wanted = own.agreement.add(from_norm);
    s.regime = RegimeState::of(&own);
    let mut total = wanted;
    // Only a rise is clamped. A fall protects the run, and takes effect at once.
    if total.subtract(before).to_float() > MAX_CHANGE {
        r.flags |= record_flags::CLAMPED_CHANGE;
        total = before.add_float(MAX_CHANGE);
    }
    let ln_rate = s.ln_first_rate.add(total);
    let falling = ln_rate.whole < 0;
    let limit = Fixed::default().add_float(if falling { -LN_RATE_LIMIT } else { LN_RATE_LIMIT });
    let excess = ln_rate.subtract(limit).to_float();
    // A difference within the rounding of f32 does not count as beyond the limit.
    if (falling && excess < -1e-5) || (!falling && excess > 1e-5) {
        r.flags |= record_flags::CLAMPED_RATE;
        total = limit.subtract(s.ln_first_rate);
    }
    s.change = total;
    let growth = total.exp();
    s.regime_rate = Scaled::new(s.first_rate.mantissa * growth.mantissa, s.first_rate.exponent + growth.exponent)
        .to_float()
        .clamp(RATE_MIN, RATE_MAX);

    // η is anchored to its first value, so that a later step gives back what a clamp takes away now.
    let taken_before = before.subtract(wanted_before);
    r.terms[CLAMP_TERM as usize] = total.subtract(wanted).subtract(taken_before).to_float() - lost;
}

/// Returns p ln(n̂_1 / n̂), the change of ln η by the smoothed norm since the first step. p differs while the norm has
/// risen.
fn from_norm_ratio(k: &SeesawConstants, fallen: Fixed) -> Fixed {
    fallen.times(if fallen.whole < 0 { k.exponent_above } else { k.exponent })
}

/// Adds the alignment to A, within its floor. Steps that agree raise A, and steps that contradict each other lower it.
/// A falls below its least value so far only while n̂ is above twice its first value, and in full only from four times
/// on. Returns what the bounds of A took away.
fn follow_alignment(c: &GroupConstants, g: &Gradient, steps: u32, s: &mut SeesawState, r: &mut RawRecord) -> f32 {
    let k: &SeesawConstants = c.regime_constants.own();
    let mut recorded = SeesawRecord::default();
    let norm_in_sums = g.norm.quotient(Scaled { mantissa: 1.0, exponent: g.scale_of_sums }).to_float();
    // Before the third gradient y equals z up to rounding, so that their difference has no direction yet.
    if c.flags & group_flags::ITERATES == 0 || steps > 2 {
        recorded.slow_alignment = cosine(g.sums.slow_dot, norm_in_sums * g.sums.direction_square.sqrt());
    }
    let mut brake = 0.0;
    if c.flags & group_flags::BRAKE != 0 {
        recorded.fast_alignment = cosine(g.sums.fast_dot, g.sums.absolute);
        // The brake uses an average. One step's value is noisy, and noise in a brake only ever lowers the rate.
        s.mean_fast = FAST_KEEP * s.mean_fast + (1.0 - FAST_KEEP) * recorded.fast_alignment;
        s.mean_fast_weight = FAST_KEEP * s.mean_fast_weight + (1.0 - FAST_KEEP);
        brake = (s.mean_fast / s.mean_fast_weight + k.brake_slack).min(0.0);
    }
    let weight = gain(k, steps) * g.norm.quotient(g.smoothed).to_float();
    let (agreement, of_brake) = (weight * recorded.slow_alignment, weight * brake);
    // A rising schedule takes back the agreement that was gained while its factor was lower.
    let ahead = if g.scheduled_rise > 0.0 { (s.ahead + (agreement + of_brake)).max(0.0) } else { 0.0 };
    let taken_back = ahead.min(g.scheduled_rise);
    s.ahead = ahead - taken_back;
    let of_alignment = agreement - taken_back;
    r.terms[ALIGNMENT_TERM as usize] = of_alignment;
    r.terms[BRAKE_TERM as usize] = of_brake;
    r.regime = RegimeRecord::of(&recorded);

    let least = s.least_agreement;
    let mut next = s.agreement.add_float(of_alignment + of_brake);
    let below = least.subtract(next).to_float();
    if below > 0.0 {
        let doublings = g.smoothed.ln_ratio(s.anchor_norm) * std::f32::consts::LOG2_E;
        let held = 1.0 - (doublings - 1.0).clamp(0.0, 1.0);
        r.terms[HELD_TERM as usize] = held * below;
        // If the whole fall is held, A is exactly its floor, so that rounding cannot wear the floor down.
        next = if held == 1.0 { least } else { next.add_float(held * below) };
        s.least_agreement = next;
    }
    // Beyond this bound the rate is at its limit whatever the norm does. Without the bound a rate that was clamped for
    // long would recover slowly.
    let bound = next.to_float().clamp(-AGREEMENT_LIMIT, AGREEMENT_LIMIT);
    let lost = next.to_float() - bound;
    if lost != 0.0 {
        r.flags |= record_flags::CLAMPED_RATE;
        next = Fixed::default().add_float(bound);
    }
    s.agreement = next;
    lost
}

/// Computes κ_t = max(κ, h/(h + k - 2)) at the k-th gradient. It is 1 at the second gradient, the first that can be
/// compared with another. As in stochastic approximation, the first steps move the rate most.
fn gain(k: &SeesawConstants, steps: u32) -> f32 {
    let early = k.early_steps + (steps as f32 - 2.0);
    k.gain.max(k.early_steps / early.max(1.0))
}

/// Returns `numerator / denominator` as a cosine, or 0 if the denominator is 0 or a sum overflows f32.
fn cosine(numerator: f32, denominator: f32) -> f32 {
    if !numerator.is_finite() || !denominator.is_finite() || denominator <= 0.0 {
        return 0.0;
    }
    (numerator / denominator).clamp(-1.0, 1.0)
}

/// Seesaw in f64, as its documentation defines it.
struct Law {
    exponent: f64,
    exponent_above: f64,
    gain: f64,
    early_steps: f64,
    brake_slack: f64,
    anchor: f64,
    agreement: f64,
    least_agreement: f64,
    /// Moving average of a_fast, and the sum of its weights.
    mean_fast: (f64, f64),
    ahead: f64,
}

impl Law {
    fn of(seesaw: &Seesaw, rule: &Rule) -> Self {
        let above = if rule.is_scale_free() { seesaw.exponent } else { seesaw.exponent_above };
        Law {
            exponent: seesaw.exponent.into(),
            exponent_above: above.into(),
            gain: seesaw.gain.into(),
            early_steps: seesaw.early_steps.into(),
            brake_slack: seesaw.brake_slack.into(),
            anchor: 0.0,
            agreement: 0.0,
            least_agreement: 0.0,
            mean_fast: (0.0, 0.0),
            ahead: 0.0,
        }
    }

    fn of_norm(&self, smoothed: f64) -> f64 {
        let fallen = (self.anchor / smoothed).ln();
        fallen * if fallen < 0.0 { self.exponent_above } else { self.exponent }
    }
}

impl RegimeReference for Law {
    fn follow(&mut self, step: &RegimeStep) -> Rate {
        if step.first {
            self.anchor = step.smoothed;
            return Rate::Unchanged;
        }
        let (slow, fast) = step.alignment;
        let mut brake = 0.0;
        if let Some(fast) = fast {
            let (sum, weight) = self.mean_fast;
            self.mean_fast = (0.8 * sum + 0.2 * fast, 0.8 * weight + 0.2);
            brake = (self.mean_fast.0 / self.mean_fast.1 + self.brake_slack).min(0.0);
        }
        let early = self.early_steps / (self.early_steps + step.k - 2.0).max(1.0);
        let gain = if self.gain == 0.0 { 0.0 } else { self.gain.max(early) };
        let weight = gain * step.norm / step.smoothed;
        let of_brake = weight * brake;
        let rises = step.scheduled_rise >= 1e-6;
        self.ahead = if rises { (self.ahead + weight * slow + of_brake).max(0.0) } else { 0.0 };
        let taken_back = self.ahead.min(step.scheduled_rise);
        self.ahead -= taken_back;
        let of_alignment = weight * slow - taken_back;
        let raw = self.agreement + of_alignment + of_brake;
        let mut held = 0.0;
        self.agreement = raw;
        if raw < self.least_agreement {
            let counts = ((step.smoothed / self.anchor).log2() - 1.0).clamp(0.0, 1.0);
            self.agreement = self.least_agreement + counts * (raw - self.least_agreement);
            held = self.agreement - raw;
            self.least_agreement = self.agreement;
        }
        let limit = 2.0 * 1e30_f64.ln();
        self.agreement = self.agreement.clamp(-limit, limit);
        let from_norm = self.of_norm(step.smoothed);
        Rate::Change {
            total: from_norm + self.agreement,
            norm: from_norm - self.of_norm(step.last_smoothed),
            alignment: of_alignment,
            brake: of_brake,
            held,
        }
    }
}
