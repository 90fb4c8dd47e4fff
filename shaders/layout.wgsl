// Structs and constants that cross between host and device. Written by a test from src/layout.rs and the files in src/regime/ and
// src/controllers/, which explain them. A kernel of the learning-rate pass knows the structs of its regime, and the others their sizes.

struct Scaled {
    mantissa: f32,
    exponent: i32,
}

struct Fixed {
    whole: i32,
    fraction: u32,
}

struct Squares {
    sum: f32,
    exponent: i32,
}

struct Block {
    params_start: u32,
    grads_start: u32,
    state_quad: u32,
    elements: u32,
    group: u32,
    row: u32,
    first_element: u32,
    lead: u32,
    present: u32,
}

struct Matrix {
    first: u32,
    rows: u32,
    columns: u32,
    transposed: u32,
    gram_first: u32,
    group: u32,
    lead: u32,
    blocks: u32,
    a: f32,
    b: f32,
    c: f32,
    epsilon: f32,
    scale: f32,
}

struct FactoredTensor {
    rows: u32,
    columns: u32,
    matrices: u32,
    elements: u32,
    rows_first: u32,
    columns_first: u32,
    means_first: u32,
    partials_first: u32,
    group: u32,
    lead: u32,
    blocks: u32,
    limit: f32,
    factor: f32,
}

struct Tile {
    matrix: u32,
    row: u32,
    column: u32,
}

struct RuleNumbers {
    momentum: f32,
    gradient_share: f32,
    direction_momentum: f32,
    square_keep: f32,
    square_share: f32,
    first_decay: f32,
    second_decay: f32,
    epsilon: f32,
    square_fall: f32,
}

struct GroupControls {
    learning_rate_factor: f32,
    gradient_factor: f32,
    weight_decay: f32,
    clip_norm: f32,
    frozen: u32,
    present: u32,
}

struct GroupConstants {
    controls: GroupControls,
    scope: u32,
    flags: u32,
    sign: f32,
    halt_after: u32,
    loss_scale_first: i32,
    loss_scale_least: i32,
    loss_scale_most: i32,
    halt_after_overflows: u32,
    growth_interval: u32,
    rule: RuleNumbers,
    smoothing: f32,
    norm_floor: f32,
    first_step: f32,
    initial_rate: f32,
    regime: u32,
    regime_constants: RegimeConstants,
    schedule: u32,
    schedule_rise: u32,
    schedule_steps: u32,
    schedule_fall: u32,
    schedule_first: f32,
    schedule_last: f32,
    average: u32,
    average_start: u32,
    average_gain: f32,
    trust_coefficient: f32,
    trust_least: f32,
    direction_length: f32,
    scope_momentum: f32,
    scope_clip: f32,
    rounding_seed: u32,
    global_clip: f32,
    outlier_deviations: f32,
    outlier_window: u32,
}

struct GroupState {
    steps_low: u32,
    steps_high: u32,
    record_slot: u32,
    skipped: u32,
    left_out: u32,
    skips_in_row: u32,
    halted: u32,
    last_nonfinite: u32,
    last_first_nonfinite: u32,
    overflows_in_row: u32,
    halt_overflow_key: u32,
    loss_scale_exponent: i32,
    good_steps: u32,
    started: u32,
    momentum_started: u32,
    learning_rate: f32,
    regime_rate: f32,
    ln_schedule: f32,
    ln_control: f32,
    trust: f32,
    ln_trust: f32,
    parameter_norm: Scaled,
    first_rate: Scaled,
    ln_first_rate: Fixed,
    change: Fixed,
    mean_square: Scaled,
    mean_norm: Scaled,
    mean_steps: u32,
    smoothing_power: f32,
    smoothed: Scaled,
    gradient_exponent: i32,
    direction_exponent: i32,
    last_norm: Scaled,
    mean_ln_norm: f32,
    ln_norm_variance: f32,
    ln_norms: u32,
    last_clip: f32,
    first_correction: f32,
    second_correction: f32,
    weight_sum: Scaled,
    regime: RegimeState,
}

