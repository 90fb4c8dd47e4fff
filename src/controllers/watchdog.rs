//! The epoch watchdog: its settings, its arithmetic, its verdicts, and the CPU path. The device's code is in `src/gpu/controllers/watchdog.rs`.

use std::fmt;

use crate::controllers::products::{add_up_rows, push_rows};
use crate::cpu::optimizer::{CpuOptimizer, Snapshot};
use crate::cpu::values::{Slice, Values, ValuesMut};
use crate::error::{CallError, Error, require};
use crate::layout::numbers::RATE_MIN;
use crate::layout::{GroupState, shared_structs};

pub(crate) mod numbers {
    crate::layout::shared_constants! { ""
        /// Largest number of epochs that a nonmonotone watchdog can look back over.
        pub const WATCHDOG_WINDOW: u32 = 16;
        /// Number of verdicts that the device keeps.
        pub const VERDICT_RING: u32 = 256;
        /// [`RawVerdict::outcome`] of an accepted epoch.
        pub const EPOCH_ACCEPTED: u32 = 0;
        /// Value of `RawVerdict::outcome` for an epoch whose parameters are kept, at a lower rate.
        pub const EPOCH_SLOWED: u32 = 1;
        /// Value of `RawVerdict::outcome` for an epoch that is taken back.
        pub const EPOCH_TAKEN_BACK: u32 = 2;
        /// Flag of [`RawVerdict::flags`]: a loss, or their sum, was not finite.
        pub const VERDICT_LOST: u32 = 1;
        /// Flag of [`RawVerdict::flags`]: no loss was known to compare with.
        pub const VERDICT_UNKNOWN: u32 = 2;
    }
}
use numbers::*;

shared_structs! {
    /// Constants of the watchdog's kernels.
    pub struct WatchdogConstants {
        /// Number of epochs that a nonmonotone test looks back over, or 0 for CMA Light.
        pub window: u32,
        /// θ.
        pub decrease: f32,
        /// γ.
        pub margin: f32,
        /// Number of rows of partial sums of the distance, or 0 if it is not needed.
        pub rows: u32,
    }

    /// Weight of a batch, and the place of its loss in the binding.
    pub struct WatchdogBatch {
        pub weight: f32,
        pub loss_at: u32,
    }

    /// State of the watchdog.
    pub struct WatchdogState {
        /// Σ weight · loss of the epoch.
        pub sum: f32,
        /// Σ weight of the epoch.
        pub weight: f32,
        /// 1 after a loss that is not finite.
        pub lost: u32,
        /// 1 once the watch has started.
        pub started: u32,
        /// 1 once the loss at the start is known.
        pub has_start: u32,
        /// f(w₀).
        pub start: f32,
        /// φ, the least loss of an epoch.
        pub least: f32,
        /// Losses that a nonmonotone test compares with, in a ring.
        pub accepted: [f32; 16],
        /// Number of losses that were put into the ring, including those that are overwritten.
        pub accepted_count: u32,
        /// Number of epochs that were judged.
        pub epochs: u32,
        /// 1 if the last epoch was taken back.
        pub taken_back: u32,
    }

    /// A verdict on the device.
    pub struct RawVerdict {
        pub epoch: u32,
        pub outcome: u32,
        pub flags: u32,
        pub loss: f32,
        pub limit: f32,
        pub start: f32,
        pub rate: f32,
        pub next_rate: f32,
    }

    /// Words of a buffer in `controllers/keep.wgsl`.
    pub struct KeptPart {
        /// The first word in the binding.
        pub first_word: u32,
        pub words: u32,
        /// 1 if only the lower half of the last word belongs to the tensor.
        pub half_word: u32,
    }
}

const _: () = assert!(WATCHDOG_WINDOW == 16);

