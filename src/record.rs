//! Records: one per step and group, with terms that add up to the change of ln η.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Problem};
use crate::layout::terms::{self, TERMS};
use crate::layout::{NO_ELEMENT, RawRecord, RawTensorRecord, record_flags, unscale};
use crate::plan::{Names, Plan};
use crate::regime::{Estimate, Kernel, Look, Outcome, Stream};

/// One step of one group, with the causes of the change of its learning rate.
///
/// The [`terms`](Record::terms) add up to the change of `ln_rate` since the group's previous step, up to the rounding
/// of f32. On the first step they are 0.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Record {
    /// Steps attempted before this one.
    pub step: u64,
    /// Index of the group, in the order of declaration.
    pub group: usize,
    /// First element, over all groups, that took no step because its new value or new momentum would be outside the
    /// range of its type. The cause may be a very large gradient, or an unsuitable rate or decay. The parameters stay
    /// finite. The numbers are the tensor, as an index into [`tensors`](crate::Optimizer::tensors), and the element's
    /// index in it. On an optimizer over several ranks it refers to the elements of the rank itself.
    pub overflow: Option<(usize, u64)>,
    /// Special events of the step: first, skipped, clipped and so on.
    pub flags: Flags,
    /// n, the norm of the gradient that the regime sees, before a clip. It saturates at `f32::MAX`. It is NaN for a
    /// skipped step, and if it was not measured ([`Flags::unmeasured`]).
    pub norm: f32,
    /// n̂, the smoothed norm. A skipped step has the value of the previous step. It is NaN if it was not measured.
    pub smoothed_norm: f32,
    /// a_slow, the cosine of the gradient with the momentum or direction memory. It is 0 if the group keeps neither.
    pub slow_alignment: f32,
    /// a_fast, the agreement with the last step: `⟨g, sign u_{t-1}⟩ / ‖g‖₁`. It is 0 if the group keeps no direction
    /// counters.
    pub fast_alignment: f32,
    /// η, the learning rate of the step. Under [`AutoSgd`](crate::AutoSgd) it is the rate of the middle stream.
    pub learning_rate: f32,
    /// ln η, accurate to 2⁻³². It is `-inf` while there is no learning rate yet ([`Flags::waiting`]).
    pub ln_rate: f64,
    /// Contributions to the change of ln η. See [`Record::terms`].
    pub(crate) terms: [f32; TERMS],
    /// Trust ratio, a factor of η ([`TrustRatio`](crate::TrustRatio)). It is 1 if the group has none.
    pub trust_ratio: f32,
    /// Episode of the step under [`AutoSgd`](crate::AutoSgd), counted from 0.
    pub episode: u32,
    /// Stream that took the step under [`AutoSgd`](crate::AutoSgd).
    pub stream: Option<Stream>,
    /// Outcome of the previous episode, in the first step that is taken after it.
    pub outcome: Option<Outcome>,
    /// Result of the look at the last step that moved the group, under [`Curvature`](crate::Curvature). It is `None` if
    /// there was nothing to look at, and in steps that leave the group out.
    pub look: Option<Look>,
    /// Estimate that determines the rate of the step under [`Prodigy`](crate::Prodigy) and
    /// [`Mechanic`](crate::Mechanic). It is `None` in steps without a gradient and in skipped steps.
    pub estimate: Option<Estimate>,
    /// Factor of the clip by norm, `min(1, C/n)`.
    pub clip_factor: f32,
    /// Number of steps of this group that were skipped so far, including this one.
    pub skipped: u32,
    /// Number of consecutive skipped steps up to this one, as counted by
    /// [`NonFinitePolicy::Error`](crate::NonFinitePolicy::Error). It is 0 after any other step, and if a smaller loss
    /// scale may help.
    pub skips_in_row: u32,
    /// Scale of this step's gradients, which was divided out of them. It is 1 without a
    /// [`LossScaler`](crate::LossScaler).
    pub loss_scale: f32,
    /// Non-finite elements that caused the skip. After a halt they are those of the step that halted. `None` for a step
    /// that was taken.
    pub nonfinite: Option<NonFinite>,
    /// Non-finite elements in an optimizer over several ranks ([`sharded`](crate::OptimizerBuilder::sharded)). All
    /// ranks have the same value. [`Record::nonfinite`] is then set only on the rank that has the element.
    pub rank_nonfinite: Option<RankNonFinite>,
    /// Names of groups and tensors, for [`Display`](fmt::Display).
    pub(crate) names: Arc<Names>,
}