struct ScopeTable {
    first_partial: u32,
    partials: u32,
    group: u32,
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
    square_share: f32,
    first_correction: f32,
    second_correction: f32,
    epsilon: f32,
    first: u32,
    average_weight: f32,
    memory_keep: f32,
    memory_share: f32,
    put: u32,
    take: u32,
    rounding_key: u32,
    overflow_word: u32,
}

struct RawRecord {
    step_low: u32,
    step_high: u32,
    group: u32,
    flags: u32,
    overflow_key: u32,
    norm: f32,
    smoothed_norm: f32,
    learning_rate: f32,
    ln_rate: Fixed,
    terms: array<f32, 14>,
    regime: RegimeRecord,
    trust_ratio: f32,
    clip_factor: f32,
    nonfinite: u32,
    first_nonfinite: u32,
    skipped: u32,
    skips_in_row: u32,
    loss_scale_exponent: i32,
}

struct StepSums {
    parameters: Squares,
    step: Squares,
    overflow_key: u32,
}

struct StepUnit {
    first_row: u32,
    rows: u32,
    group: u32,
    tensor: u32,
}

struct RawTensorRecord {
    step_low: u32,
    step_high: u32,
    tensor: u32,
    flags: u32,
    parameter_norm: f32,
    step_norm: f32,
    learning_rate: f32,
}

struct WatchdogConstants {
    window: u32,
    decrease: f32,
    margin: f32,
    rows: u32,
}

struct WatchdogBatch {
    weight: f32,
    loss_at: u32,
}

struct WatchdogState {
    sum: f32,
    weight: f32,
    lost: u32,
    started: u32,
    has_start: u32,
    start: f32,
    least: f32,
    accepted: array<f32, 16>,
    accepted_count: u32,
    epochs: u32,
    taken_back: u32,
}

struct RawVerdict {
    epoch: u32,
    outcome: u32,
    flags: u32,
    loss: f32,
    limit: f32,
    start: f32,
    rate: f32,
    next_rate: f32,
}

struct KeptPart {
    first_word: u32,
    words: u32,
    half_word: u32,
}

struct ProductPart {
    parameters_word: u32,
    gradients_word: u32,
    elements: u32,
    row: u32,
}

struct BiLevelConstants {
    first_row: u32,
    rows: u32,
    decay_least: f32,
    decay_most: f32,
    decay_down: f32,
    decay_up: f32,
    factor_least: f32,
    factor_most: f32,
    factor_down: f32,
    factor_up: f32,
}

struct BiLevelState {
    weight_decay: f32,
    learning_rate_factor: f32,
    along_parameters: f32,
    along_step: f32,
}

struct PolicySettings {
    cell: u32,
    from_loss: u32,
    from_state: u32,
    groups: u32,
    loss_at: u32,
    scale_is_given: u32,
    scale_factor: f32,
    ln_classes: f32,
}

struct ElementPair {
    first: u32,
    second: u32,
    elements: u32,
    group: u32,
}

const MEAN_STEPS = 65536u;
const MEAN_OUTLIER = 10u;
const LOSS_ELEMENT = 4294967294u;
const PARTIAL_WORDS = 12u;
const WHOLE_STEP_SCOPES = 8u;
const TABLE_FACTORS = 4096u;
const TABLE_QUADS = 1024u;
const NO_TENSOR = 4294967295u;
const INFINITY_BITS = 2139095040u;
const RECORD_WORDS = 34u;
const OVERFLOW_KEY_WORD = 4u;
const MATRIX_TILE = 64u;
const ROW_WORDS = 4u;
const COLUMNS_WORD = 0u;
const ELEMENTS_WORD = 1u;
const FACTORS_WORD = 2u;
const FLAGS_WORD = 3u;
const MAGNITUDE_BITS = 2147483647u;
const NO_ELEMENT = 4294967295u;

