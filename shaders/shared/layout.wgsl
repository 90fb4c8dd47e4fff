// The structs and constants that cross between host and device. The other copy is src/layout.rs, where each field is
// explained; tests/kernels/layout.rs compares the two.

struct Block {
    params_start: u32,
    grads_start: u32,
    state_quad: u32,
    elements: u32,
    group: u32,
    row: u32,
    first_element: u32,
}

struct GroupConstants {
    scope: u32,
    flags: u32,
    sign: f32,
    gradient_factor: f32,
    coupled_decay: f32,
    decoupled_decay: f32,
    clip_norm: f32,
    halt_after: u32,
    loss_scale_first: i32,
    loss_scale_least: i32,
    loss_scale_most: i32,
    growth_interval: u32,
    momentum: f32,
    gradient_share: f32,
    direction_momentum: f32,
    square_keep: f32,
    first_decay: f32,
    second_decay: f32,
    epsilon: f32,
    exponent: f32,
    exponent_above: f32,
    gain: f32,
    early_steps: f32,
    smoothing: f32,
    norm_floor: f32,
    brake_slack: f32,
    first_step: f32,
    initial_rate: f32,
    regime: u32,
    scale: f32,
    offset: f32,
    rounds: u32,
    max_change: f32,
    max_rate: f32,
    schedule: u32,
    schedule_rise: u32,
    schedule_steps: u32,
    schedule_first: f32,
    schedule_last: f32,
    average: u32,
    average_start: u32,
    average_gain: f32,
    trust_coefficient: f32,
    sqrt_elements: f32,
    scope_momentum: f32,
    scope_clip: f32,
    rounding_seed: u32,
}

const SIGN_RULE = 1u;
const INITIAL_RATE = 2u;
const MOMENTUM_FROM_GRADIENT = 4u;
const BRAKE = 8u;
const RAW_NORM_CLIP = 16u;
const ITERATES = 32u;

const SEESAW = 0u;
const ADAGRAD_NORM = 1u;
const SECANT_LONG = 2u;
const SECANT_SHORT = 3u;
const SECANT_GEOMETRIC = 4u;
const ADGD = 5u;
const DOG = 6u;
const DOWG = 7u;
const POLYAK = 8u;
const NGN = 9u;
const AUTO_SGD = 10u;

const MIDDLE = 0u;
const SLOWER = 1u;
const FASTER = 2u;

const UNDECIDED = 0u;
const INCREASE = 1u;
const STAY = 2u;
const DECREASE = 3u;
const RESTART = 4u;

const START_SLOT = 0u;
const NO_SLOT = 3u;
const STREAM_SLOTS = 3u;

const SKIP_ALL = 1u;
const SKIP_STEP = 2u;

const SCHEDULE_CONSTANT = 0u;
const SCHEDULE_WARMUP_COSINE = 1u;
const SCHEDULE_INVERSE_SQRT = 2u;
const SCHEDULE_STEP = 3u;
const SCHEDULE_ONE_CYCLE = 4u;

const AVERAGE_OFF = 0u;
const AVERAGE_POLYNOMIAL = 1u;
const AVERAGE_EXPONENTIAL = 2u;
const AVERAGE_SCHEDULE_FREE = 3u;

struct StreamsState {
    episode: u32,
    turn: u32,
    moved: u32,
    lost: u32,
    heard: u32,
    rounds: u32,
    outcome: u32,
    start_loss: f32,
    middle_loss: f32,
    slower_loss: f32,
    slower_sum: f32,
    slower_squares: f32,
    faster_sum: f32,
    faster_squares: f32,
}

struct GroupState {
    steps_low: u32,
    steps_high: u32,
    record_slot: u32,
    skipped: u32,
    skips_in_row: u32,
    halted: u32,
    last_nonfinite: u32,
    last_first_nonfinite: u32,
    loss_scale_exponent: i32,
    good_steps: u32,
    started: u32,
    momentum_started: u32,
    learning_rate: f32,
    regime_rate: f32,
    ln_schedule: f32,
    trust: f32,
    ln_trust: f32,
    parameter_mantissa: f32,
    parameter_exponent: i32,
    first_rate_mantissa: f32,
    first_rate_exponent: i32,
    ln_first_rate_int: i32,
    ln_first_rate_fraction: u32,
    change_int: i32,
    change_fraction: u32,
    agreement_int: i32,
    agreement_fraction: u32,
    least_agreement_int: i32,
    least_agreement_fraction: u32,
    anchor_norm_mantissa: f32,
    anchor_norm_exponent: i32,
    mean_fast: f32,
    mean_fast_weight: f32,
    mean_square_mantissa: f32,
    mean_square_exponent: i32,
    mean_norm_mantissa: f32,
    mean_norm_exponent: i32,
    mean_steps: u32,
    smoothing_power: f32,
    smoothed_mantissa: f32,
    smoothed_exponent: i32,
    gradient_exponent: i32,
    direction_exponent: i32,
    last_norm_mantissa: f32,
    last_norm_exponent: i32,
    last_loss: f32,
    history_mantissa: f32,
    history_exponent: i32,
    distance_mantissa: f32,
    distance_exponent: i32,
    last_growth: f32,
    last_clip: f32,
    first_correction: f32,
    second_correction: f32,
    weight_sum_mantissa: f32,
    weight_sum_exponent: i32,
    streams: StreamsState,
}

