//! AutoSgd: three streams of parameters, of which a test on the losses selects one.

use crate::layout::slots;

/// Three streams of SGD at the rates `η/C`, `η` and `C η`; at the end of an episode a test on their losses picks one, whose parameters all
/// three go on from (Surjanovic, Bouchard-Côté & Campbell 2025, arXiv:2505.21651).
///
/// The project holds the paper's abstract and a summary of its recursion, not its full text. From them are the three streams,
/// `C = 2`, the episodes, and what can come of one: the rate rises, stays, falls, or falls and the episode is taken back. **The
/// test, the length of an episode and the order of turns are this project's own.** In the summary a falling rate goes with the middle
/// stream's parameters; here every outcome goes with the parameters of the stream that won.
///
/// # Turns
/// The caller knows nothing of streams: one gradient and one loss per step, as ever. Steps go in rounds of three: step t belongs
/// to the middle (`t mod 3 = 0`), the slower (1) or the faster stream (2), and after the step the caller's buffer holds the parameters
/// of the stream whose turn comes next. 12 bytes per parameter are kept: two streams, and the parameters from before the episode.
///
/// - **After every third step the caller's buffer holds the middle stream's parameters, or, where an episode ends there, the
///   winner's**: that is when to evaluate, to save and to stop. In between it holds another stream's, those of a rate that may be
///   too high among them. After an episode ([`Flags::episode_ends`](crate::Flags::episode_ends)), and only there, the caller may put other
///   parameters in.
/// - Three gradients make one step of progress. Streams see different mini-batches; the paper's share their noise. A caller who
///   wants that shows each batch three times, to steps 3k, 3k+1 and 3k+2: no step ever changes whose turn it is, not even a skipped one.
///
/// # The test
/// In a round the streams' losses are `f₋`, `f` and `f₊`. From the second round on (in the first all three are at the same parameters)
/// `d = (f₊ - f)/(|f₊| + |f|)` is added up, with its square, and the same for `f₋`; the bounded difference neither lets one diverging loss
/// hide what the others say, nor depends on the loss's scale. After `k` = 4, 8, 16, … rounds, and after `rounds`, with mean and standard
/// deviation of the k values,
/// `t = mean √k / deviation`:
/// - `t₊ ≤ -certainty`: the faster stream's losses are lower. It wins; η becomes `C η`.
/// - otherwise `t₋ ≤ -certainty`: the slower stream wins, and η becomes `η/C`.
/// - otherwise, where both are at least `certainty`, or after `rounds`, the middle stream wins. Where neither holds the episode goes on.
///
/// A stream whose loss or gradient is not finite after it has moved is **lost**: the step is skipped and recorded as any such step is,
/// its parameters stay what they were bit for bit, and the episode ends with the round. The faster one then cannot win; with
/// the middle one lost, the slower wins. Where that is lost too, or its loss in the last round is more than
/// twice the loss at the start (`(f₋ - f₀)/(|f₋| + |f₀|) > 1/3`), the episode is taken back: the parameters are again those from
/// before it, and η becomes `η/C`. A non-finite gradient at an episode's start, or one by which a [`LossScaler`](crate::LossScaler) lowers its
/// scale, is nobody's fault: the step is skipped, and that is all. After a halt ([`NonFinitePolicy`](crate::NonFinitePolicy)) no turn passes either.
///
/// # Rates
/// The first rate is `ε (1 + ‖w₀‖)/n₀` unless one is given. [`Record::learning_rate`](crate::Record::learning_rate) and the learning rates on the
/// device are η, that of the middle stream; [`Record::stream`](crate::Record::stream) says whose step it was. A schedule multiplies all three.
/// With several groups, or [`Group::per_tensor`](crate::Group::per_tensor), each has an η of its own from its own first gradient; there is
/// one loss, so that all of them have the same turns, episodes and outcomes. All groups of the optimizer must have this regime, with the
/// same `factor`, `certainty` and `rounds`, climb or descend together, and have [`Rule::Sgd`](crate::Rule::Sgd) or
/// [`Rule::SignSgd`](crate::Rule::SignSgd): a momentum would be needed thrice. Averages and trust ratios are refused, which would mix the
/// streams. With `maximize` the higher loss wins.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
pub struct AutoSgd {
    /// `C = 2`, above 1; the slower stream's rate is `η/C`.
    pub factor: f32,
    /// `3`: how many standard errors a mean difference must be away from 0.
    pub certainty: f32,
    /// `1024`: the most rounds that are compared before the middle stream wins.
    pub rounds: u32,
    /// η of the first episode; `None` takes it from the first step's length.
    pub initial_rate: Option<f32>,
    /// `ε = 1e-2`, used where `initial_rate` is `None`.
    pub first_step: f32,
}

impl AutoSgd {
    /// Rounds before the first test: the deviation of fewer differences says little.
    pub(crate) const FIRST_LOOK: u32 = 4;
    /// The most rounds, whose sums f32 holds with precision.
    pub(crate) const MOST_ROUNDS: u32 = 65_536;
    /// Steps of a round.
    pub const STREAMS: u32 = slots::STREAM_SLOTS;
}

impl Default for AutoSgd {
    fn default() -> Self {
        AutoSgd { factor: 2.0, certainty: 3.0, rounds: 1024, initial_rate: None, first_step: 1e-2 }
    }
}