const RATE_MIN = 1e-30;
const RATE_MAX = 1e30;
const MAX_CHANGE = 2.3025851;
const MAX_FACTOR = 10.0;
const TRUST_MIN = 1e-8;
const TRUST_MAX = 100000000.0;
const FACTOR_FLOOR = 1e-6;
const LEAST_RISE = 1e-6;
const LARGEST_SQUARED = 1.8e19;
const LARGEST_FACTORED = 1099511600000.0;
const LN_2_HIGH = 0.69314575;
const LN_2_LOW = 1.4286068e-6;
const TOWARDS_BASE = 0.15;
const BEYOND = 0.1764706;
const SMALL_BITS = 729808896u;
const BIG_BITS = 1400897536u;
const LARGEST_F32 = 3.4028233e38;
const LARGEST_F16 = 65504.0;
const LARGEST_BF16 = 3.3895314e38;
const SMALLEST_CLIP = -100;
const LEAST_DEVIATION = 0.01;
const LARGEST_FACTOR_BITS = 1900671690u;
const COUNTER_LIMIT = 7.0;

const SQUARE = 0u;
const RAW_SQUARE = 2u;
const INITIAL_SQUARE = 4u;
const ABSOLUTE = 6u;
const SLOW_DOT = 7u;
const FAST_DOT = 8u;
const DIRECTION_SQUARE = 9u;
const NONFINITE = 10u;
const FIRST_NONFINITE = 11u;

const SIGN_RULE = 1u;
const INITIAL_RATE = 2u;
const MOMENTUM_FROM_GRADIENT = 4u;
const BRAKE = 8u;
const RAW_NORM_CLIP = 16u;
const ITERATES = 32u;
const COUPLES_DECAY = 64u;
const OUTLIER_CLIPS = 128u;
const NOT_MEASURED = 256u;
const TRUST_CAPS = 512u;

const START_SLOT = 0u;
const NO_SLOT = 3u;
const STREAM_SLOTS = 3u;
const ESTIMATE_SLOTS = 2u;

const SKIP_ALL = 1u;
const SKIP_STEP = 2u;

const SCHEDULE_CONSTANT = 0u;
const SCHEDULE_COSINE = 1u;
const SCHEDULE_INVERSE_SQRT = 2u;
const SCHEDULE_STEP = 3u;
const SCHEDULE_ONE_CYCLE = 4u;
const SCHEDULE_LEVEL = 5u;
const SCHEDULE_POLYNOMIAL = 6u;
const SCHEDULE_RESTARTS = 7u;
const SCHEDULE_ONE_MINUS_SQRT = 8u;
const SCHEDULE_TABLE = 9u;

const AVERAGE_OFF = 0u;
const AVERAGE_POLYNOMIAL = 1u;
const AVERAGE_EXPONENTIAL = 2u;
const AVERAGE_SCHEDULE_FREE = 3u;

const FIRST = 1u;
const ZERO_GRADIENT = 2u;
const SKIPPED = 4u;
const CLIPPED = 8u;
const CLAMPED_CHANGE = 16u;
const CLAMPED_RATE = 32u;
const WAITING = 64u;
const NONFINITE_LOSS = 256u;
const HALTED = 512u;
const SCALE_CHANGED = 1024u;
const STREAM_LOST = 2048u;
const EPISODE_ENDS = 4096u;
const FROZEN = 8192u;
const ABSENT = 16384u;
const OUTLIER = 32768u;
const UNMEASURED = 65536u;
const WRITTEN = 128u;

const NORM_TERM = 0u;
const ALIGNMENT_TERM = 1u;
const BRAKE_TERM = 2u;
const HELD_TERM = 3u;
const CURVATURE_TERM = 4u;
const DISTANCE_TERM = 5u;
const HISTORY_TERM = 6u;
const LOSS_TERM = 7u;
const GATE_TERM = 8u;
const EPISODE_TERM = 9u;
const CLAMP_TERM = 10u;
const SCHEDULE_TERM = 11u;
const TRUST_TERM = 12u;
const CONTROL_TERM = 13u;

const WATCHDOG_WINDOW = 16u;
const VERDICT_RING = 256u;
const EPOCH_ACCEPTED = 0u;
const EPOCH_SLOWED = 1u;
const EPOCH_TAKEN_BACK = 2u;
const VERDICT_LOST = 1u;
const VERDICT_UNKNOWN = 2u;

const PRODUCT_ROW = 4096u;