/// Norms of one tensor and of its step, recorded with [`telemetry`](crate::OptimizerBuilder::telemetry).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorRecord {
    /// Steps attempted before this one.
    pub step: u64,
    /// The tensor, as an index into [`tensors`](crate::Optimizer::tensors).
    pub tensor: usize,
    /// True if the step was skipped, so that nothing moved.
    pub skipped: bool,
    /// ‖w‖, the norm of the parameters after the step. It is correct for all finite f32 values and saturates at
    /// `f32::MAX`. It is not finite if an element is not, and NaN if every step so far was skipped.
    pub parameter_norm: f32,
    /// ‖s‖, the distance from the old to the new parameters after rounding, including weight decay. It is 0 if the step
    /// was skipped.
    pub step_norm: f32,
    /// η of the tensor's group.
    pub learning_rate: f32,
}

impl TensorRecord {
    /// Returns ‖s‖/‖w‖, the length of the step relative to the parameters. Networks tend to train well at about 1e-3.
    pub fn relative_step(&self) -> f64 {
        f64::from(self.step_norm) / f64::from(self.parameter_norm)
    }

    /// Returns the effective learning rate η/‖w‖² of a scale-invariant tensor, such as weights before a normalisation
    /// layer. The gradient of such a tensor is orthogonal to `w` and proportional to 1/‖w‖, so that gradient descent on
    /// the direction w/‖w‖ has this rate (Kodryan et al. 2022, arXiv:2209.03695; Ali Mehmeti-Göpel & Wand 2023,
    /// arXiv:2306.00700). For other tensors the value has no such meaning.
    pub fn effective_rate(&self) -> f64 {
        f64::from(self.learning_rate) / f64::from(self.parameter_norm).powi(2)
    }

    /// Returns the largest relative step of these records divided by the smallest, or `None` if there is no step to
    /// compare. Give it the records of one step. Tensors that did not move are left out.
    ///
    /// For the weights before normalisation layers, which are scale-invariant, it is the spread of their effective
    /// learning rates. Steps along the gradient reduce it, because those with large relative steps grow most (Mehmeti-
    /// Göpel & Wand 2023, arXiv:2306.00700). The caller knows which tensors these are.
    pub fn relative_step_spread<'a>(records: impl IntoIterator<Item = &'a TensorRecord>) -> Option<f64> {
        let steps = records.into_iter().map(TensorRecord::relative_step);
        let steps = steps.filter(|step| *step > 0.0 && step.is_finite());
        let ends = steps.fold(None, |ends: Option<(f64, f64)>, step| {
            Some(ends.map_or((step, step), |(least, largest)| (least.min(step), largest.max(step))))
        });
        ends.map(|(least, largest)| largest / least)
    }

    fn from_raw(raw: &RawTensorRecord) -> Self {
        TensorRecord {
            step: u64::from(raw.step_high) << 32 | u64::from(raw.step_low),
            tensor: raw.tensor as usize,
            skipped: raw.flags & record_flags::SKIPPED != 0,
            parameter_norm: if raw.flags & record_flags::WAITING != 0 { f32::NAN } else { raw.parameter_norm },
            step_norm: raw.step_norm,
            learning_rate: raw.learning_rate,
        }
    }
}

