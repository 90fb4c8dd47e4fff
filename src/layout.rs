//! Structs and constants that are shared with the shaders. `shaders/shared/layout.wgsl` is the only other copy, and
//! `tests/kernels/layout.rs` compares the two through naga. The CPU path uses the same structs, so that state can move between the paths.

use bytemuck::{Pod, Zeroable};

/// A stretch of one group's elements that one workgroup walks, within one dispatch.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Block {
    /// First element in the window's parameter binding.
    pub params_start: u32,
    /// First element in the window's gradient binding.
    pub grads_start: u32,
    /// First quad (four elements) in the window's momentum or direction memory.
    pub state_quad: u32,
    /// Elements, at least 1.
    pub elements: u32,
    /// The group they belong to.
    pub group: u32,
    /// Row of the block in the partials, which lie scope by scope.
    pub row: u32,
    /// Index of the first element among all elements of the optimizer, in the order of declaration.
    pub first_element: u32,
}

/// Constants of a group, read by passes 1 and 3.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct GroupConstants {
    /// The scope whose sums drive this group.
    pub scope: u32,
    /// Bits of [`group_flags`].
    pub flags: u32,
    /// -1 where the group climbs, else 1.
    pub sign: f32,
    /// The gradient's factor: the sign over the number of micro-batches that were added up in it.
    pub gradient_factor: f32,
    /// λ of coupled weight decay.
    pub coupled_decay: f32,
    /// λ of decoupled weight decay.
    pub decoupled_decay: f32,
    /// Largest gradient norm; `f32::MAX` without a clip.
    pub clip_norm: f32,
    /// Skipped steps in a row that halt; 0 for never.
    pub halt_after: u32,
    /// Power of two of the first loss scale; 0 without one, as the next two.
    pub loss_scale_first: i32,
    /// Power of two of the smallest loss scale.
    pub loss_scale_least: i32,
    /// Power of two of the largest loss scale.
    pub loss_scale_most: i32,
    /// Good steps in a row after which the loss scale doubles; 0 without one.
    pub growth_interval: u32,
    /// μ or β.
    pub momentum: f32,
    /// Share of the gradient in the momentum: 1-δ or 1-β.
    pub gradient_share: f32,
    /// Share of the momentum in the direction: μ of Nesterov's, β₁ of Lion's.
    pub direction_momentum: f32,
    /// β₂ of AdamW.
    pub square_keep: f32,
    /// -ln β₁ of AdamW.
    pub first_decay: f32,
    /// -ln β₂ of AdamW.
    pub second_decay: f32,
    /// ε of AdamW; 0 for the other rules.
    pub epsilon: f32,
    /// p where the smoothed norm is below its first value.
    pub exponent: f32,
    /// p where it is above.
    pub exponent_above: f32,
    /// κ.
    pub gain: f32,
    /// h of the first steps' gain.
    pub early_steps: f32,
    /// β of the smoothed norm.
    pub smoothing: f32,
    /// Share of the mean norm below which n̂ does not fall.
    pub norm_floor: f32,
    /// Slack of the brake.
    pub brake_slack: f32,
    /// ε of the first step.
    pub first_step: f32,
    /// η of the first step where [`group_flags::INITIAL_RATE`] is set.
    pub initial_rate: f32,
    /// One of [`regime_kinds`].
    pub regime: u32,
    /// c of AdaGradNorm and Polyak, σ of Ngn, C of AutoSgd.
    pub scale: f32,
    /// b₀ of AdaGradNorm, f* of Polyak, the least t of AutoSgd.
    pub offset: f32,
    /// The most rounds that an episode of AutoSgd compares.
    pub rounds: u32,
    /// The largest factor by which one step changes η.
    pub max_change: f32,
    /// The largest η.
    pub max_rate: f32,
    /// One of [`schedule_kinds`].
    pub schedule: u32,
    /// Steps of the schedule's rise, or between two of its falls.
    pub schedule_rise: u32,
    /// Steps of the whole schedule.
    pub schedule_steps: u32,
    /// The schedule's factor at the start.
    pub schedule_first: f32,
    /// The schedule's factor at the end; ln of the factor of a fall.
    pub schedule_last: f32,
    /// One of [`average_kinds`].
    pub average: u32,
    /// Steps taken before the average starts.
    pub average_start: u32,
    /// 1 + η of the polynomial average, the share of a new iterate in the exponential one.
    pub average_gain: f32,
    /// Coefficient of the trust ratio; 0 without one.
    pub trust_coefficient: f32,
    /// √d of the scope.
    pub sqrt_elements: f32,
    /// Largest μ in the scope: with the next field it bounds the momentum's norm.
    pub scope_momentum: f32,
    /// Upper bound on the norm of what one step adds to a momentum buffer: the largest clip among the groups of this scope (for AdamW, its own
    /// bound); `f32::MAX` if one of them has none. It bounds the momentum's norm, from which the scale of the inner products is chosen.
    pub scope_clip: f32,
    /// Seed of the random bits of [`Rounding::Stochastic`](crate::Rounding::Stochastic).
    pub rounding_seed: u32,
}

