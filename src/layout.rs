//! Structs and constants that the host shares with the shaders, declared once. The macro `shared_structs!` generates the Rust struct, its WGSL text
//! and the list of its fields, which checkpoints use. `shaders/layout.wgsl` is generated from this file: a unit test compares them, and writes the
//! file with `UPDATE_LAYOUT=1 cargo test --lib layout`.

mod shared;
mod text;

use bytemuck::{Pod, Zeroable};
pub(crate) use shared::{Declared, Field, Literal, Member, regime_words, shared_constants, shared_structs};
pub use text::wgsl;

regime_words! {
    /// Constants of a group's regime, in as many words as the largest regime needs.
    pub struct RegimeConstants(7);
    /// State of a group's regime.
    pub struct RegimeState(20);
    /// Values of a regime in a record, besides the terms.
    pub struct RegimeRecord(3);
}

shared_structs! {
    /// Contiguous elements of one group that one workgroup processes, within one dispatch.
    pub struct Block {
        /// First element in the window's parameter binding.
        pub params_start: u32,
        /// First element in the window's gradient binding.
        pub grads_start: u32,
        /// First quad (four elements) in the window's momentum or direction memory.
        pub state_quad: u32,
        /// Number of elements, at least 1.
        pub elements: u32,
        /// Group of the elements.
        pub group: u32,
        /// Row of the block in the partials, which are ordered by scope.
        pub row: u32,
        /// Index of the first element among all elements of the optimizer, in the order of declaration.
        pub first_element: u32,
        /// First block of the tensor in the window. The `present` of that block applies to all blocks of the tensor.
        pub lead: u32,
        /// 0 in a step for which the tensor has no gradients, else 1.
        pub present: u32,
    }

    /// Tensor as a matrix X from which a rule computes directions. X is the tensor or its transpose, so that it has no more rows than columns.
    pub struct Matrix {
        /// First element in the window's memories.
        pub first: u32,
        /// Number of rows of X: the tensor's rows or columns, whichever are fewer.
        pub rows: u32,
        /// Number of columns of X.
        pub columns: u32,
        /// 1 if X is the transpose of the tensor, else 0.
        pub transposed: u32,
        /// First element of X Xᵀ in the buffers for such products.
        pub gram_first: u32,
        /// The group.
        pub group: u32,
        /// The tensor's first block in the window.
        pub lead: u32,
        /// Number of the tensor's blocks.
        pub blocks: u32,
        /// Coefficient of X in the Newton–Schulz iteration.
        pub a: f32,
        /// Coefficient of X Xᵀ X.
        pub b: f32,
        /// Coefficient of (X Xᵀ)² X.
        pub c: f32,
        /// The smallest norm that X is divided by.
        pub epsilon: f32,
        /// Factor of the direction.
        pub scale: f32,
    }

    /// Tensor of a rule that limits the length of its directions. The rule may keep second moments of rows and columns, in which case the tensor is a
    /// stack of matrices. The tensors of a window are in an array, each at the index of its first block.
    pub struct FactoredTensor {
        /// Rows of each matrix, or 0 if every element has its own second moment.
        pub rows: u32,
        /// Columns of each matrix.
        pub columns: u32,
        /// Number of matrices.
        pub matrices: u32,
        /// Number of elements.
        pub elements: u32,
        /// Index of the first row's second moment in the window's moments.
        pub rows_first: u32,
        /// Index of the first column's second moment.
        pub columns_first: u32,
        /// Index of the mean of the second moments of the first matrix's rows.
        pub means_first: u32,
        /// Index of the first partial sum in the window's buffer for partial sums.
        pub partials_first: u32,
        /// The group.
        pub group: u32,
        /// The tensor's first block in the window.
        pub lead: u32,
        /// Number of the tensor's blocks.
        pub blocks: u32,
        /// The largest root mean square of a direction.
        pub limit: f32,
        /// Factor that brings the direction of this step within the limit.
        pub factor: f32,
    }

    /// A square of a matrix that one workgroup computes.
    pub struct Tile {
        /// Index of the matrix in the window. For a factored tensor it is the index of its first block.
        pub matrix: u32,
        /// First row.
        pub row: u32,
        /// First column.
        pub column: u32,
    }

    /// Settings of a group that may change from step to step. [`Optimizer::control`](crate::Optimizer::control) or a kernel of the caller sets them.
    pub struct GroupControls {
        /// Factor of the learning rate. A factor that is negative, above [`numbers::RATE_MAX`] or NaN counts as 0.
        pub learning_rate_factor: f32,
        /// Factor of the gradient: 1 over the number of micro-batches that were added up in it, with a negative sign if the group maximizes.
        pub gradient_factor: f32,
        /// λ of the weight decay, which is coupled if [`group_flags::COUPLES_DECAY`] is set, else decoupled.
        pub weight_decay: f32,
        /// Largest gradient norm, or `f32::MAX` without a clip.
        pub clip_norm: f32,
        /// 1 if the group is frozen, else 0.
        pub frozen: u32,
        /// 0 in a step for which the group has no gradients, else 1.
        pub present: u32,
    }

    /// Constants of a group, read by passes 1 and 3.
    pub struct GroupConstants {
        /// Settings that may change. They come first, because a kernel of the caller writes to them in a buffer of these structs.
        pub controls: GroupControls,
        /// The scope whose sums drive this group.
        pub scope: u32,
        /// Bits of [`group_flags`].
        pub flags: u32,
        /// -1 if the group maximizes, else 1.
        pub sign: f32,
        /// Number of skipped steps in a row after which training halts, or 0 for never.
        pub halt_after: u32,
        /// Exponent of the first loss scale, which is a power of two. This field and the next two are 0 without a loss scaler.
        pub loss_scale_first: i32,
        /// Exponent of the smallest loss scale.
        pub loss_scale_least: i32,
        /// Exponent of the largest loss scale.
        pub loss_scale_most: i32,
        /// Number of steps in a row with an element whose new value is out of range after which training halts, or 0 for never.
        pub halt_after_overflows: u32,
        /// Number of good steps in a row after which the loss scale doubles, or 0 without a loss scaler.
        pub growth_interval: u32,
        /// Numbers of the rule.
        pub rule: RuleNumbers,
        /// β of the smoothed norm.
        pub smoothing: f32,
        /// φ. The smoothed norm n̂ never falls below this fraction of the mean norm.
        pub norm_floor: f32,
        /// ε of the first step.
        pub first_step: f32,
        /// η of the first step if [`group_flags::INITIAL_RATE`] is set.
        pub initial_rate: f32,
        /// Number of the regime among the kernels of pass 3.
        pub regime: u32,
        /// Constants of the regime.
        pub regime_constants: RegimeConstants,
        /// One of [`schedule_kinds`].
        pub schedule: u32,
        /// Steps of the schedule's rise. For a table it is the index of the first factor.
        pub schedule_rise: u32,
        /// Depends on the schedule: the step at which the fall ends, the steps of the first cycle, or the steps between two falls or two factors of a
        /// table.
        pub schedule_steps: u32,
        /// Depends on the schedule: the steps of the fall, the ratio of a cycle's length to that of the one before, or the number of factors of a
        /// table.
        pub schedule_fall: u32,
        /// Depends on the schedule: the factor at the start, the power of a polynomial, or the upper part of ln of the factor of a fall.
        pub schedule_first: f32,
        /// Depends on the schedule: the factor at the end, or the rest of ln of the factor of a fall.
        pub schedule_last: f32,
        /// One of [`average_kinds`].
        pub average: u32,
        /// Steps taken before the average starts.
        pub average_start: u32,
        /// 1 + η of the polynomial average, or the share of a new iterate in the exponential average.
        pub average_gain: f32,
        /// Coefficient of the trust ratio, or 0 without one.
        pub trust_coefficient: f32,
        /// Smallest trust ratio, including the coefficient, or 0 without such a bound.
        pub trust_least: f32,
        /// Length of the direction over the scope, for rules whose direction does not shrink with the gradient. It is √d, or the length that follows
        /// from the singular values for rules that need matrices.
        pub direction_length: f32,
        /// Largest μ in the scope. With the next field it bounds the momentum's norm.
        pub scope_momentum: f32,
        /// Upper bound on the norm of what one step adds to a momentum buffer: the largest clip among the groups of this scope (for AdamW, its own
        /// bound), or `f32::MAX` if one of them has none. It bounds the momentum's norm, from which the scale of the inner products is chosen.
        pub scope_clip: f32,
        /// Seed of the random bits of [`Rounding::Stochastic`](crate::Rounding::Stochastic).
        pub rounding_seed: u32,
        /// Largest norm of the gradients of all groups, or `f32::MAX` without such a clip.
        pub global_clip: f32,
        /// Number of standard deviations above the mean of ln n beyond which a norm is an outlier, or 0 if none is.
        pub outlier_deviations: f32,
        /// Number of norms that the mean is taken over.
        pub outlier_window: u32,
    }

    /// State of a group from step to step. It is on the device.
    ///
    /// Numbers that must not overflow at any scale of the loss are stored as a mantissa in `[1, 2)` and an exponent. Sums of logarithms are stored in
    /// fixed point (integer part and fraction in units of 2⁻³²). They do not drift and do not depend on how a driver orders floating-point
    /// operations.
    pub struct GroupState {
        /// Steps attempted, low word.
        pub steps_low: u32,
        /// Steps attempted, high word.
        pub steps_high: u32,
        /// Slot of the ring into which the next record is written.
        pub record_slot: u32,
        /// Steps skipped because of a non-finite gradient.
        pub skipped: u32,
        /// Steps that were not skipped but left the group unchanged, because it was frozen, had no gradients, or their norm was an outlier.
        pub left_out: u32,
        /// Number of skipped steps in a row that count towards a halt, up to the last step. It continues to count after the halt.
        pub skips_in_row: u32,
        /// 1 after training has halted, so that no step changes anything.
        pub halted: u32,
        /// [`RawRecord::nonfinite`] of the last skipped step before the halt, or of the step that halted.
        pub last_nonfinite: u32,
        /// [`RawRecord::first_nonfinite`] of the same step.
        pub last_first_nonfinite: u32,
        /// Number of steps in a row with an element whose new value was out of range, up to the step before the last one.
        pub overflows_in_row: u32,
        /// [`RawRecord::overflow_key`] of the step for which training halted, or 0 if it did not halt or halted for another reason.
        pub halt_overflow_key: u32,
        /// Exponent of the loss scale that the next step's gradients are multiplied by.
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
        /// ln of the last [`GroupControls::learning_rate_factor`] above 0.
        pub ln_control: f32,
        /// The trust ratio of the last step with a gradient, or 1 without one.
        pub trust: f32,
        /// ln of the trust ratio.
        pub ln_trust: f32,
        /// ‖w‖ after the last step, of groups with a trust ratio.
        pub parameter_norm: Scaled,
        /// η of the first step.
        pub first_rate: Scaled,
        /// ln of the first rate.
        pub ln_first_rate: Fixed,
        /// ln η_t - ln η_0.
        pub change: Fixed,
        /// EMA of n², without bias correction.
        pub mean_square: Scaled,
        /// Mean of n over the non-zero gradients, the last [`MEAN_STEPS`] of them at most.
        pub mean_norm: Scaled,
        /// Number of gradients in `mean_norm`.
        pub mean_steps: u32,
        /// β^k after k non-zero gradients.
        pub smoothing_power: f32,
        /// n̂ of the last non-zero gradient.
        pub smoothed: Scaled,
        /// Power of two by which the next step's inner products scale the gradient. It is the same in all groups of a scope.
        pub gradient_exponent: i32,
        /// Power of two by which the inner products scale the momentum. It is the same in all groups of a scope.
        pub direction_exponent: i32,
        /// n of the last non-zero gradient.
        pub last_norm: Scaled,
        /// Mean of ln n, for outliers.
        pub mean_ln_norm: f32,
        /// Variance of ln n, for outliers.
        pub ln_norm_variance: f32,
        /// Number of norms in the mean and the variance.
        pub ln_norms: u32,
        /// The last step's clip factor.
        pub last_clip: f32,
        /// [`Update::first_correction`] of the last step of AdamW.
        pub first_correction: f32,
        /// [`Update::second_correction`] of the last step of AdamW.
        pub second_correction: f32,
        /// Σ (η_k k)² of schedule-free training, over the steps k that were not skipped.
        pub weight_sum: Scaled,
        /// State of the regime.
        pub regime: RegimeState,
    }

    /// Location of a scope's partial sums.
    pub struct ScopeTable {
        /// First partial of the scope.
        pub first_partial: u32,
        /// Number of partials: blocks times partials per block.
        pub partials: u32,
        /// The first group that the scope drives.
        pub group: u32,
    }

    /// A sum of squares that no scale of the loss can overflow: `sum * 4^exponent`.
    pub struct Squares {
        /// Zero, or within the range of f32.
        pub sum: f32,
        /// 0 for gradients of ordinary size.
        pub exponent: i32,
    }

    /// Sums of one sweep over the gradients of a scope.
    pub struct ScopeSums {
        /// Σ g² of the gradient that the regime sees.
        pub square: Squares,
        /// Σ g² of the gradient without weight decay, if a clip needs it.
        pub raw_square: Squares,
        /// Σ w² before the first step.
        pub initial_square: Squares,
        /// Σ |g| / 2^e, where e is the state's [`GroupState::gradient_exponent`].
        pub absolute: f32,
        /// ⟨g, q⟩ / 2^e, or ⟨g, m⟩ / 2^(e + e_m).
        pub slow_dot: f32,
        /// ⟨g, sign u⟩ / 2^e.
        pub fast_dot: f32,
        /// ‖q‖², or ‖m‖² / 2^(2 e_m).
        pub direction_square: f32,
        /// Number of elements that are NaN or infinite.
        pub nonfinite: u32,
        /// Index of the first such element, counted as in [`Block::first_element`]. It is `u32::MAX` for none, and [`LOSS_ELEMENT`] for the loss.
        pub first_nonfinite: u32,
        /// The loss, if a regime needs it.
        pub loss: f32,
    }

    /// Parameters of a group's update, written by pass 3 for pass 4.
    pub struct Update {
        /// One of [`skips`] if the step is skipped, else 0.
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
        /// The share of the old mean or sum of squares in the new one.
        pub square_keep: f32,
        /// The share of g² in the new mean or sum of squares.
        pub square_share: f32,
        /// 1/(1 - β₁ᵏ) at the k-th step of AdamW.
        pub first_correction: f32,
        /// 1/√(1 - β₂ᵏ) at the k-th step of AdamW.
        pub second_correction: f32,
        /// ε of AdamW.
        pub epsilon: f32,
        /// 1 in the first step, before which the parameters were the first ones. With AutoSgd it is 1 in the first step of an episode.
        pub first: u32,
        /// The share of the new parameters in their average, or of z in schedule-free training. It is 0 until the average starts, and above 0 from
        /// then on.
        pub average_weight: f32,
        /// Factor of the old value of a regime's memory in the new one: of s under Prodigy, and of the displacement under Mechanic. This field and
        /// the next are 0 for other regimes.
        pub memory_keep: f32,
        /// Factor of what is added to that memory: of the gradient under Prodigy, and of the parameters, for their decay, under Mechanic.
        pub memory_share: f32,
        /// Slot in which the stream's parameters are stored, one of [`slots`].
        pub put: u32,
        /// Slot from which the next stream's parameters are loaded, one of [`slots`].
        pub take: u32,
        /// Key of this step's random bits, for stochastic rounding.
        pub rounding_key: u32,
        /// Position of the step's [`RawRecord::overflow_key`] in the ring of records, in words.
        pub overflow_word: u32,
    }

    /// One step of one group, as pass 3 writes it into the ring. Read it as [`Record`](crate::Record).
    pub struct RawRecord {
        /// Steps attempted before this one, low word.
        pub step_low: u32,
        /// High word.
        pub step_high: u32,
        /// The group.
        pub group: u32,
        /// Bits of [`record_flags`].
        pub flags: u32,
        /// [`NO_ELEMENT`] minus the index of the first element that pass 4 left unchanged because its new value was out of range, or 0 for none. The
        /// record of the first group has it for all groups. Pass 4 or 5 writes it. After a halt for this reason it is that of the step that halted.
        pub overflow_key: u32,
        /// n.
        pub norm: f32,
        /// n̂.
        pub smoothed_norm: f32,
        /// η.
        pub learning_rate: f32,
        /// ln η.
        pub ln_rate: Fixed,
        /// Contributions to the change of ln η, indexed by [`terms`].
        pub terms: [f32; terms::TERMS],
        /// Values of the regime.
        pub regime: RegimeRecord,
        /// The trust ratio, or 1 without one.
        pub trust_ratio: f32,
        /// min(1, C/n).
        pub clip_factor: f32,
        /// Number of non-finite elements over all groups. After a halt this field and the next are those of the step that halted.
        pub nonfinite: u32,
        /// Index of the first non-finite element.
        pub first_nonfinite: u32,
        /// Steps skipped so far, this one included.
        pub skipped: u32,
        /// [`GroupState::skips_in_row`] after the step.
        pub skips_in_row: u32,
        /// Exponent of the loss scale of this step's gradients.
        pub loss_scale_exponent: i32,
    }

    /// Sums of squares that pass 4 measures for each block, and pass 5 adds up for each tensor or group.
    pub struct StepSums {
        /// Σ w² of the new parameters.
        pub parameters: Squares,
        /// Σ s², where s is the difference of the new and the old parameters after rounding.
        pub step: Squares,
        /// As [`RawRecord::overflow_key`].
        pub overflow_key: u32,
    }

    /// Blocks whose step sums pass 5 adds up: those of a tensor or of a group.
    pub struct StepUnit {
        /// Row of the first block, counted as in [`Block::row`].
        pub first_row: u32,
        /// Number of blocks, which are next to each other.
        pub rows: u32,
        /// The group itself, or the group of the tensor.
        pub group: u32,
        /// The tensor that is recorded, or [`NO_TENSOR`] for the norm of a group.
        pub tensor: u32,
    }

    /// One step of one tensor, as pass 5 writes it into a separate ring. Read it as [`TensorRecord`](crate::TensorRecord).
    pub struct RawTensorRecord {
        /// Steps attempted before this one, low word.
        pub step_low: u32,
        /// High word.
        pub step_high: u32,
        /// The tensor.
        pub tensor: u32,
        /// Bits of [`record_flags`]: `WRITTEN`, `SKIPPED`, and `WAITING` if the norm is not known yet.
        pub flags: u32,
        /// ‖w‖ after the step.
        pub parameter_norm: f32,
        /// ‖s‖.
        pub step_norm: f32,
        /// η.
        pub learning_rate: f32,
    }

    /// `mantissa * 2^exponent`, mantissa in `[1, 2)`, or 0 with exponent 0. Only values of 0 and above.
    pub struct Scaled {
        /// In `[1, 2)`, or 0.
        pub mantissa: f32,
        /// The power of two.
        pub exponent: i32,
    }

    /// A sum of logarithms in fixed point: `whole + fraction / 2^32`.
    pub struct Fixed {
        /// The integer part.
        pub whole: i32,
        /// The fraction, in units of 2⁻³².
        pub fraction: u32,
    }

    /// Numbers of an update rule.
    pub struct RuleNumbers {
        /// μ or β: the share of the old momentum in the new one.
        pub momentum: f32,
        /// Share of the gradient in the momentum: 1-δ or 1-β.
        pub gradient_share: f32,
        /// Share of the momentum in the direction: μ of Nesterov's, β₁ of Lion's.
        pub direction_momentum: f32,
        /// Share of the old v in the new one: β₂ of rules with a mean of squares, 1 of those with a sum.
        pub square_keep: f32,
        /// Share of g² in v: 1-β₂, or 1.
        pub square_share: f32,
        /// -ln β₁ of rules with a mean of squares, or 128 for no bias correction.
        pub first_decay: f32,
        /// -ln β₂ of rules with a mean of squares, or 128 for no bias correction.
        pub second_decay: f32,
        /// ε of rules with a mean of squares, or 0 for the other rules.
        pub epsilon: f32,
        /// c of rules whose share of g² at the k-th step is k^-c, or 0 for the other rules.
        pub square_fall: f32,
    }
}

