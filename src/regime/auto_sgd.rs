//! AutoSgd, which runs three streams of parameters and selects one by a test on the losses. Its device code is
//! `shaders/regime/auto_sgd.wgsl`.

use std::fmt;

use super::first_rate::set_first_rate;
use super::gradient::{Gradient, Turn, hold_rate};
use super::{Details, Kernel, LearningRateRegime, Needs, RATE_MAX, RATE_MIN, Regime, formula, require_at_least_0, require_first_step};
use crate::averaging::Averaging;
use crate::error::{Error, require};
use crate::layout::terms::{CLAMP_TERM, EPISODE_TERM};
use crate::layout::{GroupConstants, GroupState, RawRecord, RegimeConstants, Scaled, record_flags, shared_structs, skips, slots};
use crate::reference::{Rate, RegimeReference, RegimeStep};
use crate::rule::Rule;

/// Three streams of SGD at the rates `η/C`, `η` and `C η`. At the end of an episode a test on their losses selects one,
/// and all three streams continue from its parameters (Surjanovic, Bouchard-Côté & Campbell 2025, arXiv:2505.21651).
///
/// The project has the paper's abstract and a summary of its recursion, not its full text. The three streams, `C = 2`,
/// the episodes and their possible outcomes come from there: the rate rises, stays, falls, or falls and the episode is
/// taken back. **The test, the length of an episode and the order of turns are this project's own.** In the summary,
/// training continues from the middle stream's parameters if the rate falls. Here it always continues from the
/// parameters of the stream that won.
///
/// # Turns
/// The caller provides one gradient and one loss per step, as with other regimes. Steps come in rounds of three. Step t
/// belongs to the middle (`t mod 3 = 0`), the slower (1) or the faster stream (2). After the step the caller's buffer
/// holds the parameters of the next stream. The optimizer keeps 12 bytes per parameter: two streams, and the parameters
/// from before the episode.
///
/// - **After every third step the caller's buffer holds the middle stream's parameters or, if an episode ends there,
///   the winner's.** Evaluate, save and stop at these steps. In between, the buffer holds the parameters of another
///   stream, whose rate may be too high. The caller may write other parameters only after an episode
///   ([`Flags::episode_ends`](crate::Flags::episode_ends)).
/// - Three gradients make one step of progress. **Use each batch three times, in steps 3k, 3k+1 and 3k+2**: the streams
///   of the paper share their noise, and with different batches the test would also measure the noise of the batches
///   and not only the effect of the rates. `wgpu-optim train` does so. No step changes the order of turns, not even a
///   skipped one.
///
/// # The test
/// In a round the streams' losses are `f₋`, `f` and `f₊`. From the second round on, `d = (f₊ - f)/(|f₊| + |f|)` and its
/// square are summed, and the same for `f₋`. (In the first round all streams have the same parameters.) The difference
/// is bounded, so that one diverging loss does not hide the others, and it does not depend on the loss's scale. The
/// test runs after `k` = 4, 8, 16, … rounds and after `rounds`. With the mean and standard deviation of the k values,
/// `t = mean √k / deviation`:
///
/// - If `t₊ ≤ -certainty`, the faster stream's losses are lower. It wins, and η becomes `C η`.
/// - Otherwise, if `t₋ ≤ -certainty`, the slower stream wins, and η becomes `η/C`.
/// - Otherwise, if both are at least `certainty`, or after `rounds`, the middle stream wins.
/// - Otherwise the episode continues.
///
/// A stream whose loss or gradient is not finite after it has moved is **lost**. The step is skipped and recorded like
/// any skipped step, the stream's parameters keep their bits, and the episode ends with the round. If the faster stream
/// is lost, it cannot win. If the middle stream is lost, the slower one wins. If the slower stream is lost too, or its
/// loss in the last round is more than twice the loss at the start (`(f₋ - f₀)/(|f₋| + |f₀|) > 1/3`), the episode is
/// taken back: the parameters from before the episode are restored, and η becomes `η/C`. A non-finite gradient at an
/// episode's start, or one that makes a [`LossScaler`](crate::LossScaler) lower its scale, only skips the step. After a
/// halt ([`NonFinitePolicy`](crate::NonFinitePolicy)) the turns do not advance.
///
/// # Rates
/// The first rate is `ε (1 + ‖w₀‖)/n₀` unless one is given. [`Record::learning_rate`](crate::Record::learning_rate) and
/// the learning rates on the device are η, the rate of the middle stream. [`Record::stream`](crate::Record::stream)
/// tells which stream took the step. A schedule multiplies all three rates.
///
/// With several groups, or [`Group::per_tensor`](crate::Group::per_tensor), each has its own η from its own first
/// gradient. There is one loss, so that all of them have the same turns, episodes and outcomes. All groups of the
/// optimizer must have this regime with the same `factor`, `certainty` and `rounds`, must all minimize or all maximize,
/// and must have [`Rule::sgd`] or [`Rule::sign_sgd`], because a momentum would be needed three times. Averages and
/// trust ratios are refused, because they would mix the streams. With `maximize` the higher loss wins.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize, serde::Deserialize))]
pub struct AutoSgd {
    /// C, above 1. The default is 2. The slower stream's rate is `η/C`.
    pub factor: f32,
    /// Number of standard errors by which a mean difference must differ from 0. The default is 3.
    pub certainty: f32,
    /// Largest number of rounds that are compared before the middle stream wins. The default is 1024.
    pub rounds: u32,
    /// η of the first episode. `None` derives it from the first step's length.
    pub initial_rate: Option<f32>,
    /// ε of the first step, used if `initial_rate` is `None`. The default is 1e-2.
    pub first_step: f32,
}