/// Bits of [`GroupConstants::flags`].
pub mod group_flags {
    /// The direction is a vector of signs, or as long as one ([`Rule::is_scale_free`](crate::Rule::is_scale_free)): the first rate is the
    /// first step's length over √d.
    pub const SIGN_RULE: u32 = 1;
    /// [`super::GroupConstants::initial_rate`] is given.
    pub const INITIAL_RATE: u32 = 2;
    /// The momentum's first value is the gradient itself (PyTorch's SGD).
    pub const MOMENTUM_FROM_GRADIENT: u32 = 4;
    /// The alignment is measured against direction counters, so that there is a brake.
    pub const BRAKE: u32 = 8;
    /// The clip's norm is that of the gradient without weight decay and has sums of its own.
    pub const RAW_NORM: u32 = 16;
    /// The alignment is measured against y - z of schedule-free training, where y and z begin to differ with the second step.
    pub const ITERATES: u32 = 32;
}

/// Values of [`GroupConstants::regime`]: the formulas of pass 3.
pub mod regime_kinds {
    /// Norm and alignment: Seesaw, NormRatio, Hypergradient, Fixed.
    pub const SEESAW: u32 = 0;
    /// AdaGradNorm.
    pub const ADAGRAD_NORM: u32 = 1;
    /// BarzilaiBorwein, long.
    pub const SECANT_LONG: u32 = 2;
    /// BarzilaiBorwein, short.
    pub const SECANT_SHORT: u32 = 3;
    /// BarzilaiBorwein, geometric mean.
    pub const SECANT_GEOMETRIC: u32 = 4;
    /// AdGd.
    pub const ADGD: u32 = 5;
    /// DoG.
    pub const DOG: u32 = 6;
    /// DoWG.
    pub const DOWG: u32 = 7;
    /// Polyak.
    pub const POLYAK: u32 = 8;
    /// Ngn.
    pub const NGN: u32 = 9;
    /// AutoSgd.
    pub const AUTO_SGD: u32 = 10;
}

/// The streams of AutoSgd, in the order of their turns.
pub mod streams {
    /// Stream at η.
    pub const MIDDLE: u32 = 0;
    /// Stream at η/C.
    pub const SLOWER: u32 = 1;
    /// Stream at C η.
    pub const FASTER: u32 = 2;
}

/// Outcomes of an episode of AutoSgd.
pub mod outcomes {
    /// The episode has not ended.
    pub const UNDECIDED: u32 = 0;
    /// The faster stream won: its parameters, C η.
    pub const INCREASE: u32 = 1;
    /// The middle stream won: its parameters, η.
    pub const STAY: u32 = 2;
    /// The slower stream won: its parameters, η/C.
    pub const DECREASE: u32 = 3;
    /// All three are lost: the parameters from before the episode, η/C.
    pub const RESTART: u32 = 4;
}