/// Single constants.
mod constants {
    super::shared_constants! { ""
        /// The longest memory of [`super::GroupState::mean_norm`], in steps.
        pub const MEAN_STEPS: u32 = 65536;
        /// Limit of a norm in [`super::GroupState::mean_norm`], in units of n̂ of the step before.
        pub const MEAN_OUTLIER: u32 = 10;
        /// Value of [`super::ScopeSums::first_nonfinite`] if only the loss is not finite. It is above the index of any element.
        pub const LOSS_ELEMENT: u32 = u32::MAX - 1;
        /// Words of a partial: those of [`super::ScopeSums`] except the loss.
        pub const PARTIAL_WORDS: u32 = 12;
        /// Largest number of scopes of a step in one dispatch (`shaders/whole_step.wgsl`).
        pub const WHOLE_STEP_SCOPES: u32 = 8;
        /// Largest number of factors in the tables of all schedules.
        pub const TABLE_FACTORS: u32 = 4096;
        /// The same in vectors of four.
        pub const TABLE_QUADS: u32 = 1024;
        /// Value of [`super::StepUnit::tensor`] for a group.
        pub const NO_TENSOR: u32 = u32::MAX;
        /// Smallest magnitude bits of a float that is not finite. The bits are compared instead of the floats, because WGSL may assume that there are
        /// no NaNs.
        pub const INFINITY_BITS: u32 = 0x7f80_0000;
        /// Words of a [`super::RawRecord`].
        pub const RECORD_WORDS: u32 = 34;
        /// The word of [`super::RawRecord::overflow_key`] in a record.
        pub const OVERFLOW_KEY_WORD: u32 = 4;
        /// Rows and columns of a [`super::Tile`].
        pub const MATRIX_TILE: u32 = 64;
        /// Words that each block has at the start of the table of rows (`shaders/rows/table.wgsl`).
        pub const ROW_WORDS: u32 = 4;
        /// The word with the tensor's number of columns.
        pub const COLUMNS_WORD: u32 = 0;
        /// The word with the number of elements.
        pub const ELEMENTS_WORD: u32 = 1;
        /// The word with the place of the first factor.
        pub const FACTORS_WORD: u32 = 2;
        /// The word with the place of the first row's flag.
        pub const FLAGS_WORD: u32 = 3;
        /// All bits of a float but its sign.
        pub const MAGNITUDE_BITS: u32 = 0x7fff_ffff;
        /// Value of [`super::ScopeSums::first_nonfinite`] in a partial without non-finite elements.
        pub const NO_ELEMENT: u32 = u32::MAX;
    }
}
pub use constants::{
    COLUMNS_WORD, ELEMENTS_WORD, FACTORS_WORD, FLAGS_WORD, INFINITY_BITS, LOSS_ELEMENT, MAGNITUDE_BITS, MATRIX_TILE,
    MEAN_OUTLIER, MEAN_STEPS, NO_ELEMENT, NO_TENSOR, OVERFLOW_KEY_WORD, PARTIAL_WORDS, RECORD_WORDS, ROW_WORDS,
    TABLE_FACTORS, TABLE_QUADS, WHOLE_STEP_SCOPES,
};