impl AutoSgd {
    /// Rounds before the first test. The standard deviation of fewer differences is too uncertain.
    pub(crate) const FIRST_LOOK: u32 = numbers::FIRST_LOOK;
    /// Largest number of rounds. f32 holds the sums of so many with enough precision.
    pub(crate) const MOST_ROUNDS: u32 = 65_536;
    /// Number of steps of a round.
    #[doc(hidden)]
    pub const STREAMS: u32 = slots::STREAM_SLOTS;
}

/// One of the three parameter streams of [`AutoSgd`], in the order of their turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// The stream with learning rate η.
    Middle,
    /// The stream with learning rate `η/C`.
    Slower,
    /// The stream with learning rate `C η`.
    Faster,
}

impl Stream {

    /// Returns `slower`, `middle` or `faster`.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Slower => "slower",
            Stream::Middle => "middle",
            Stream::Faster => "faster",
        }
    }
}

/// Outcome of an episode of [`AutoSgd`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The stream had the lowest losses. All streams continue from its parameters, at its rate.
    Won(Stream),
    /// No stream improved the loss. All streams continue from the parameters before the episode, at the slower rate.
    TakenBack,
}

/// Formats the outcome as `the faster stream won` or `it was taken back`.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Won(stream) => write!(f, "the {} stream won", stream.name()),
            Outcome::TakenBack => write!(f, "it was taken back"),
        }
    }
}

impl Default for AutoSgd {
    fn default() -> Self {
        AutoSgd { factor: 2.0, certainty: 3.0, rounds: 1024, initial_rate: None, first_step: 1e-2 }
    }
}

impl Regime {
    /// Returns [`AutoSgd`] with the automatic first step.
    pub fn auto_sgd() -> Self {
        Regime::AutoSgd(AutoSgd::default())
    }
}

pub(super) fn examples() -> [AutoSgd; 1] {
    [AutoSgd::default()]
}

impl LearningRateRegime for AutoSgd {
    fn name(&self) -> &'static str {
        "auto-sgd"
    }

    fn summary(&self) -> &'static str {
        "Three streams at three rates, from which the loss selects one; without momentum only"
    }

    fn kernel(&self) -> &'static Kernel {
        &KERNEL
    }

    fn needs(&self) -> Needs {
        Needs { loss: true, streams: true, initial_norm: self.initial_rate.is_none(), ..Needs::NOTHING }
    }

    /// Refuses rules with memory, because three copies of it would be needed.
    fn fits(&self, rule: &Rule) -> bool {
        !(rule.has_momentum() || rule.has_second_moment())
    }

    fn initial_rate(&self) -> Option<f32> {
        self.initial_rate
    }

    fn first_step(&self, _: &Rule, _: &Averaging) -> f32 {
        self.first_step
    }

    fn constants(&self, _: &Rule) -> RegimeConstants {
        let AutoSgd { factor, certainty, rounds, .. } = *self;
        RegimeConstants::of(&AutoSgdConstants { factor, certainty, rounds })
    }

    fn validate(&self) -> Result<(), Error> {
        let owner = || self.owner();
        let in_range = self.factor > 1.0 && self.factor <= formula::MAX_FACTOR;
        require(in_range, owner, "factor", self.factor, "above 1 and at most 10")?;
        require_at_least_0(self, "certainty", self.certainty)?;
        let in_range = (AutoSgd::FIRST_LOOK..=AutoSgd::MOST_ROUNDS).contains(&self.rounds);
        require(in_range, owner, "rounds", self.rounds, "between 4 and 65536")?;
        require_first_step(self, Some(self.first_step), self.initial_rate)
    }

    fn reference(&self, _: &Rule) -> Box<dyn RegimeReference> {
        Box::new(*self)
    }
}