const MEAN_STEPS = 65536u;
const MEAN_OUTLIER = 10u;

struct ScopeTable {
    first_partial: u32,
    partials: u32,
    group: u32,
}

// sum * 4^exponent
struct Squares {
    sum: f32,
    exponent: i32,
}

struct ScopeSums {
    square: Squares,
    raw_square: Squares,
    initial_square: Squares,
    absolute: f32,
    slow_dot: f32,
    fast_dot: f32,
    direction_square: f32,
    nonfinite: u32,
    first_nonfinite: u32,
    loss: f32,
}

struct Update {
    skip: u32,
    learning_rate: f32,
    gradient_factor: f32,
    micro_share: f32,
    unscale: f32,
    coupled_decay: f32,
    shrink: f32,
    momentum_keep: f32,
    gradient_share: f32,
    momentum: f32,
    square_keep: f32,
    first_correction: f32,
    second_correction: f32,
    epsilon: f32,
    first: u32,
    average_weight: f32,
    put: u32,
    take: u32,
    rounding_key: u32,
}

struct RawRecord {
    step_low: u32,
    step_high: u32,
    group: u32,
    flags: u32,
    norm: f32,
    smoothed_norm: f32,
    slow_alignment: f32,
    fast_alignment: f32,
    learning_rate: f32,
    ln_rate_int: i32,
    ln_rate_fraction: u32,
    norm_term: f32,
    alignment_term: f32,
    brake_term: f32,
    held_term: f32,
    clamp_term: f32,
    schedule_term: f32,
    curvature_term: f32,
    distance_term: f32,
    history_term: f32,
    loss_term: f32,
    gate_term: f32,
    trust_term: f32,
    trust_ratio: f32,
    episode_term: f32,
    episode: u32,
    stream: u32,
    outcome: u32,
    clip_factor: f32,
    nonfinite: u32,
    first_nonfinite: u32,
    skipped: u32,
    skips_in_row: u32,
    loss_scale_exponent: i32,
}

// What pass 4 measures of a step: the new parameters, and the way from the old ones.
struct StepSums {
    parameters: Squares,
    step: Squares,
}

// What pass 5 adds up: a tensor for its record, or, with NO_TENSOR, a group for its trust ratio.
struct StepUnit {
    first_row: u32,
    rows: u32,
    group: u32,
    tensor: u32,
}

const NO_TENSOR = 0xffffffffu;

struct RawTensorRecord {
    step_low: u32,
    step_high: u32,
    tensor: u32,
    flags: u32,
    parameter_norm: f32,
    step_norm: f32,
    learning_rate: f32,
}

const FIRST = 1u;
const ZERO_GRADIENT = 2u;
const SKIPPED = 4u;
const CLIPPED = 8u;
const CLAMPED_CHANGE = 16u;
const CLAMPED_RATE = 32u;
const WAITING = 64u;
const WRITTEN = 128u;
const NONFINITE_LOSS = 256u;
const HALTED = 512u;
const SCALE_CHANGED = 1024u;
const STREAM_LOST = 2048u;
const EPISODE_ENDS = 4096u;

// Words of a partial, in the order of ScopeSums. shared/totals.wgsl says where in the array they lie.
const SQUARE = 0u;
const RAW_SQUARE = 2u;
const INITIAL_SQUARE = 4u;
const ABSOLUTE = 6u;
const SLOW_DOT = 7u;
const FAST_DOT = 8u;
const DIRECTION_SQUARE = 9u;
const NONFINITE = 10u;
const FIRST_NONFINITE = 11u;
const PARTIAL_WORDS = 12u;

// The bits of +inf: the magnitude bits of a float are at least this where it is not finite. Comparing floats would not do,
// WGSL may assume that there are no NaNs.
const INFINITY_BITS = 0x7f800000u;
const MAGNITUDE_BITS = 0x7fffffffu;
// first_nonfinite of a partial without any.
const NO_ELEMENT = 0xffffffffu;
// first_nonfinite where it is the loss that is not finite, and no element.
const LOSS_ELEMENT = 0xfffffffeu;