/// Copies of the parameters that AutoSgd keeps, each as long as the parameters: [`Update::put`] and [`Update::take`].
pub mod slots {
    /// The parameters from before the episode. The two streams whose turn it is not are in 1 and 2.
    pub const START_SLOT: u32 = 0;
    /// None: the parameters stay with the caller.
    pub const NO_SLOT: u32 = 3;
    /// Number of copies.
    pub const STREAM_SLOTS: u32 = 3;
}

/// Values of [`Update::skip`], beside 0.
pub mod skips {
    /// Nothing may change.
    pub const SKIP_ALL: u32 = 1;
    /// No step is taken, but the streams change turns.
    pub const SKIP_STEP: u32 = 2;
}

/// Values of [`GroupConstants::schedule`].
pub mod schedule_kinds {
    /// 1.
    pub const CONSTANT: u32 = 0;
    /// Linear warm-up, then half a cosine.
    pub const WARMUP_COSINE: u32 = 1;
    /// Linear warm-up, then the inverse square root.
    pub const INVERSE_SQRT: u32 = 2;
    /// A fall every so many steps.
    pub const STEP: u32 = 3;
    /// Half a cosine up, half a cosine down.
    pub const ONE_CYCLE: u32 = 4;
}

/// Values of [`GroupConstants::average`].
pub mod average_kinds {
    /// No average.
    pub const OFF: u32 = 0;
    /// Running (η = 0) and polynomial decay.
    pub const POLYNOMIAL: u32 = 1;
    /// Exponential.
    pub const EXPONENTIAL: u32 = 2;
    /// Schedule-free, weighted by the learning rates.
    pub const SCHEDULE_FREE: u32 = 3;
}