/// Stands for AutoSgd in f64. No step changes a rate here. The conformance suite exchanges the streams itself.
impl RegimeReference for AutoSgd {
    fn follow(&mut self, _: &RegimeStep) -> Rate {
        Rate::Unchanged
    }
}

/// The streams of AutoSgd, in the order of their turns.
pub(crate) mod streams {
    crate::layout::shared_constants! { ""
        /// Stream at η.
        pub const MIDDLE: u32 = 0;
        /// Stream at η/C.
        pub const SLOWER: u32 = 1;
        /// Stream at C η.
        pub const FASTER: u32 = 2;
    }
}

/// Outcomes of an episode of AutoSgd.
pub(crate) mod outcomes {
    crate::layout::shared_constants! { ""
        /// No outcome yet.
        pub const UNDECIDED: u32 = 0;
        /// The faster stream won: continue from its parameters at C η.
        pub const INCREASE: u32 = 1;
        /// The middle stream won: continue from its parameters at η.
        pub const STAY: u32 = 2;
        /// The slower stream won: continue from its parameters at η/C.
        pub const DECREASE: u32 = 3;
        /// All streams are lost: continue from the parameters before the episode at η/C.
        pub const RESTART: u32 = 4;
    }
}

/// Numbers of the test.
pub(crate) mod numbers {
    crate::layout::shared_constants! { ""
        /// Bit mask with one bit for each stream.
        pub const ALL_STREAMS: u32 = 7;
        /// Rounds before the first test.
        pub const FIRST_LOOK: u32 = 4;
    }
}
use numbers::{ALL_STREAMS, FIRST_LOOK};

shared_structs! {
    /// Constants of AutoSgd.
    pub(crate) struct AutoSgdConstants {
        /// C.
        pub(crate) factor: f32,
        /// Number of standard errors by which a mean difference must differ from 0.
        pub(crate) certainty: f32,
        /// Largest number of rounds in an episode.
        pub(crate) rounds: u32,
    }

    /// State of an AutoSgd episode. All groups of an optimizer have the same state, because they see the same losses.
    pub(crate) struct AutoSgdState {
        /// Number of episodes before this one.
        pub(crate) episode: u32,
        /// Number of the turn modulo 6. Its remainder by 3 is one of [`streams`]. The slot that the turn exchanges with
        /// alternates.
        pub(crate) turn: u32,
        /// Bit mask of the streams that took a step in this episode.
        pub(crate) moved: u32,
        /// Bit mask of the streams that moved and then had a non-finite loss or gradient.
        pub(crate) lost: u32,
        /// Bit mask of the streams whose loss of this round is known and can be compared.
        pub(crate) heard: u32,
        /// Number of rounds compared.
        pub(crate) rounds: u32,
        /// Outcome of the last episode, one of [`outcomes`], until a step is taken in this one.
        pub(crate) outcome: u32,
        /// Mean of the losses at the start of the episode.
        pub(crate) start_loss: f32,
        /// Loss of the middle stream in this round.
        pub(crate) middle_loss: f32,
        /// Loss of the slower stream in this round.
        pub(crate) slower_loss: f32,
        /// Sum of the relative differences of the slower stream's losses from the middle stream's.
        pub(crate) slower_sum: f32,
        /// Sum of the squares of the slower stream's differences.
        pub(crate) slower_squares: f32,
        /// Sum of the relative differences of the faster stream's losses from the middle stream's.
        pub(crate) faster_sum: f32,
        /// Sum of the squares of the faster stream's differences.
        pub(crate) faster_squares: f32,
    }

    /// Streams in a record.
    pub(crate) struct AutoSgdRecord {
        /// The episode of the step.
        pub(crate) episode: u32,
        /// 1 + the stream that took the step, one of [`streams`].
        pub(crate) stream: u32,
        /// Outcome of the previous episode, one of [`outcomes`], in the first step after it.
        pub(crate) outcome: u32,
    }
}

pub(super) const KERNEL: Kernel = Kernel {
    constants: Some(AutoSgdConstants::DECLARED),
    state: Some(AutoSgdState::DECLARED),
    record: Some(AutoSgdRecord::DECLARED),
    own_constants: || streams::wgsl() + &outcomes::wgsl() + &numbers::wgsl(),
    follow,
    begin_step,
    explain,
    ..Kernel::new("auto_sgd", include_str!("../../shaders/regime/auto_sgd.wgsl"))
};