const POLICY_UNITS = 256u;
const POLICY_HIDDEN = 512u;
const POLICY_LANES = 64u;
const POLICY_LARGEST_LOSS = 1000000000000.0;

const LN_RATE_LIMIT = 69.07755;
const AGREEMENT_LIMIT = 138.1551;
const FAST_KEEP = 0.8;
const SECANT_LONG = 0u;
const SECANT_SHORT = 1u;
const SECANT_GEOMETRIC = 2u;
const LOOK_SHORT = 0u;
const LOOK_LONG = 1u;
const LOOK_GEOMETRIC = 2u;
const LOOK_NEWTON = 3u;
const LOOK_NONE = 0u;
const LOOK_MEASURED = 1u;
const LOOK_MISSING = 2u;
const LOOK_NOT_FINITE = 3u;
const ROOT_OF_HALF_PI = 1.2533141;
const SMALLEST_SUM = 1.1754944e-38;
const MECHANIC_BETAS = 6u;
const MOST_PRODUCT = 1e18;
const MOST_REWARD = 1e29;
const MOST_SCALE = 1e18;
const MIDDLE = 0u;
const SLOWER = 1u;
const FASTER = 2u;
const UNDECIDED = 0u;
const INCREASE = 1u;
const STAY = 2u;
const DECREASE = 3u;
const RESTART = 4u;
const ALL_STREAMS = 7u;
const FIRST_LOOK = 4u;

struct SeesawConstants {
    exponent: f32,
    exponent_above: f32,
    gain: f32,
    early_steps: f32,
    brake_slack: f32,
    unused: array<u32, 2>,
}

struct AdaGradNormConstants {
    scale: f32,
    offset: f32,
    unused: array<u32, 5>,
}

struct WnGradConstants {
    scale: f32,
    offset: f32,
    unused: array<u32, 5>,
}

struct BarzilaiBorweinConstants {
    form: u32,
    max_change: f32,
    unused: array<u32, 5>,
}

struct CurvatureConstants {
    form: u32,
    smoothing: f32,
    max_change: f32,
    share: f32,
    unused: array<u32, 3>,
}

struct PolyakConstants {
    factor: f32,
    optimum: f32,
    max_rate: f32,
    unused: array<u32, 4>,
}

struct NgnConstants {
    rate: f32,
    unused: array<u32, 6>,
}

struct ScheduleFreePlusConstants {
    factor: f32,
    optimum: f32,
    unused: array<u32, 5>,
}

struct ProdigyConstants {
    rate: f32,
    initial: f32,
    coefficient: f32,
    growth: f32,
    beta3: f32,
    corrects_bias: u32,
    plain_sum: u32,
}

struct MechanicConstants {
    rate: f32,
    decay: f32,
    initial: f32,
    epsilon: f32,
    unused: array<u32, 3>,
}

struct AutoSgdConstants {
    factor: f32,
    certainty: f32,
    rounds: u32,
    unused: array<u32, 4>,
}

@if(!regime) alias RegimeConstants = array<u32, 7>;
@if(seesaw) alias RegimeConstants = SeesawConstants;
@if(adagrad_norm) alias RegimeConstants = AdaGradNormConstants;
@if(wngrad) alias RegimeConstants = WnGradConstants;
@if(barzilai_borwein) alias RegimeConstants = BarzilaiBorweinConstants;
@if(adgd) alias RegimeConstants = array<u32, 7>;
@if(curvature) alias RegimeConstants = CurvatureConstants;
@if(dog) alias RegimeConstants = array<u32, 7>;
@if(dowg) alias RegimeConstants = array<u32, 7>;
@if(polyak) alias RegimeConstants = PolyakConstants;
@if(ngn) alias RegimeConstants = NgnConstants;
@if(schedule_free_plus) alias RegimeConstants = ScheduleFreePlusConstants;
@if(prodigy) alias RegimeConstants = ProdigyConstants;
@if(mechanic) alias RegimeConstants = MechanicConstants;
@if(auto_sgd) alias RegimeConstants = AutoSgdConstants;