/// State of a group from step to step. It is on the device.
///
/// Numbers that must survive any scale of the loss are held as mantissa in `[1, 2)` and exponent; sums of logarithms are held
/// in fixed point (integer part and fraction in units of 2⁻³²), which neither drifts nor depends on how a driver orders
/// floating-point operations.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct GroupState {
    /// Steps attempted, low word.
    pub steps_low: u32,
    /// Steps attempted, high word.
    pub steps_high: u32,
    /// Slot of the ring into which the next record is written.
    pub record_slot: u32,
    /// Steps skipped because of a non-finite gradient.
    pub skipped: u32,
    /// Skipped steps in a row that count for a halt, up to the last step; after the halt they go on counting.
    pub skips_in_row: u32,
    /// 1 after [`GroupConstants::halt_after`] of them: no step changes anything.
    pub halted: u32,
    /// [`RawRecord::nonfinite`] of the last skip before the halt, or the one that halted.
    pub last_nonfinite: u32,
    /// [`RawRecord::first_nonfinite`] of the same step.
    pub last_first_nonfinite: u32,
    /// Power of two of the scale that the next step's gradients are multiplied by.
    pub loss_scale_exponent: i32,
    /// Steps since a gradient was not finite, or since the scale last grew.
    pub good_steps: u32,
    /// 1 once a finite, non-zero gradient has been seen.
    pub started: u32,
    /// 1 once a step was taken, so that the momentum holds a gradient.
    pub momentum_started: u32,
    /// η of this step, as in the learning-rate buffer.
    pub learning_rate: f32,
    /// η of the regime, without the schedule.
    pub regime_rate: f32,
    /// ln of the schedule's factor at the last step.
    pub ln_schedule: f32,
    /// The trust ratio of the last step with a gradient; 1 without one.
    pub trust: f32,
    /// ln of the trust ratio.
    pub ln_trust: f32,
    /// ‖w‖ after the last step, of groups with a trust ratio.
    pub parameter_mantissa: f32,
    /// ‖w‖ after the last step.
    pub parameter_exponent: i32,
    /// η of the first step.
    pub first_rate_mantissa: f32,
    /// η of the first step.
    pub first_rate_exponent: i32,
    /// ln of the first rate.
    pub ln_first_rate_int: i32,
    /// ln of the first rate.
    pub ln_first_rate_fraction: u32,
    /// ln η_t - ln η_0.
    pub change_int: i32,
    /// ln η_t - ln η_0.
    pub change_fraction: u32,
    /// A of Seesaw, the sum of alignment, brake and held terms since the first step: integer part.
    pub agreement_int: i32,
    /// A of Seesaw, fraction.
    pub agreement_fraction: u32,
    /// F of Seesaw: the least A so far, 0 at first, integer part.
    pub least_agreement_int: i32,
    /// F of Seesaw, fraction.
    pub least_agreement_fraction: u32,
    /// n̂₁ of Seesaw: n̂ at the first step.
    pub anchor_norm_mantissa: f32,
    /// n̂₁ of Seesaw.
    pub anchor_norm_exponent: i32,
    /// Moving average of a_fast, without bias correction.
    pub mean_fast: f32,
    /// The sum of the weights in that average.
    pub mean_fast_weight: f32,
    /// EMA of n², without bias correction.
    pub mean_square_mantissa: f32,
    /// EMA of n².
    pub mean_square_exponent: i32,
    /// Mean of n over the non-zero gradients, the last [`MEAN_STEPS`] of them at most.
    pub mean_norm_mantissa: f32,
    /// Mean of n.
    pub mean_norm_exponent: i32,
    /// Gradients in that mean.
    pub mean_steps: u32,
    /// β^k after k non-zero gradients.
    pub smoothing_power: f32,
    /// n̂ of the last non-zero gradient.
    pub smoothed_mantissa: f32,
    /// n̂.
    pub smoothed_exponent: i32,
    /// Power of two by which the next step's inner products scale the gradient; the same in all groups of a scope.
    pub gradient_exponent: i32,
    /// Power of two by which they scale the momentum; the same in all groups of a scope.
    pub direction_exponent: i32,
    /// n of the last non-zero gradient.
    pub last_norm_mantissa: f32,
    /// n of the last non-zero gradient.
    pub last_norm_exponent: i32,
    /// Loss of the last step with a gradient, less f*.
    pub last_loss: f32,
    /// Sum of squares that the regime adds up.
    pub history_mantissa: f32,
    /// Sum of squares that the regime adds up.
    pub history_exponent: i32,
    /// r̄, the largest distance from the start.
    pub distance_mantissa: f32,
    /// r̄, the largest distance from the start.
    pub distance_exponent: i32,
    /// η_{t-1}/η_{t-2}.
    pub last_growth: f32,
    /// The last step's clip factor.
    pub last_clip: f32,
    /// [`Update::first_correction`] of the last step of AdamW.
    pub first_correction: f32,
    /// [`Update::second_correction`] of the last step of AdamW.
    pub second_correction: f32,
    /// Σ (η_k k)² of schedule-free training, over the steps k that were not skipped.
    pub weight_sum_mantissa: f32,
    /// Σ (η_k k)² of schedule-free training.
    pub weight_sum_exponent: i32,
    /// State of AutoSgd.
    pub streams: StreamsState,
}

/// State of an AutoSgd episode. It is the same in all groups of an optimizer, because they see the same losses.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct StreamsState {
    /// Episodes before this one.
    pub episode: u32,
    /// The turn's number modulo 6: its remainder by 3 is one of [`streams`], and the slot that it exchanges with alternates.
    pub turn: u32,
    /// A bit for each stream that took a step in this episode.
    pub moved: u32,
    /// A bit for each stream that moved and then met what is not finite.
    pub lost: u32,
    /// A bit for each stream whose loss of this round is known and can be compared.
    pub heard: u32,
    /// Rounds compared.
    pub rounds: u32,
    /// One of [`outcomes`]: how the last episode ended, until a step is taken in this one.
    pub outcome: u32,
    /// Mean of the losses at the start of the episode.
    pub start_loss: f32,
    /// Loss of the middle stream in this round.
    pub middle_loss: f32,
    /// Loss of the slower stream in this round.
    pub slower_loss: f32,
    /// Sum of the relative differences of the slower stream's losses from the middle stream's.
    pub slower_sum: f32,
    /// Sum of their squares.
    pub slower_squares: f32,
    /// Sum of the relative differences of the faster stream's losses from the middle stream's.
    pub faster_sum: f32,
    /// Sum of their squares.
    pub faster_squares: f32,
}