/// Elements that caused a step to be skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NonFinite {
    /// Number of NaN or infinite gradient elements over all groups. Before the first step it includes parameter
    /// elements.
    pub count: u32,
    /// Tensor of the first such element, as an index into [`tensors`](crate::Optimizer::tensors).
    pub tensor: usize,
    /// Index of the first such element in its tensor.
    pub element: u64,
}

/// Elements that caused a step over several ranks to be skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankNonFinite {
    /// Number of NaN or infinite elements over all groups and ranks.
    pub count: u32,
    /// Rank that has the first such element.
    pub rank: u32,
    /// Index of the first such element among the elements of its rank, in the order of declaration.
    pub element: u64,
}

/// Formats as `2 non-finite elements, the first on rank 1 at index 17 of its elements`.
impl fmt::Display for RankNonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} non-finite element{}, the first on rank {} at index {} of its elements",
            self.count,
            if self.count == 1 { "" } else { "s" },
            self.rank,
            self.element
        )
    }
}

/// Special events of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// Returns true for the first step with a gradient. Its rate comes from the first step's length, or from the
    /// caller.
    pub fn first(self) -> bool {
        self.0 & record_flags::FIRST != 0
    }
    /// Returns true if the gradient was zero. The rate and the regime's state are carried over. The rule still runs:
    /// momentum and decoupled decay move the parameters, as with any optimizer.
    pub fn zero_gradient(self) -> bool {
        self.0 & record_flags::ZERO_GRADIENT != 0
    }
    /// Returns true if the step was skipped, because a gradient of any group was not finite or training has halted. A
    /// skipped step changes nothing, except that under [`AutoSgd`](crate::AutoSgd) the next stream takes its turn.
    pub fn skipped(self) -> bool {
        self.0 & record_flags::SKIPPED != 0
    }
    /// Returns true if the gradient was scaled down to the clip norm.
    pub fn clipped(self) -> bool {
        self.0 & record_flags::CLIPPED != 0
    }
    /// Returns true if the change of ln η was limited to ±ln 10. Seesaw, NormRatio and Hypergradient limit only rises.
    pub fn clamped_change(self) -> bool {
        self.0 & record_flags::CLAMPED_CHANGE != 0
    }
    /// Returns true if η was limited to `[1e-30, 1e30]`.
    pub fn clamped_rate(self) -> bool {
        self.0 & record_flags::CLAMPED_RATE != 0
    }
    /// Returns true if the step was skipped because the loss was not finite.
    pub fn nonfinite_loss(self) -> bool {
        self.0 & record_flags::NONFINITE_LOSS != 0
    }
    /// Returns true if training has halted because too many steps in a row were skipped, or left elements whose new
    /// value was out of range. No step changes anything until [`resume`](crate::Optimizer::resume) is called. See
    /// [`NonFinitePolicy::Error`](crate::NonFinitePolicy::Error).
    pub fn halted(self) -> bool {
        self.0 & record_flags::HALTED != 0
    }
    /// Returns true if the loss scale changes after this step: it is halved if the step was skipped, and doubled otherwise.
    pub fn scale_changed(self) -> bool {
        self.0 & record_flags::SCALE_CHANGED != 0
    }
    /// Returns true if the [`AutoSgd`](crate::AutoSgd) stream of this step is lost, because its loss or gradient was
    /// not finite after it had moved.
    pub fn stream_lost(self) -> bool {
        self.0 & record_flags::STREAM_LOST != 0
    }
    /// Returns true if an episode of [`AutoSgd`](crate::AutoSgd) ends with this step. Until the next step the caller's buffer holds the
    /// winner's parameters.
    pub fn episode_ends(self) -> bool {
        self.0 & record_flags::EPISODE_ENDS != 0
    }
    /// Returns true if the group is frozen ([`Controls::frozen`](crate::Controls::frozen)), so that the step changed
    /// nothing of it.
    pub fn frozen(self) -> bool {
        self.0 & record_flags::FROZEN != 0
    }
    /// Returns true if the group had no gradients in this step
    /// ([`encode_step_without`](crate::Optimizer::encode_step_without)), so that the step changed nothing of it.
    pub fn absent(self) -> bool {
        self.0 & record_flags::ABSENT != 0
    }
    /// Returns true if the norm of the gradient was an outlier. The group then took no step, or its gradient was
    /// clipped, depending on [`NormOutliers`](crate::NormOutliers).
    pub fn outlier(self) -> bool {
        self.0 & record_flags::OUTLIER != 0
    }
    /// Returns true if the gradients were not measured. See
    /// [`NonFinitePolicy::Unchecked`](crate::NonFinitePolicy::Unchecked).
    pub fn unmeasured(self) -> bool {
        self.0 & record_flags::UNMEASURED != 0
    }
    /// Returns true if the learning rate is 0. Either every gradient so far was zero or not finite, or the caller has
    /// set its factor to 0.
    pub fn waiting(self) -> bool {
        self.0 & record_flags::WAITING != 0
    }
}