/// Numbers of the formulas that several files use, on both sides.
pub mod numbers {
    super::shared_constants! { ""
        /// The smallest learning rate a regime may set.
        pub const RATE_MIN: f32 = 1e-30;
        /// The largest learning rate a regime may set.
        pub const RATE_MAX: f32 = 1e30;
        /// The largest rise of `ln η` in one step, and the largest fall for the regimes whose formula gives η itself: a factor of ten.
        pub const MAX_CHANGE: f32 = std::f32::consts::LN_10;
        /// The largest rise of η in one step, as a factor.
        pub const MAX_FACTOR: f32 = 10.0;
        /// The smallest trust ratio.
        pub const TRUST_MIN: f32 = 1e-8;
        /// The largest trust ratio.
        pub const TRUST_MAX: f32 = 1e8;
        /// The smallest factor of a schedule.
        pub const FACTOR_FLOOR: f32 = 1e-6;
        /// A smaller rise of ln of a schedule's factor counts as rounding.
        pub const LEAST_RISE: f32 = 1e-6;
        /// The largest element of a gradient that rules with a mean of squares do not clamp. Its square is within the range of f32, with some margin.
        pub const LARGEST_SQUARED: f32 = 1.8e19;
        /// The largest element of a gradient that rules with factored second moments do not clamp. Sums of its squares are within the range of f32.
        pub const LARGEST_FACTORED: f32 = 1.099_511_6e12;
        /// The upper part of ln 2, whose product with an integer exponent is exact.
        pub const LN_2_HIGH: f32 = 0.693_145_75;
        /// The rest of ln 2.
        pub const LN_2_LOW: f32 = 1.428_606_8e-6;
        /// The share of z in the parameters of schedule-free training.
        pub const TOWARDS_BASE: f32 = 0.15;
        /// 3/17. The average is x = (y - 0.15 z)/0.85 = y + 3/17 (y - z), which is y if z is y.
        pub const BEYOND: f32 = 0.176_470_6;
        /// 2^-40 as bits. Squares of smaller magnitudes are added up at another scale.
        pub const SMALL_BITS: u32 = 0x2b80_0000;
        /// 2^40 as bits. Squares of larger magnitudes are added up at another scale.
        pub const BIG_BITS: u32 = 0x5380_0000;
        /// The largest magnitude of a parameter in f32 or of a momentum. It is one unit below the largest f32, so that a comparison with it detects
        /// an infinity even if a compiler assumes that there are none.
        pub const LARGEST_F32: f32 = 3.402_823_3e38;
        /// The largest magnitude of a parameter in f16.
        pub const LARGEST_F16: f32 = 65504.0;
        /// The largest magnitude of a parameter in bf16.
        pub const LARGEST_BF16: f32 = 3.389_531_4e38;
        /// The exponent below which the factor of a clip is divided between two numbers, because f32 could not hold it.
        pub const SMALLEST_CLIP: i32 = -100;
        /// The smallest standard deviation of ln n in the search for outliers.
        pub const LEAST_DEVIATION: f32 = 0.01;
        /// The largest factor of a learning rate, [`RATE_MAX`], as bits. The bits of a negative number, an infinity or a NaN are larger.
        pub const LARGEST_FACTOR_BITS: u32 = 0x7149_f2ca;
        /// The largest magnitude of a direction counter.
        pub const COUNTER_LIMIT: f32 = 7.0;
    }
}