/// The longest memory of [`GroupState::mean_norm_mantissa`], in steps.
pub const MEAN_STEPS: u32 = 65536;

/// A norm counts in [`GroupState::mean_norm_mantissa`] as no more than this many n̂ of the step before.
pub const MEAN_OUTLIER: u32 = 10;

/// Location of a scope's partial sums.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct ScopeTable {
    /// First partial of the scope.
    pub first_partial: u32,
    /// Number of partials: blocks times partials per block.
    pub partials: u32,
    /// The first group that the scope drives.
    pub group: u32,
}

/// A sum of squares that no scale of the loss can overflow: `sum * 4^exponent`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct Squares {
    /// Zero, or within the range of f32.
    pub sum: f32,
    /// 0 for gradients of ordinary size.
    pub exponent: i32,
}

impl Squares {
    /// The sum as one number. f64 holds it without loss.
    pub fn value(self) -> f64 {
        f64::from(self.sum) * f64::from(2 * self.exponent).exp2()
    }
}

/// Sums of one sweep over the gradients of a scope.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct ScopeSums {
    /// Σ g² of the gradient that the regime sees.
    pub square: Squares,
    /// Σ g² of the gradient without weight decay, where a clip needs it.
    pub raw_square: Squares,
    /// Σ w² before the first step.
    pub initial_square: Squares,
    /// Σ |g| / 2^e, e the state's [`GroupState::gradient_exponent`].
    pub absolute: f32,
    /// ⟨g, q⟩ / 2^e, or ⟨g, m⟩ / 2^(e + e_m).
    pub slow_dot: f32,
    /// ⟨g, sign u⟩ / 2^e.
    pub fast_dot: f32,
    /// ‖q‖², or ‖m‖² / 2^(2 e_m).
    pub direction_square: f32,
    /// Elements that are NaN or infinite.
    pub nonfinite: u32,
    /// The first of them, as [`Block::first_element`] counts; `u32::MAX` for none, [`LOSS_ELEMENT`] for the loss.
    pub first_nonfinite: u32,
    /// The loss, where a regime needs it.
    pub loss: f32,
}

/// [`ScopeSums::first_nonfinite`] where no element but the loss is not finite: above the index of any element.
pub const LOSS_ELEMENT: u32 = u32::MAX - 1;

/// Words of a partial: those of [`ScopeSums`] but for the loss.
pub const PARTIAL_WORDS: u32 = 12;

/// Parameters of a group's update, written by pass 3 for pass 4.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct Update {
    /// One of [`skips`] where the step is skipped, else 0.
    pub skip: u32,
    /// η of the step.
    pub learning_rate: f32,
    /// The gradient's factor: sign times clip over the number of micro-batches.
    pub gradient_factor: f32,
    /// One over the number of micro-batches.
    pub micro_share: f32,
    /// Inverse of the loss scale, a power of two by which the gradient is multiplied first.
    pub unscale: f32,
    /// λ of coupled weight decay.
    pub coupled_decay: f32,
    /// 1 - η λ of decoupled weight decay.
    pub shrink: f32,
    /// The old momentum's share in the new one.
    pub momentum_keep: f32,
    /// The gradient's share in the new momentum.
    pub gradient_share: f32,
    /// The momentum's share in the direction: μ of Nesterov's, β₁ of Lion's.
    pub momentum: f32,
    /// β₂ of AdamW: the share of the old mean of squares in the new one.
    pub square_keep: f32,
    /// 1/(1 - β₁ᵏ) at the k-th step of AdamW.
    pub first_correction: f32,
    /// 1/√(1 - β₂ᵏ) at the k-th step of AdamW.
    pub second_correction: f32,
    /// ε of AdamW.
    pub epsilon: f32,
    /// 1 in the first step, before which the parameters were the first ones; with AutoSgd in the first step of an episode.
    pub first: u32,
    /// The share of the new parameters in their average, in schedule-free training that of z; 0 until the average starts, and above 0 from
    /// then on.
    pub average_weight: f32,
    /// The slot where the stream's parameters go, one of [`slots`].
    pub put: u32,
    /// The slot from where the next stream's parameters come, one of [`slots`].
    pub take: u32,
    /// Key of this step's random bits, for stochastic rounding.
    pub rounding_key: u32,
}