/// Formats as names joined by `+`, empty for an ordinary step: `first`, `zero`, `skipped`, `clipped`, `clamped-change`,
/// `clamped-rate`, `waiting`, `nonfinite-loss`, `halted`, `scale-changed`, `stream-lost`, `episode-ends`, `frozen`,
/// `absent`, `outlier`, `unmeasured`.
impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (self.first(), "first"),
            (self.zero_gradient(), "zero"),
            (self.skipped(), "skipped"),
            (self.clipped(), "clipped"),
            (self.clamped_change(), "clamped-change"),
            (self.clamped_rate(), "clamped-rate"),
            (self.waiting(), "waiting"),
            (self.nonfinite_loss(), "nonfinite-loss"),
            (self.halted(), "halted"),
            (self.scale_changed(), "scale-changed"),
            (self.stream_lost(), "stream-lost"),
            (self.episode_ends(), "episode-ends"),
            (self.frozen(), "frozen"),
            (self.absent(), "absent"),
            (self.outlier(), "outlier"),
            (self.unmeasured(), "unmeasured"),
        ];
        let mut separator = "";
        for (_, name) in names.iter().filter(|(set, _)| *set) {
            write!(f, "{separator}{name}")?;
            separator = "+";
        }
        Ok(())
    }
}

impl Record {
    /// Converts a raw record of an optimizer with this plan.
    pub(crate) fn from_raw(raw: &RawRecord, plan: &Plan) -> Self {
        let kernel = plan.groups.get(raw.group as usize).map(Kernel::of);
        let details = kernel.map_or_else(Default::default, |kernel| (kernel.explain)(raw));
        let flags = Flags(raw.flags);
        let found = flags.skipped().then(|| plan.locate(raw.first_nonfinite));
        let count = raw.nonfinite;
        let nonfinite = found.and_then(|found| found.tensor);
        let nonfinite = nonfinite.map(|(tensor, element)| NonFinite { count, tensor, element });
        let rank_nonfinite = found.and_then(|found| found.rank);
        let rank_nonfinite = rank_nonfinite.map(|(rank, element)| RankNonFinite { count, rank, element });
        let overflow = (raw.overflow_key != 0).then(|| plan.locate_here((NO_ELEMENT - raw.overflow_key).into()));
        let overflow = overflow.flatten();
        Record {
            overflow,
            step: u64::from(raw.step_high) << 32 | u64::from(raw.step_low),
            group: raw.group as usize,
            flags,
            norm: if flags.skipped() || flags.unmeasured() { f32::NAN } else { raw.norm },
            smoothed_norm: if flags.unmeasured() { f32::NAN } else { raw.smoothed_norm },
            slow_alignment: details.slow_alignment,
            fast_alignment: details.fast_alignment,
            learning_rate: raw.learning_rate,
            ln_rate: if flags.waiting() {
                f64::NEG_INFINITY
            } else {
                f64::from(raw.ln_rate.whole) + f64::from(raw.ln_rate.fraction) / 4_294_967_296.0
            },
            terms: raw.terms,
            trust_ratio: raw.trust_ratio,
            episode: details.episode,
            stream: details.stream,
            outcome: details.outcome,
            look: details.look,
            estimate: details.estimate,
            clip_factor: raw.clip_factor,
            skipped: raw.skipped,
            skips_in_row: raw.skips_in_row,
            loss_scale: unscale(-raw.loss_scale_exponent),
            nonfinite,
            rank_nonfinite,
            names: plan.names.clone(),
        }
    }