/// Settings of an epoch watchdog: [`Watchdog`](crate::Watchdog) on the device, [`CpuWatchdog`] on the host.
///
/// At the end of each epoch the watchdog compares the epoch's mean training loss f̃ with a limit. f̃ is measured batch by batch while the parameters
/// move. The watchdog accepts the epoch, or lowers the learning rate and may take the epoch back. The tests are those of the controlled mini-batch
/// algorithms NMCMA (arXiv:2212.01848) and CMA Light (arXiv:2307.15775), without their line search, which needs the loss over all data at trial
/// points, and an optimizer cannot compute that loss. [`guide::beyond`](crate::guide::beyond) has the formulas, and the differences from the papers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WatchdogConfig {
    /// M of the nonmonotone test, or `None` for CMA Light.
    window: Option<u32>,
    decrease: f32,
    margin: f32,
}

impl WatchdogConfig {
    /// Returns settings with the test of CMA Light: an epoch is accepted if `f̃ < min(f(w₀), φ - γ η)`, where φ is the least f̃ so far, f(w₀) the
    /// loss at the start, and η the largest learning rate of the groups. Otherwise the rate is multiplied by θ. The parameters are kept if
    /// `f̃ ≤ f(w₀)`, and otherwise taken back. The defaults are θ = 0.5 and γ = 1e-6.
    pub fn light() -> Self {
        WatchdogConfig { window: None, decrease: 0.5, margin: 1e-6 }
    }

    /// Returns settings with the test of NMCMA: an epoch is accepted if `f̃ < R - γ max(η, ‖w̃ - w‖)`, where R is the largest of the last `epochs`
    /// accepted losses and ‖w̃ - w‖ the distance between the parameters at the start and at the end of the epoch. Otherwise the epoch is taken back
    /// and the rate is multiplied by θ. The paper uses 5 epochs, and compares losses over all data after the epoch. Here f̃ is the running loss, as
    /// in CMA Light.
    pub fn nonmonotone(epochs: u32) -> Self {
        WatchdogConfig { window: Some(epochs), ..Self::light() }
    }

    /// Sets θ, the factor of the learning rate after an epoch that is not accepted: above 0 and below 1.
    pub fn decrease(mut self, factor: f32) -> Self {
        self.decrease = factor;
        self
    }

    /// Sets γ, which determines how far the loss must fall. It is finite and at least 0.
    pub fn margin(mut self, margin: f32) -> Self {
        self.margin = margin;
        self
    }

    /// Returns true if the test needs the distance that the parameters have moved.
    pub(crate) fn needs_distance(&self) -> bool {
        self.window.is_some()
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let owner = || "the watchdog".to_owned();
        if let Some(epochs) = self.window {
            require((1..=WATCHDOG_WINDOW).contains(&epochs), owner, "epochs", epochs, "between 1 and 16")?;
        }
        require(self.decrease > 0.0 && self.decrease < 1.0, owner, "decrease", self.decrease, "above 0 and below 1")?;
        require(self.margin >= 0.0 && self.margin.is_finite(), owner, "margin", self.margin, "finite and at least 0")
    }

    pub(crate) fn constants(&self, rows: u32) -> WatchdogConstants {
        WatchdogConstants { window: self.window.unwrap_or(0), decrease: self.decrease, margin: self.margin, rows }
    }
}

impl Default for WatchdogConfig {
    /// Returns [`WatchdogConfig::light`].
    fn default() -> Self {
        Self::light()
    }
}

/// Outcome of an epoch under a watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EpochOutcome {
    /// The loss was below the limit. Nothing was changed.
    Accepted,
    /// The loss was not below the limit, but at most the loss at the start. The parameters stay, and the learning rate was lowered.
    Slowed,
    /// Parameters and the optimizer's memory were set back to those at the epoch's start, and the learning rate was lowered.
    TakenBack,
}

/// Verdict of a watchdog on an epoch. [`Display`](fmt::Display) writes a sentence.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EpochVerdict {
    /// Number of the epoch, from 0.
    pub epoch: u64,
    /// Outcome of the epoch.
    pub outcome: EpochOutcome,
    /// Mean loss of the epoch's batches, or `None` if a loss or their sum was not finite.
    pub loss: Option<f32>,
    /// Limit that the loss had to be below. It is NaN if the first loss of all was not finite, so that there was nothing to compare with.
    pub limit: f32,
    /// Largest learning rate of the groups in the last step of the epoch.
    pub rate: f32,
    /// The same rate with the factor that the watchdog has set for the next epoch.
    pub next_rate: f32,
    /// Loss at the start of the watch, f(w₀).
    start: f32,
}