/// One step of one group, as pass 3 writes it into the ring. Read it as [`Record`](crate::Record).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct RawRecord {
    /// Steps attempted before this one, low word.
    pub step_low: u32,
    /// High word.
    pub step_high: u32,
    /// The group.
    pub group: u32,
    /// Bits of [`record_flags`].
    pub flags: u32,
    /// n.
    pub norm: f32,
    /// n̂.
    pub smoothed_norm: f32,
    /// a_slow.
    pub slow_alignment: f32,
    /// a_fast.
    pub fast_alignment: f32,
    /// η.
    pub learning_rate: f32,
    /// ln η, integer part.
    pub ln_rate_int: i32,
    /// ln η, fraction.
    pub ln_rate_fraction: u32,
    /// p ln(n̂_{t-1}/n̂_t).
    pub norm_term: f32,
    /// κ (n/n̂) a_slow.
    pub alignment_term: f32,
    /// κ (n/n̂) min(0, f + slack), f the moving average of a_fast.
    pub brake_term: f32,
    /// Part of a fall by alignment and brake that Seesaw's floor holds back.
    pub held_term: f32,
    /// Contribution of the limits of η and of its change.
    pub clamp_term: f32,
    /// Contribution of the schedule.
    pub schedule_term: f32,
    /// Contribution of curvature: the change of a secant regime minus the norm term.
    pub curvature_term: f32,
    /// Contribution of the distance from the first parameters.
    pub distance_term: f32,
    /// Contribution of the sum of squared norms.
    pub history_term: f32,
    /// Contribution of the loss.
    pub loss_term: f32,
    /// Part of a rise that the bound on growth of AdGd holds back.
    pub gate_term: f32,
    /// Contribution of the trust ratio.
    pub trust_term: f32,
    /// The trust ratio; 1 without one.
    pub trust_ratio: f32,
    /// Contribution of the outcome of the last episode.
    pub episode_term: f32,
    /// The episode of the step.
    pub episode: u32,
    /// 1 + the stream that took the step, one of [`streams`]; 0 where there are none.
    pub stream: u32,
    /// One of [`outcomes`]: how the episode before ended, in the first step after it.
    pub outcome: u32,
    /// min(1, C/n).
    pub clip_factor: f32,
    /// Non-finite elements, over all groups. After a halt those of the step that halted, and so the next.
    pub nonfinite: u32,
    /// The first of them.
    pub first_nonfinite: u32,
    /// Steps skipped so far, this one included.
    pub skipped: u32,
    /// [`GroupState::skips_in_row`] after the step.
    pub skips_in_row: u32,
    /// Power of two of the scale of this step's gradients.
    pub loss_scale_exponent: i32,
}

/// The factor that divides out a loss scale of 2^exponent, at most 2^126.
pub(crate) fn unscale(exponent: i32) -> f32 {
    f32::from_bits(((127 - exponent) as u32) << 23)
}

/// Sums of squares that pass 4 measures for each block, and pass 5 adds up for each tensor or group.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct StepSums {
    /// Σ w² of the new parameters.
    pub parameters: Squares,
    /// Σ s², where s is the difference of the new and the old parameters after rounding.
    pub step: Squares,
}