/// Words of a partial, in the order of [`ScopeSums`]. `shaders/reduction/totals.wgsl` documents their places in the array.
pub mod partial_words {
    super::shared_constants! { ""
        /// [`super::ScopeSums::square`], which has two words like the next two.
        pub const SQUARE: u32 = 0;
        /// [`super::ScopeSums::raw_square`].
        pub const RAW_SQUARE: u32 = 2;
        /// [`super::ScopeSums::initial_square`].
        pub const INITIAL_SQUARE: u32 = 4;
        /// [`super::ScopeSums::absolute`].
        pub const ABSOLUTE: u32 = 6;
        /// [`super::ScopeSums::slow_dot`].
        pub const SLOW_DOT: u32 = 7;
        /// [`super::ScopeSums::fast_dot`].
        pub const FAST_DOT: u32 = 8;
        /// [`super::ScopeSums::direction_square`].
        pub const DIRECTION_SQUARE: u32 = 9;
        /// [`super::ScopeSums::nonfinite`].
        pub const NONFINITE: u32 = 10;
        /// [`super::ScopeSums::first_nonfinite`].
        pub const FIRST_NONFINITE: u32 = 11;
    }
}

/// Index of each contribution to the change of ln η in [`RawRecord::terms`]. [`Term`](crate::Term) explains them.
pub mod terms {
    super::shared_constants! { ""
        /// [`Term::Norm`](crate::Term::Norm).
        pub const NORM_TERM: u32 = 0;
        /// [`Term::Alignment`](crate::Term::Alignment).
        pub const ALIGNMENT_TERM: u32 = 1;
        /// [`Term::Brake`](crate::Term::Brake).
        pub const BRAKE_TERM: u32 = 2;
        /// [`Term::Held`](crate::Term::Held).
        pub const HELD_TERM: u32 = 3;
        /// [`Term::Curvature`](crate::Term::Curvature).
        pub const CURVATURE_TERM: u32 = 4;
        /// [`Term::Distance`](crate::Term::Distance).
        pub const DISTANCE_TERM: u32 = 5;
        /// [`Term::History`](crate::Term::History).
        pub const HISTORY_TERM: u32 = 6;
        /// [`Term::Loss`](crate::Term::Loss).
        pub const LOSS_TERM: u32 = 7;
        /// [`Term::Gate`](crate::Term::Gate).
        pub const GATE_TERM: u32 = 8;
        /// [`Term::Episode`](crate::Term::Episode).
        pub const EPISODE_TERM: u32 = 9;
        /// [`Term::Clamp`](crate::Term::Clamp).
        pub const CLAMP_TERM: u32 = 10;
        /// [`Term::Schedule`](crate::Term::Schedule).
        pub const SCHEDULE_TERM: u32 = 11;
        /// [`Term::Trust`](crate::Term::Trust).
        pub const TRUST_TERM: u32 = 12;
        /// [`Term::Control`](crate::Term::Control).
        pub const CONTROL_TERM: u32 = 13;
    }