impl EpochVerdict {
    pub(crate) fn of(raw: &RawVerdict) -> Self {
        let is_lost = raw.flags & VERDICT_LOST != 0;
        let is_compared = raw.flags & VERDICT_UNKNOWN == 0;
        EpochVerdict {
            epoch: raw.epoch.into(),
            outcome: match raw.outcome {
                EPOCH_ACCEPTED => EpochOutcome::Accepted,
                EPOCH_SLOWED => EpochOutcome::Slowed,
                _ => EpochOutcome::TakenBack,
            },
            loss: (!is_lost).then_some(raw.loss),
            limit: if is_compared { raw.limit } else { f32::NAN },
            rate: raw.rate,
            next_rate: raw.next_rate,
            start: raw.start,
        }
    }
}

impl fmt::Display for EpochVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EpochVerdict { epoch, loss, limit, rate, next_rate, start, .. } = self;
        let lowered = format!("learning rate lowered from {rate:.3e} to {next_rate:.3e}");
        let Some(loss) = loss else {
            return write!(f, "epoch {epoch} taken back: a loss was not finite; {lowered}");
        };
        match self.outcome {
            EpochOutcome::Accepted => {
                write!(f, "epoch {epoch} accepted: mean loss {loss:.4} is below {limit:.4}; learning rate {rate:.3e}")
            }
            EpochOutcome::Slowed => write!(
                f,
                "epoch {epoch} slowed: mean loss {loss:.4} is not below {limit:.4}, but not above that at the start, {start:.4}; {lowered}"
            ),
            EpochOutcome::TakenBack => {
                write!(f, "epoch {epoch} taken back: mean loss {loss:.4} is not below {limit:.4}; {lowered}")
            }
        }
    }
}

impl WatchdogState {
    /// Adds the loss of a batch. Twin of `controllers/add_loss.wgsl`.
    fn add(&mut self, weight: f32, loss: f32) {
        if !loss.is_finite() {
            self.lost = 1;
        } else {
            if self.started != 0 && self.has_start == 0 && self.weight == 0.0 && self.lost == 0 {
                self.has_start = 1;
                self.start = loss;
                self.least = loss;
                self.accepted[0] = loss;
            }
            self.sum += weight * loss;
        }
        self.weight += weight;
    }

    fn mean(&self) -> Option<f32> {
        (self.lost == 0 && self.sum.is_finite() && self.weight > 0.0).then(|| self.sum / self.weight)
    }

    /// Begins to watch. Twin of `begin` in `controllers/judge.wgsl`.
    fn begin(&mut self) {
        let mean = self.mean();
        let loss = mean.unwrap_or(0.0);
        *self = WatchdogState {
            started: 1,
            has_start: mean.is_some().into(),
            start: loss,
            least: loss,
            accepted_count: 1,
            epochs: self.epochs,
            ..Default::default()
        };
        self.accepted[0] = loss;
    }

    /// Judges an epoch. Twin of `end_epoch` in `controllers/judge.wgsl`.
    fn end_epoch(&mut self, constants: &WatchdogConstants, rates: &[f32], distance: f32) -> RawVerdict {
        let slot = |back: u32| ((self.accepted_count - back) % WATCHDOG_WINDOW) as usize;
        let rate = rates.iter().copied().fold(0.0, f32::max);
        let mean = self.mean();
        let loss = mean.unwrap_or(0.0);
        let last = self.accepted[slot(1)];
        let limit = if constants.window == 0 {
            self.start.min(self.least - constants.margin * rate)
        } else {
            let count = self.accepted_count.min(constants.window);
            let largest = (2..=count).map(|back| self.accepted[slot(back)]).fold(last, f32::max);
            largest - constants.margin * rate.max(distance)
        };
        let known = mean.is_some() && self.has_start != 0;
        let outcome = if known && loss < limit {
            EPOCH_ACCEPTED
        } else if known && constants.window == 0 && loss <= self.start {
            EPOCH_SLOWED
        } else {
            EPOCH_TAKEN_BACK
        };
        if known {
            self.least = self.least.min(loss);
        }
        // After an epoch that was not accepted, the last accepted loss counts once more.
        self.accepted[slot(0)] = if outcome == EPOCH_ACCEPTED { loss } else { last };
        self.accepted_count += 1;
        self.taken_back = (outcome == EPOCH_TAKEN_BACK).into();
        let flags =
            if mean.is_none() { VERDICT_LOST } else { 0 } | if self.has_start == 0 { VERDICT_UNKNOWN } else { 0 };
        let next_rate = if outcome == EPOCH_ACCEPTED { rate } else { rate * constants.decrease };
        let verdict =
            RawVerdict { epoch: self.epochs, outcome, flags, loss, limit, start: self.start, rate, next_rate };
        self.epochs = self.epochs.wrapping_add(1);
        (self.sum, self.weight, self.lost) = (0.0, 0.0, 0);
        verdict
    }
}