    /// Returns every contribution to the change of ln η since the group's previous step, in the order of [`Term::ALL`].
    /// They add up to [`Record::change`], up to the rounding of f32. On the first step they are 0.
    pub fn terms(&self) -> impl Iterator<Item = (Term, f32)> {
        Term::ALL.iter().copied().zip(self.terms)
    }

    /// Returns one contribution to the change of ln η.
    pub fn term(&self, term: Term) -> f32 {
        self.terms[term as usize]
    }

    /// Returns the change of ln η since the group's previous step, which is the sum of the terms.
    pub fn change(&self) -> f64 {
        self.terms().map(|(_, term)| f64::from(term)).sum()
    }
}

impl Plan {
    /// Returns the error for a record of a halted optimizer.
    pub(crate) fn halted(&self, record: &Record) -> Option<Error> {
        if !record.flags.halted() {
            return None;
        }
        let first_step = record.step + 1 - u64::from(record.skips_in_row);
        let after = self.safeguards.nonfinite.halt_after();
        let place =
            |tensor: usize, element: u64| format!("tensor \"{}\" at index {element}", self.tensors[tensor].name);
        let skipped = match (record.nonfinite, record.rank_nonfinite) {
            (Some(NonFinite { count, tensor, element }), _) => {
                let plural = if count == 1 { "" } else { "s" };
                format!("{count} non-finite element{plural}, the first in {}", place(tensor, element))
            }
            (None, Some(bad)) => bad.to_string(),
            (None, None) => "a loss that was not finite".to_owned(),
        };
        let cause = match record.overflow {
            Some((tensor, element)) => format!(
                "in {after} steps in a row new values were out of the range of their type, in the last one first in {}",
                place(tensor, element)
            ),
            None => format!(
                "{after} steps in a row were skipped, from step {first_step} on, the last of them for {skipped}"
            ),
        };
        Some(Error::from(Problem::Halted { first_step, cause }))
    }
}