    /// The number of terms.
    pub const TERMS: usize = 14;
}

/// Bits of [`GroupConstants::flags`].
pub mod group_flags {
    super::shared_constants! { ""
        /// The direction is a vector of signs, or as long as one ([`Rule::is_scale_free`](crate::Rule::is_scale_free)), so that the first rate is the
        /// first step's length over √d.
        pub const SIGN_RULE: u32 = 1;
        /// [`super::GroupConstants::initial_rate`] is given.
        pub const INITIAL_RATE: u32 = 2;
        /// The momentum's first value is the gradient itself (PyTorch's SGD).
        pub const MOMENTUM_FROM_GRADIENT: u32 = 4;
        /// The alignment is measured against direction counters, so that there is a brake.
        pub const BRAKE: u32 = 8;
        /// The clip uses the norm of the gradient without weight decay, which has separate sums.
        pub const RAW_NORM_CLIP: u32 = 16;
        /// The alignment is measured against y - z of schedule-free training. y and z begin to differ with the second step.
        pub const ITERATES: u32 = 32;
        /// The weight decay is coupled.
        pub const COUPLES_DECAY: u32 = 64;
        /// The gradient of an outlier is clipped to the norm at which outliers begin. Otherwise the step leaves out the groups with this norm.
        pub const OUTLIER_CLIPS: u32 = 128;
        /// Pass 1 does not run over the group, because nothing uses its sums.
        pub const NOT_MEASURED: u32 = 256;
        /// The trust ratio only lowers the learning rate.
        pub const TRUST_CAPS: u32 = 512;
    }
}