/// Blocks whose step sums pass 5 adds up: those of a tensor or of a group.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct StepUnit {
    /// The first of its blocks, as [`Block::row`] counts.
    pub first_row: u32,
    /// Number of blocks, which lie next to each other.
    pub rows: u32,
    /// The group it belongs to, or is.
    pub group: u32,
    /// The tensor that is recorded, or [`NO_TENSOR`] for the norm of a group.
    pub tensor: u32,
}

/// [`StepUnit::tensor`] of a group.
pub const NO_TENSOR: u32 = u32::MAX;

/// One step of one tensor, as pass 5 writes it into a ring of its own. Read it as [`TensorRecord`](crate::TensorRecord).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct RawTensorRecord {
    /// Steps attempted before this one, low word.
    pub step_low: u32,
    /// High word.
    pub step_high: u32,
    /// The tensor.
    pub tensor: u32,
    /// [`record_flags`]: `WRITTEN`; `SKIPPED`; `WAITING` where the norm is not known yet.
    pub flags: u32,
    /// ‖w‖ after the step.
    pub parameter_norm: f32,
    /// ‖s‖.
    pub step_norm: f32,
    /// η.
    pub learning_rate: f32,
}

/// Bits of [`RawRecord::flags`].
pub mod record_flags {
    /// The rate comes from the first step's length or the caller, not from a change.
    pub const FIRST: u32 = 1;
    /// The gradient was zero: the rate is carried over.
    pub const ZERO_GRADIENT: u32 = 2;
    /// A gradient of some group was not finite: nothing changed.
    pub const SKIPPED: u32 = 4;
    /// The gradient was scaled down to the clip norm.
    pub const CLIPPED: u32 = 8;
    /// The change of ln η was clamped: to ±ln 10, that of Seesaw, NormRatio and Hypergradient from above only.
    pub const CLAMPED_CHANGE: u32 = 16;
    /// η was clamped to `[1e-30, 1e30]`.
    pub const CLAMPED_RATE: u32 = 32;
    /// No learning rate yet: every gradient so far was zero or not finite.
    pub const WAITING: u32 = 64;
    /// The loss was not finite.
    pub const NONFINITE_LOSS: u32 = 256;
    /// No step changes anything since too many in a row were skipped.
    pub const HALTED: u32 = 512;
    /// The loss scale of the next step is another.
    pub const SCALE_CHANGED: u32 = 1024;
    /// The stream is lost: it had moved, and then its loss or gradient was not finite.
    pub const STREAM_LOST: u32 = 2048;
    /// An episode of AutoSgd ends with this step: the caller has the winner's parameters.
    pub const EPISODE_ENDS: u32 = 4096;
    /// Set in every record, so that a ring that was never written is told from one that was.
    pub const WRITTEN: u32 = 128;
}

impl GroupState {
    /// The state before the first step. Where the caller gave a rate it holds from the start.
    pub(crate) fn initial(constants: &GroupConstants) -> Self {
        let mut state = GroupState {
            smoothing_power: 1.0,
            loss_scale_exponent: constants.loss_scale_first,
            last_growth: f32::MAX,
            trust: 1.0,
            last_clip: 1.0,
            ..GroupState::default()
        };
        if constants.flags & group_flags::INITIAL_RATE != 0 {
            let rate = constants.initial_rate;
            let exponent = ((rate.to_bits() >> 23) & 0xff) as i32 - 127;
            let ln_rate = f64::from(rate).ln();
            state.learning_rate = rate;
            state.regime_rate = rate;
            state.first_rate_mantissa = f32::from_bits(rate.to_bits() & 0x007f_ffff | 0x3f80_0000);
            state.first_rate_exponent = exponent;
            state.ln_first_rate_int = ln_rate.floor() as i32;
            state.ln_first_rate_fraction = ((ln_rate - ln_rate.floor()) * 4_294_967_296.0) as u32;
        }
        state
    }
}