macro_rules! terms {
    ($($(#[$meta:meta])* $Term:ident($index:ident): $name:literal, $rising:literal, $falling:literal;)*) => {
        /// Cause of a change of ln η.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Term {
            $($(#[$meta])* $Term = terms::$index as isize,)*
        }

        impl Term {
            /// Every cause, in the order of [`Record::terms`].
            pub const ALL: &[Term] = &[$(Term::$Term),*];

            /// Returns the name that tables and column headers use.
            pub fn name(self) -> &'static str {
                match self {
                    $(Term::$Term => $name,)*
                }
            }

            /// Returns a phrase for a term that raises the rate (`rising`) or lowers it.
            #[doc(hidden)]
            pub fn cause(self, rising: bool) -> &'static str {
                match self {
                    $(Term::$Term => if rising { $rising } else { $falling },)*
                }
            }
        }
    };
}

terms! {
    /// The norm of the gradient. For Seesaw and NormRatio it is `p ln(n̂_{t-1}/n̂_t)`.
    Norm(NORM_TERM): "norm", "norm fell", "norm rose";
    /// The gradient's alignment with past directions, `κ_t (n/n̂) a_slow`. It is positive if steps agree. For
    /// [`Mechanic`](crate::Mechanic) it is `ln` of the growth of its scale.
    Alignment(ALIGNMENT_TERM): "alignment", "steps agree", "steps contradict";
    /// Successive steps that contradict each other: `κ_t (n/n̂) min(0, f + slack)`, where f is the moving average of
    /// `a_fast`. It is never positive.
    Brake(BRAKE_TERM): "brake", "brake released", "steps overshoot";
    /// The part of a fall by alignment and brake that [`Seesaw`](crate::Seesaw) holds back because the norm has not
    /// risen. It is never negative.
    Held(HELD_TERM): "held", "the norm has not risen since the start: rate held", "rate let go";
    /// The curvature along the last step, for the secant regimes ([`BarzilaiBorwein`](crate::BarzilaiBorwein),
    /// [`AdGd`](crate::AdGd), [`Curvature`](crate::Curvature)). It is their total change minus that of the norm.
    Curvature(CURVATURE_TERM): "curvature", "curvature is low", "curvature is high";
    /// The distance from the first parameters: `ln(r̄_t/r̄_{t-1})` for DoG and twice that for DoWG. For
    /// [`Prodigy`](crate::Prodigy) it is `ln(d_t/d_{t-1})` of the estimated distance.
    Distance(DISTANCE_TERM): "distance", "farther from the start", "nearer to the start";
    /// The sum of squared norms (AdaGradNorm, DoG, DoWG), `-½ ln` of its growth.
    History(HISTORY_TERM): "history", "history forgotten", "gradients add up";
    /// The change of the loss (Polyak, Ngn), or of the gap that ScheduleFree+ uses in its place.
    Loss(LOSS_TERM): "loss", "loss rose", "loss fell";
    /// The part of a rise that [`AdGd`](crate::AdGd)'s bound on growth holds back. It is never positive.
    Gate(GATE_TERM): "gate", "gate held back", "gate held back";
    /// The outcome of the last episode of [`AutoSgd`](crate::AutoSgd).
    Episode(EPISODE_TERM): "episode", "faster stream won", "slower stream won";
    /// The change that the limits of η and of its change per step take away, or give back later.
    Clamp(CLAMP_TERM): "clamp", "fall clamped", "rise clamped";
    /// The schedule: the change of ln of its factor.
    Schedule(SCHEDULE_TERM): "schedule", "schedule", "schedule";
    /// The trust ratio: the change of its ln.
    Trust(TRUST_TERM): "trust", "parameters grew beside the gradient", "parameters shrank beside the gradient";
    /// The factor that the caller sets ([`Controls::learning_rate_factor`](crate::Controls::learning_rate_factor)): the change of its ln.
    Control(CONTROL_TERM): "control", "factor raised by the caller", "factor lowered by the caller";
}

/// Formats the record as a sentence: `step 1: η 6.8175e-4, +115.6 %: norm fell (+13.4 %), steps agree (+90.2 %)`, or
/// `step 9: η 6.1000e-4, +0.2 %: norm fell (+0.2 %), steps contradict (-3.0 %), but the norm has not risen since the
/// start: rate held (+3.1 %)`. Percentages multiply. With several groups, the sentence contains the group's name: `step
/// 1, "head": η 6.8175e-4, …`. With streams it contains the stream that took the step and, in the first step of an
/// episode, the outcome of the previous one: `step 45: η 0.2, +100.0 %: episode 6: the faster stream won (+100.0 %);
/// slower stream`.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}", self.step)?;
        match self.names.groups.get(self.group) {
            Some(name) if self.names.groups.len() > 1 => write!(f, ", \"{name}\": ")?,
            _ => write!(f, ": ")?,
        }
        self.explain(f)?;
        match self.overflow {
            Some((tensor, element)) if !self.flags.skipped() => {
                let name = self.tensor_name(tensor);
                write!(
                    f,
                    "; new values out of range were not stored, the first in tensor \"{name}\" at index {element}"
                )
            }
            _ => Ok(()),
        }
    }
}