/// Copies of the parameters that AutoSgd keeps, each as long as the parameters: [`Update::put`] and [`Update::take`].
pub mod slots {
    super::shared_constants! { ""
        /// The parameters from before the episode. Slots 1 and 2 hold the two streams whose turn it is not.
        pub const START_SLOT: u32 = 0;
        /// No slot: the parameters stay in the caller's buffer.
        pub const NO_SLOT: u32 = 3;
        /// Number of copies.
        pub const STREAM_SLOTS: u32 = 3;
        /// Number of vectors that Prodigy keeps.
        pub const ESTIMATE_SLOTS: u32 = 2;
    }
}

/// Values of [`Update::skip`], beside 0.
pub mod skips {
    super::shared_constants! { ""
        /// Nothing may change.
        pub const SKIP_ALL: u32 = 1;
        /// No step is taken, but the streams change turns.
        pub const SKIP_STEP: u32 = 2;
    }
}

/// Values of [`GroupConstants::schedule`].
pub mod schedule_kinds {
    super::shared_constants! { "SCHEDULE_"
        /// The factor 1.
        pub const CONSTANT: u32 = 0;
        /// Half a cosine down. This kind and the following ones come after a linear warm-up unless they say otherwise.
        pub const COSINE: u32 = 1;
        /// The inverse square root.
        pub const INVERSE_SQRT: u32 = 2;
        /// A fall after every fixed number of steps.
        pub const STEP: u32 = 3;
        /// Half a cosine up in place of the warm-up, half a cosine down.
        pub const ONE_CYCLE: u32 = 4;
        /// The factor 1 after the warm-up.
        pub const LEVEL: u32 = 5;
        /// A power of the part of the fall that is left.
        pub const POLYNOMIAL: u32 = 6;
        /// Consecutive half cosines.
        pub const RESTARTS: u32 = 7;
        /// 1 - √x.
        pub const ONE_MINUS_SQRT: u32 = 8;
        /// The caller's factors, without a warm-up.
        pub const TABLE: u32 = 9;
    }
}