fn explain(raw: &RawRecord) -> Details {
    let own: &AutoSgdRecord = raw.regime.own();
    Details {
        episode: own.episode,
        stream: match own.stream.checked_sub(1) {
            None => None,
            Some(streams::MIDDLE) => Some(Stream::Middle),
            Some(streams::SLOWER) => Some(Stream::Slower),
            Some(_) => Some(Stream::Faster),
        },
        outcome: match own.outcome {
            outcomes::INCREASE => Some(Outcome::Won(Stream::Faster)),
            outcomes::STAY => Some(Outcome::Won(Stream::Middle)),
            outcomes::DECREASE => Some(Outcome::Won(Stream::Slower)),
            outcomes::RESTART => Some(Outcome::TakenBack),
            _ => None,
        },
        ..Details::default()
    }
}

/// Sets the first rate. Later only the outcome of an episode changes the rate.
fn follow(c: &GroupConstants, g: &Gradient, s: &mut GroupState, r: &mut RawRecord) {
    if g.first {
        set_first_rate(c, g, s, r);
    }
}

/// Begins a step. After a halt nothing changes any more.
fn begin_step(c: &GroupConstants, loss: f32, skip: bool, halted: bool, s: &mut GroupState, r: &mut RawRecord) -> Turn {
    if halted {
        return Turn::NONE;
    }
    if !skip {
        enter_episode(c, s, r);
    }
    take_turn(c, loss, skip, s.regime.own_mut(), r)
}

/// Changes the rate by the outcome of the last episode, at the first step after it.
fn enter_episode(c: &GroupConstants, s: &mut GroupState, r: &mut RawRecord) {
    let own: &mut AutoSgdState = s.regime.own_mut();
    let outcome = std::mem::replace(&mut own.outcome, outcomes::UNDECIDED);
    r.regime.own_mut::<AutoSgdRecord>().outcome = outcome;
    if s.started == 0 || outcome == outcomes::UNDECIDED || outcome == outcomes::STAY {
        return;
    }
    let factor = c.regime_constants.own::<AutoSgdConstants>().factor;
    let old = s.first_rate;
    let wanted = if outcome == outcomes::INCREASE { old.times(factor) } else { old.quotient(Scaled::new(factor, 0)) };
    let rate = wanted.smaller(Scaled::new(RATE_MAX, 0)).larger(Scaled::new(RATE_MIN, 0));
    r.terms[EPISODE_TERM as usize] = wanted.ln_ratio(old);
    if rate != wanted {
        r.flags |= record_flags::CLAMPED_RATE;
        r.terms[CLAMP_TERM as usize] = rate.ln_ratio(wanted);
    }
    hold_rate(rate, s);
}

/// Takes one stream's turn: uses its loss, and selects the next stream.
fn take_turn(c: &GroupConstants, loss: f32, skip: bool, s: &mut AutoSgdState, r: &mut RawRecord) -> Turn {
    let k: &AutoSgdConstants = c.regime_constants.own();
    let stream = s.turn % slots::STREAM_SLOTS;
    let bit = 1 << stream;
    let recorded: &mut AutoSgdRecord = r.regime.own_mut();
    recorded.episode = s.episode;
    recorded.stream = 1 + stream;
    let mut turn = Turn {
        factor: match stream {
            streams::SLOWER => 1.0 / k.factor,
            streams::MIDDLE => 1.0,
            _ => k.factor,
        },
        ..Turn::NONE
    };
    let had_moved = s.moved & bit != 0;
    if skip {
        // If the loss scale fell, it may have been the only cause.
        if had_moved && r.flags & record_flags::SCALE_CHANGED == 0 {
            s.lost |= bit;
            r.flags |= record_flags::STREAM_LOST;
        }
    } else {
        turn.begins = u32::from(s.moved == 0);
        s.moved |= bit;
        if had_moved {
            hear(c, stream, loss, s);
        } else {
            let count = s.moved.count_ones() as f32;
            // Dividing each term keeps both quotients from overflowing.
            let change = loss / count - s.start_loss / count;
            s.start_loss = if count == 1.0 { loss } else { s.start_loss + change };
        }
    }
    if s.moved != 0 {
        // The two waiting streams are in two slots. The slot of the next stream is also where this stream goes. A
        // stream that has not moved is at the start.
        let slot = 1 + s.turn % 2;
        let next = (stream + 1) % slots::STREAM_SLOTS;
        turn.skip = skips::SKIP_STEP;
        // The parameters of a lost stream are not needed any more.
        turn.put = if skip { slots::NO_SLOT } else { slot };
        let found = |stream: u32, slot: u32| {
            if s.moved & 1 << stream != 0 { slot } else { slots::START_SLOT }
        };
        turn.take = found(next, slot);
        if stream == streams::FASTER {
            let outcome = decide(c, s);
            if outcome != outcomes::UNDECIDED {
                turn.put = slots::NO_SLOT;
                turn.take = match outcome {
                    outcomes::INCREASE => slots::NO_SLOT,
                    // The middle stream is the next one anyway.
                    outcomes::STAY => turn.take,
                    outcomes::DECREASE => found(streams::SLOWER, slots::STREAM_SLOTS - slot),
                    _ => slots::START_SLOT,
                };
                r.flags |= record_flags::EPISODE_ENDS;
                *s = AutoSgdState {
                    episode: s.episode.wrapping_add(1),
                    turn: s.turn,
                    outcome,
                    ..AutoSgdState::default()
                };
            }
        }
    }
    if stream == streams::FASTER {
        s.heard = 0;
    }
    s.turn = (s.turn + 1) % (2 * slots::STREAM_SLOTS);
    turn
}