impl Record {
    fn tensor_name(&self, tensor: usize) -> &str {
        self.names.tensors.get(tensor).map_or("", String::as_str)
    }

    /// Writes the step's effects and their causes.
    fn explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.flags.skipped() {
            write!(f, "skipped")?;
            if let (true, Some(stream)) = (self.flags.stream_lost(), self.stream) {
                write!(f, ", the {} stream is lost", stream.name())?;
            }
            if self.flags.nonfinite_loss() {
                write!(f, ", the loss is not finite")?;
            }
            if let Some(bad) = self.nonfinite {
                write!(
                    f,
                    ", {} non-finite element{}, the first in tensor \"{}\" at index {}",
                    bad.count,
                    if bad.count == 1 { "" } else { "s" },
                    self.tensor_name(bad.tensor),
                    bad.element
                )?;
            } else if let Some(bad) = self.rank_nonfinite {
                write!(f, ", {bad}")?;
            }
            if self.flags.scale_changed() {
                write!(f, "; loss scale {} halved", self.loss_scale)?;
            }
            if self.flags.halted() {
                write!(f, "; halted, {} in a row", self.skips_in_row)?;
            }
            return Ok(());
        }
        if self.flags.frozen() {
            return write!(f, "nothing changed: the group is frozen");
        }
        if self.flags.absent() {
            return write!(f, "nothing changed: the group had no gradients");
        }
        if self.flags.outlier() && !self.flags.clipped() {
            return write!(f, "nothing changed: the gradient norm of {:.3e} is an outlier", self.norm);
        }
        if self.flags.waiting() && (self.smoothed_norm > 0.0 || self.flags.unmeasured()) {
            return write!(f, "η 0: the caller has set its factor to 0");
        }
        if self.flags.waiting() {
            return write!(f, "every gradient so far was zero, no learning rate yet");
        }
        write!(f, "η {:.4e}", self.learning_rate)?;
        if self.flags.first() {
            write!(f, ", the first step")?;
            // Earlier steps were skipped, or had a gradient of zero.
            return if self.step > 0 { write!(f, " with a gradient") } else { Ok(()) };
        }
        if self.flags.zero_gradient() && self.outcome.is_none() {
            return write!(f, ", carried over: the gradient is zero");
        }
        let percent = |change: f64| 100.0 * change.exp_m1();
        write!(f, ", {:+.1} %", percent(self.change()))?;
        let mut separator = ": ";
        for (term, change) in self.terms() {
            let change = percent(f64::from(change));
            if change.abs() >= 0.05 && term != Term::Episode {
                let cause = term.cause(change > 0.0);
                let but = if term == Term::Held { "but " } else { "" };
                write!(f, "{separator}{but}{cause} ({change:+.1} %)")?;
                separator = ", ";
            }
        }
        if let Some(outcome) = self.outcome {
            let before = self.episode.wrapping_sub(1);
            let change = percent(f64::from(self.term(Term::Episode)));
            write!(f, "{separator}episode {before}: {outcome} ({change:+.1} %)")?;
        }
        if let Some(stream) = self.stream {
            write!(f, "; {} stream", stream.name())?;
        }
        match self.look {
            Some(Look::Missing) => write!(f, "; no look at the step before")?,
            Some(Look::NotFinite) => write!(f, "; the look at the step before was not finite")?,
            Some(Look::Measured) | None => {}
        }
        if self.flags.clipped() {
            let why = if self.flags.outlier() { ", an outlier" } else { "" };
            write!(f, "; gradient clipped to {:.3} of its norm{why}", self.clip_factor)?;
        }
        if self.flags.scale_changed() {
            write!(f, "; loss scale {} doubled", self.loss_scale)?;
        }
        Ok(())
    }
}

/// Position up to which the records of a ring have been read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RecordCursor {
    next_step: u64,
}