/// Values of [`GroupConstants::average`].
pub mod average_kinds {
    super::shared_constants! { "AVERAGE_"
        /// No average.
        pub const OFF: u32 = 0;
        /// Running (η = 0) and polynomial decay.
        pub const POLYNOMIAL: u32 = 1;
        /// Exponential.
        pub const EXPONENTIAL: u32 = 2;
        /// Schedule-free, weighted by the learning rates.
        pub const SCHEDULE_FREE: u32 = 3;
    }
}

/// Bits of [`RawRecord::flags`].
pub mod record_flags {
    super::shared_constants! { ""
        /// The rate comes from the first step's length or the caller, not from a change.
        pub const FIRST: u32 = 1;
        /// The gradient was zero: the rate is carried over.
        pub const ZERO_GRADIENT: u32 = 2;
        /// A gradient of some group was not finite: nothing changed.
        pub const SKIPPED: u32 = 4;
        /// The gradient was scaled down to the clip norm.
        pub const CLIPPED: u32 = 8;
        /// The change of ln η was clamped to ±ln 10. Seesaw, NormRatio and Hypergradient clamp only a rise.
        pub const CLAMPED_CHANGE: u32 = 16;
        /// η was clamped to `[1e-30, 1e30]`.
        pub const CLAMPED_RATE: u32 = 32;
        /// The learning rate is 0: every gradient so far was zero or not finite, or the caller has set the factor to 0.
        pub const WAITING: u32 = 64;
        /// The loss was not finite.
        pub const NONFINITE_LOSS: u32 = 256;
        /// Training has halted, so that no step changes anything.
        pub const HALTED: u32 = 512;
        /// The loss scale changes for the next step.
        pub const SCALE_CHANGED: u32 = 1024;
        /// The stream is lost: it had moved, and then its loss or gradient was not finite.
        pub const STREAM_LOST: u32 = 2048;
        /// An episode of AutoSgd ends with this step, and the caller's buffer holds the winner's parameters.
        pub const EPISODE_ENDS: u32 = 4096;
        /// The group is frozen.
        pub const FROZEN: u32 = 8192;
        /// The group had no gradients in this step.
        pub const ABSENT: u32 = 16384;
        /// The norm is an outlier.
        pub const OUTLIER: u32 = 32768;
        /// The gradients were not measured.
        pub const UNMEASURED: u32 = 65536;
        /// Set in every record, to distinguish it from a slot of the ring that was never written.
        pub const WRITTEN: u32 = 128;
    }
}