/// Returns a factor of the learning rate after an epoch that was not accepted.
fn lowered(factor: f32, decrease: f32) -> f32 {
    if factor > 0.0 { (factor * decrease).max(RATE_MIN) } else { factor }
}

/// Returns a group's state after it was taken back. Steps that are taken back count as attempted, but not as steps that have moved the group. Twin of
/// `controllers/keep_states.wgsl`.
pub(crate) fn taken_back(kept: &GroupState, now: &GroupState) -> GroupState {
    let moved = |s: &GroupState| s.steps_low.wrapping_sub(s.skipped).wrapping_sub(s.left_out);
    GroupState {
        left_out: now.left_out.wrapping_add(moved(now).wrapping_sub(moved(kept))),
        steps_low: now.steps_low,
        steps_high: now.steps_high,
        record_slot: now.record_slot,
        skipped: now.skipped,
        skips_in_row: now.skips_in_row,
        halted: now.halted,
        last_nonfinite: now.last_nonfinite,
        last_first_nonfinite: now.last_first_nonfinite,
        overflows_in_row: now.overflows_in_row,
        halt_overflow_key: now.halt_overflow_key,
        loss_scale_exponent: now.loss_scale_exponent,
        good_steps: now.good_steps,
        ..*kept
    }
}

/// Checks the weight of a batch.
pub(crate) fn check_weight(weight: f32) -> Result<(), Error> {
    let owner = || "the watchdog".to_owned();
    require(
        weight > 0.0 && weight.is_finite(),
        owner,
        "weight",
        weight,
        "finite and above 0, such as the number of rows of the batch",
    )
}

/// Order of a watchdog's calls.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Turn {
    started: bool,
    /// True if a batch was added since the last epoch ended.
    has_batch: bool,
}

impl Turn {
    pub(crate) fn start(&mut self) {
        *self = Turn { started: true, has_batch: false };
    }

    pub(crate) fn add(&mut self) {
        self.has_batch = true;
    }