struct SeesawState {
    agreement: Fixed,
    least_agreement: Fixed,
    anchor_norm: Scaled,
    mean_fast: f32,
    mean_fast_weight: f32,
    ahead: f32,
    unused: array<u32, 11>,
}

struct AdaGradNormState {
    history: Scaled,
    unused: array<u32, 18>,
}

struct WnGradState {
    b: Scaled,
    unused: array<u32, 18>,
}

struct AdGdState {
    last_growth: f32,
    unused: array<u32, 19>,
}

struct CurvatureState {
    along: Scaled,
    against: Scaled,
    bend: Scaled,
    rate: Scaled,
    due: u32,
    look: u32,
    unused: array<u32, 10>,
}

struct DistanceState {
    history: Scaled,
    distance: Scaled,
    unused: array<u32, 16>,
}

struct PolyakState {
    last_loss: f32,
    unused: array<u32, 19>,
}

struct NgnState {
    last_loss: f32,
    unused: array<u32, 19>,
}

struct ScheduleFreePlusState {
    last_gap: Scaled,
    last_divisor: Scaled,
    largest_rate: f32,
    unused: array<u32, 15>,
}

struct ProdigyState {
    estimate: f32,
    largest: f32,
    ahead: Scaled,
    behind: Scaled,
    ratio: f32,
    keep: f32,
    share: f32,
    unused: array<u32, 11>,
}

struct MechanicState {
    largest: array<f32, 6>,
    root: array<f32, 6>,
    reward: array<f32, 6>,
    scale: f32,
    keep: f32,
}

struct AutoSgdState {
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
    unused: array<u32, 6>,
}

@if(!regime) alias RegimeState = array<u32, 20>;
@if(seesaw) alias RegimeState = SeesawState;
@if(adagrad_norm) alias RegimeState = AdaGradNormState;
@if(wngrad) alias RegimeState = WnGradState;
@if(barzilai_borwein) alias RegimeState = array<u32, 20>;
@if(adgd) alias RegimeState = AdGdState;
@if(curvature) alias RegimeState = CurvatureState;
@if(dog) alias RegimeState = DistanceState;
@if(dowg) alias RegimeState = DistanceState;
@if(polyak) alias RegimeState = PolyakState;
@if(ngn) alias RegimeState = NgnState;
@if(schedule_free_plus) alias RegimeState = ScheduleFreePlusState;
@if(prodigy) alias RegimeState = ProdigyState;
@if(mechanic) alias RegimeState = MechanicState;
@if(auto_sgd) alias RegimeState = AutoSgdState;

struct SeesawRecord {
    slow_alignment: f32,
    fast_alignment: f32,
    unused: array<u32, 1>,
}

struct CurvatureRecord {
    look: u32,
    unused: array<u32, 2>,
}

struct ProdigyRecord {
    numerator: f32,
    denominator: f32,
    estimate: f32,
}

struct MechanicRecord {
    product: f32,
    scale: f32,
    unused: array<u32, 1>,
}

struct AutoSgdRecord {
    episode: u32,
    stream: u32,
    outcome: u32,
}

@if(!regime) alias RegimeRecord = array<u32, 3>;
@if(seesaw) alias RegimeRecord = SeesawRecord;
@if(adagrad_norm) alias RegimeRecord = array<u32, 3>;
@if(wngrad) alias RegimeRecord = array<u32, 3>;
@if(barzilai_borwein) alias RegimeRecord = array<u32, 3>;
@if(adgd) alias RegimeRecord = array<u32, 3>;
@if(curvature) alias RegimeRecord = CurvatureRecord;
@if(dog) alias RegimeRecord = array<u32, 3>;
@if(dowg) alias RegimeRecord = array<u32, 3>;
@if(polyak) alias RegimeRecord = array<u32, 3>;
@if(ngn) alias RegimeRecord = array<u32, 3>;
@if(schedule_free_plus) alias RegimeRecord = array<u32, 3>;
@if(prodigy) alias RegimeRecord = ProdigyRecord;
@if(mechanic) alias RegimeRecord = MechanicRecord;
@if(auto_sgd) alias RegimeRecord = AutoSgdRecord;