const _: () = {
    assert!(numbers::LARGEST_FACTOR_BITS == numbers::RATE_MAX.to_bits());
    assert!(std::mem::offset_of!(GroupConstants, controls) == 0);
    assert!(RECORD_WORDS as usize * 4 == size_of::<RawRecord>());
    assert!(OVERFLOW_KEY_WORD as usize * 4 == std::mem::offset_of!(RawRecord, overflow_key));
};

impl Squares {
    /// Returns the sum as one number, which f64 holds without loss.
    pub fn value(self) -> f64 {
        f64::from(self.sum) * f64::from(2 * self.exponent).exp2()
    }
}

/// Returns the sums over no elements.
pub(crate) fn no_totals() -> ScopeSums {
    ScopeSums { first_nonfinite: NO_ELEMENT, ..ScopeSums::default() }
}

/// Returns the factor that divides out a loss scale of 2^exponent, at most 2^126.
pub(crate) fn unscale(exponent: i32) -> f32 {
    f32::from_bits(((127 - exponent) as u32) << 23)
}

impl GroupState {
    /// Returns the state before the first step. A rate that the caller gave applies from the start.
    pub(crate) fn initial(constants: &GroupConstants, regime: RegimeState) -> Self {
        let mut state = GroupState {
            smoothing_power: 1.0,
            loss_scale_exponent: constants.loss_scale_first,
            trust: 1.0,
            last_clip: 1.0,
            regime,
            ..GroupState::default()
        };
        if constants.flags & group_flags::INITIAL_RATE != 0 {
            let rate = constants.initial_rate;
            let ln_rate = f64::from(rate).ln();
            state.learning_rate = rate;
            state.regime_rate = rate;
            state.first_rate = Scaled::new(rate, 0);
            state.ln_first_rate = Fixed {
                whole: ln_rate.floor() as i32,
                fraction: ((ln_rate - ln_rate.floor()) * 4_294_967_296.0) as u32,
            };
        }
        state
    }
}
