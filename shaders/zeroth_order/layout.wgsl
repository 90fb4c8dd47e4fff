// Structs and constants of zeroth-order optimizers. Written by a test from src/zeroth_order/tables.rs, which explains them.

struct PerturbedTensor {
    rows: u32,
    columns: u32,
    rank: u32,
    left_first: u32,
    right_first: u32,
    turn_first: u32,
    turns: u32,
    decays: u32,
    first_quad: u32,
}

struct PerturbedBlock {
    params_start: u32,
    elements: u32,
    first: u32,
    tensor: u32,
    number: u32,
}

struct Motion {
    restore: f32,
    pull: f32,
    shrink: f32,
}

struct Probe {
    epsilon: f32,
    seed: u32,
    interval: u32,
    momentum: f32,
    square: f32,
    key: u32,
    columns_key: u32,
    age: u32,
    period: u32,
    draws: u32,
    turns: u32,
    first_loss: u32,
    second_loss: u32,
    slope: f32,
    keep: f32,
    share: f32,
    rate: f32,
    shrink: f32,
}

struct RawProbeRecord {
    losses: array<u32, 2>,
    slope: f32,
}

const NEVER = 4294967295u;
const COLUMNS_SEED = 1540483477u;
const LARGEST_SLOPE = 1e30;
const LARGEST_PULL = 1e36;
const MOST_RANK = 32u;