impl RecordCursor {
    /// Returns a cursor for a ring whose next record belongs to this step.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn at(next_step: u64) -> Self {
        RecordCursor { next_step }
    }

    /// Reads the records of a ring that were not read before, in order, and counts those that were overwritten in the
    /// meantime.
    ///
    /// `rings` are the bytes of the ring of records and of the ring of tensor records.
    pub(crate) fn read(&mut self, rings: (&[u8], &[u8]), plan: &Plan) -> Records {
        let mut records: Vec<Record> = rings
            .0
            .chunks_exact(std::mem::size_of::<RawRecord>())
            .map(bytemuck::pod_read_unaligned::<RawRecord>)
            .filter(|raw| raw.flags & record_flags::WRITTEN != 0)
            .map(|raw| Record::from_raw(&raw, plan))
            .filter(|record| record.step >= self.next_step)
            .collect();
        records.sort_by_key(|record| (record.step, record.group));
        // The device keeps the overflow with the first group.
        for step in records.chunk_by_mut(|a, b| a.step == b.step) {
            let overflow = step[0].overflow;
            step.iter_mut().for_each(|record| record.overflow = overflow);
        }
        let mut tensors: Vec<TensorRecord> = rings
            .1
            .chunks_exact(std::mem::size_of::<RawTensorRecord>())
            .map(bytemuck::pod_read_unaligned::<RawTensorRecord>)
            .filter(|raw| raw.flags & record_flags::WRITTEN != 0)
            .map(|raw| TensorRecord::from_raw(&raw))
            .filter(|record| record.step >= self.next_step)
            .collect();
        tensors.sort_by_key(|record| (record.step, record.tensor));
        let there = records.chunk_by(|a, b| a.step == b.step).count() as u64;
        let lost_steps = match records.last() {
            Some(last) => last.step + 1 - self.next_step - there,
            None => 0,
        };
        if let Some(last) = records.last() {
            self.next_step = last.step + 1;
        }
        Records { records, tensors, lost_steps }
    }
}

/// Records that draining a ring returns.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Records {
    /// Records that were not drained before, ordered by step and group.
    pub records: Vec<Record>,
    /// Records of tensors that were not drained before, ordered by step and tensor. Only groups with
    /// [`telemetry`](crate::OptimizerBuilder::telemetry) have them.
    pub tensors: Vec<TensorRecord>,
    /// Number of steps whose records were overwritten before they were drained.
    pub lost_steps: u64,
}

impl Records {
    /// Appends later records.
    pub(crate) fn append(&mut self, mut later: Records) {
        self.records.append(&mut later.records);
        self.tensors.append(&mut later.tensors);
        self.lost_steps += later.lost_steps;
    }
}

/// Test of the rings of both paths with a counter that exceeds 32 bits.
#[cfg(test)]
pub(crate) mod past_two_to_the_32 {
    use super::Records;

    /// Numbers of steps that the rings hold. 2^32 is not a multiple of the last two.
    pub(crate) const RINGS: [u32; 3] = [2, 3, 7];
    /// Value of the counter before the first step.
    pub(crate) const START: u32 = u32::MAX - 4;
    /// Numbers of steps to take. 2^32 is the fifth step.
    pub(crate) const STEPS: [u64; 4] = [3, 5, 6, 11];

    /// Checks that after `n` steps the newest records are in the ring, in order, and that the others are counted as
    /// lost.
    pub(crate) fn check(ring: u32, n: u64, drained: Records, path: &str) {
        let first = u64::from(START);
        let steps: Vec<u64> = drained.records.iter().map(|record| record.step).collect();
        let newest = n.min(u64::from(ring));
        let expected: Vec<u64> = (first + n - newest..first + n).collect();
        assert_eq!(steps, expected, "{path}, a ring of {ring}");
        // The steps before the first one were not drained either.
        let lost = first + n - newest;
        assert_eq!(drained.lost_steps, lost, "{path}, a ring of {ring}");
    }
}