    /// Checks that an epoch can end.
    pub(crate) fn check_end(&self, [start, batch, end]: [&'static str; 3]) -> Result<(), Error> {
        let way_out = match self {
            Turn { started: false, .. } => format!("call {start} before the first step of the first epoch"),
            Turn { has_batch: false, .. } => format!("call {batch} after each step with the loss of its batch"),
            _ => return Ok(()),
        };
        Err(Error::from(CallError::Controller { call: end, problem: "was called out of turn".to_owned(), way_out }))
    }

    pub(crate) fn end(&mut self) {
        self.has_batch = false;
    }
}

/// Epoch watchdog on the CPU path, with the arithmetic of [`Watchdog`](crate::Watchdog), which documents the calls.
///
/// ```
/// use wgpu_optim::{CpuWatchdog, EpochOutcome, Group, OptimizerBuilder, Regime, Rule, WatchdogConfig};
///
/// // ½ w² at a rate that is too high, at which every step doubles w.
/// let mut w = [1.0f32];
/// let mut optimizer = OptimizerBuilder::new(Rule::sgd())
///     .regime(Regime::fixed(3.0))
///     .group(Group::new("all").tensor("w", &w, &w))
///     .build_cpu()?;
/// let mut watchdog = CpuWatchdog::new(&optimizer, WatchdogConfig::light())?;
/// watchdog.start(&optimizer, &[&w])?;
/// for _ in 0..3 {
///     for _ in 0..10 {
///         let (g, loss) = (w, 0.5 * w[0] * w[0]);
///         optimizer.step(&mut [&mut w], &[&g])?;
///         watchdog.add_batch(1.0, loss)?;
///     }
///     println!("{}", watchdog.end_epoch(&mut optimizer, &mut [&mut w])?);
/// }
/// assert!(w[0].abs() < 1e-3);
/// assert_eq!(optimizer.controls("all")?.learning_rate_factor, 0.5);
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
#[derive(Debug)]
pub struct CpuWatchdog {
    config: WatchdogConfig,
    state: WatchdogState,
    kept: Snapshot,
    rows: Vec<[f32; 2]>,
    turn: Turn,
}

impl CpuWatchdog {
    /// Creates a watchdog for an optimizer.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) for a setting outside its range. Returns [`ErrorKind::Call`](crate::ErrorKind::Call) for
    /// an optimizer of several ranks, and for one with regime AutoSgd, which takes steps back by itself.
    pub fn new(optimizer: &CpuOptimizer, config: WatchdogConfig) -> Result<Self, Error> {
        config.check()?;
        optimizer.plan().check_controllable("a watchdog")?;
        Ok(CpuWatchdog {
            config,
            state: WatchdogState::default(),
            kept: Snapshot::default(),
            rows: Vec::new(),
            turn: Turn::default(),
        })
    }

    /// Begins to watch. Call it before the first step of an epoch. Batches that were added before it are the loss at the start.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) if the slices are not those of the optimizer's tensors, and while its averages are swapped
    /// in.
    pub fn start(&mut self, optimizer: &CpuOptimizer, params: &[impl Values]) -> Result<(), Error> {
        optimizer.check_controlled(params)?;
        self.state.begin();
        self.kept = optimizer.snapshot(params);
        self.turn.start();
        Ok(())
    }

    /// Adds the loss of a batch, with the weight of the batch in the epoch's mean, such as its number of rows.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) for a weight that is not finite and above 0.
    pub fn add_batch(&mut self, weight: f32, loss: f32) -> Result<(), Error> {
        check_weight(weight)?;
        self.state.add(weight, loss);
        self.turn.add();
        Ok(())
    }

    /// Ends an epoch, carries out the verdict and returns it.
    ///
    /// # Errors
    /// Returns the errors of [`CpuWatchdog::start`], and [`ErrorKind::Call`](crate::ErrorKind::Call) before that call, and if no batch was added
    /// since the last epoch ended. Nothing has changed then.
    pub fn end_epoch(
        &mut self,
        optimizer: &mut CpuOptimizer,
        params: &mut [impl ValuesMut],
    ) -> Result<EpochVerdict, Error> {
        optimizer.check_controlled(params)?;
        self.turn.check_end(["CpuWatchdog::start", "CpuWatchdog::add_batch", "CpuWatchdog::end_epoch"])?;
        let mut distance = 0.0;
        if self.config.needs_distance() {
            self.rows.clear();
            let nothing = Slice::F32(&[]);
            for (now, kept) in params.iter().zip(&self.kept.params) {
                let slices = [now.values(), kept.values(), nothing];
                push_rows(&mut self.rows, slices, |[x, z, _]| [(x - z) * (x - z), 0.0]);
            }
            distance = add_up_rows(&self.rows)[0].sqrt();
        }
        let constants = self.config.constants(0);
        let raw = self.state.end_epoch(&constants, optimizer.learning_rates(), distance);
        if raw.outcome != EPOCH_ACCEPTED {
            optimizer.control_all(|group| {
                group.learning_rate_factor = lowered(group.learning_rate_factor, self.config.decrease);
            })?;
        }
        if self.state.taken_back != 0 {
            optimizer.take_back(&self.kept, params);
        } else {
            self.kept = optimizer.snapshot(params);
        }
        self.turn.end();
        Ok(EpochVerdict::of(&raw))
    }
}