/// Computes (a - b)/(|a| + |b|), from -1 to 1. It does not depend on the loss's scale, and is 0 if both are 0.
fn relative_difference(a: f32, b: f32) -> f32 {
    let magnitude = 0.5 * a.abs() + 0.5 * b.abs();
    if magnitude > 0.0 { (0.5 * a - 0.5 * b) / magnitude } else { 0.0 }
}

/// Takes the loss of a stream that has moved. The last one of a round compares all of them.
fn hear(c: &GroupConstants, stream: u32, loss: f32, s: &mut AutoSgdState) {
    s.heard |= 1 << stream;
    match stream {
        streams::MIDDLE => s.middle_loss = loss,
        streams::SLOWER => s.slower_loss = loss,
        _ => {}
    }
    if stream == streams::FASTER && s.heard == ALL_STREAMS {
        let faster = c.sign * relative_difference(loss, s.middle_loss);
        let slower = c.sign * relative_difference(s.slower_loss, s.middle_loss);
        s.faster_sum += faster;
        s.faster_squares += faster * faster;
        s.slower_sum += slower;
        s.slower_squares += slower * slower;
        s.rounds += 1;
    }
}

/// Returns true if the mean difference is at least `certainty` standard errors.
fn is_certain(certainty: f32, sum: f32, squares: f32, rounds: u32) -> bool {
    if rounds < FIRST_LOOK {
        return false;
    }
    let k = rounds as f32;
    let explained = sum * sum / k;
    let variance = (squares - explained).max(0.0) / (k - 1.0);
    explained >= certainty * certainty * variance
}

/// Returns the outcome of the episode after a round.
fn decide(c: &GroupConstants, s: &AutoSgdState) -> u32 {
    let k: &AutoSgdConstants = c.regime_constants.own();
    let (rounds, most) = (s.rounds, k.rounds);
    let is_lost = |stream: u32| s.lost & 1 << stream != 0;
    let is_look = s.heard == ALL_STREAMS && rounds >= FIRST_LOOK && (rounds.is_power_of_two() || rounds >= most);
    if !is_look && s.lost == 0 {
        return outcomes::UNDECIDED;
    }
    let faster_differs = is_certain(k.certainty, s.faster_sum, s.faster_squares, rounds);
    let slower_differs = is_certain(k.certainty, s.slower_sum, s.slower_squares, rounds);
    let faster_wins = faster_differs && s.faster_sum < 0.0 && !is_lost(streams::FASTER);
    let slower_wins = slower_differs && s.slower_sum < 0.0 && !is_lost(streams::SLOWER);
    if is_lost(streams::MIDDLE) || slower_wins && !faster_wins {
        let risen = c.sign * relative_difference(s.slower_loss, s.start_loss) > 1.0 / 3.0;
        return if is_lost(streams::SLOWER) || risen { outcomes::RESTART } else { outcomes::DECREASE };
    }
    if faster_wins {
        return outcomes::INCREASE;
    }
    let both_worse = faster_differs && s.faster_sum > 0.0 && slower_differs && s.slower_sum > 0.0;
    if both_worse || s.lost != 0 || rounds >= most {
        return outcomes::STAY;
    }
    outcomes::UNDECIDED
}
