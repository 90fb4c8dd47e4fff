// Runs a policy on the loss of a batch, and sets the learning-rate factor of every group. CPU twin:
// src/controllers/learned_schedule.rs.
//
// Reads:  the loss; the policy's weights, packed as SchedulePolicy::packed says; the memory.
// Writes: the memory (h, c and γ); the factor in the groups' controls. A loss that is not finite changes nothing.
// Grid:   one workgroup. An invocation takes every 64th unit of a layer, and every 64th group.

import package::layout::{
    GroupConstants, INFINITY_BITS, LN_2_HIGH, LN_2_LOW, MAGNITUDE_BITS, POLICY_HIDDEN, POLICY_LANES, POLICY_LARGEST_LOSS, PolicySettings,
    RATE_MAX, RATE_MIN, Scaled,
};
import package::scaled::{ln_ratio, power_of_two, scaled};

const SMALLEST_NORMAL_BITS = 0x00800000u;

@group(0) @binding(0) var<uniform> settings: PolicySettings;
@group(0) @binding(1) var<storage, read> policy_weights: array<f32>;
@group(0) @binding(2) var<storage, read> loss_of_batch: array<u32>;
@group(0) @binding(3) var<storage, read_write> policy_memory: array<f32>;
@group(0) @binding(4) var<storage, read_write> controlled: array<GroupConstants>;

// Both hidden layers, one after the other.
var<workgroup> hidden: array<f32, POLICY_HIDDEN>;
var<workgroup> lanes: array<f32, POLICY_LANES>;

// Returns e^x to about two ulps, with x clamped to [-87, 87].
fn exponential(power: f32) -> f32 {
    let x = clamp(power, -87.0, 87.0);
    let k = round(x * 1.44269504);
    let rest = (x - k * LN_2_HIGH) - k * LN_2_LOW;
    let tail = rest * rest * (0.5 + rest * (0.166666667 + rest * (0.0416666667 + rest * (0.00833333333
        + rest * (0.00138888889 + rest * 0.000198412698)))));
    return (1.0 + (rest + tail)) * power_of_two(i32(k));
}

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exponential(-x));
}

fn hyperbolic_tangent(x: f32) -> f32 {
    return 1.0 - 2.0 / (1.0 + exponential(2.0 * x));
}

// Returns γ at the first loss.
fn scale_at(loss: f32) -> f32 {
    let ln_loss = ln_ratio(scaled(loss, 0), Scaled(1.0, 0));
    let scale = abs(sqrt(loss) * (ln_loss + settings.ln_classes) * settings.scale_factor);
    return select(scale, settings.scale_factor, settings.scale_is_given != 0u);
}

// Computes one gate of a unit. The biases begin at `biases`.
fn gate(row: u32, from_loss_weights: u32, from_state_weights: u32, biases: u32) -> f32 {
    let rows = 4u * settings.cell;
    var sum = policy_weights[biases + row];
    for (var k = 0u; k < settings.from_loss; k++) {
        sum += policy_weights[from_loss_weights + k * rows + row] * hidden[k];
    }
    for (var k = 0u; k < settings.from_state; k++) {
        sum += policy_weights[from_state_weights + k * rows + row] * hidden[settings.from_loss + k];
    }
    return sum;
}

@compute @workgroup_size(POLICY_LANES)
fn learned_schedule(@builtin(local_invocation_index) lane: u32) {
    let cell = settings.cell;
    let from_loss = settings.from_loss;
    let from_state = settings.from_state;
    let known_scale = policy_memory[2u * cell];
    let is_known = known_scale >= 0.0;
    // The test uses the bits as they were loaded, because compilers may assume that floats are finite.
    let bits = loss_of_batch[settings.loss_at];
    let is_finite = (bits & MAGNITUDE_BITS) < INFINITY_BITS;
    let is_positive = bits >= SMALLEST_NORMAL_BITS && bits < INFINITY_BITS;
    let changes = is_finite && (is_known || is_positive);
    let loss = clamp(bitcast<f32>(select(0u, bits, is_finite)), -POLICY_LARGEST_LOSS, POLICY_LARGEST_LOSS);
    let first_scale = scale_at(select(1.0, loss, is_positive));
    let scale = select(first_scale, known_scale, is_known);

    let w3 = 2u * from_loss;
    let b3 = w3 + cell * from_state;
    let w2 = b3 + from_state;
    let w4 = w2 + 4u * cell * from_loss;
    let biases = w4 + 4u * cell * from_state;
    let w = biases + 4u * cell;

    for (var unit = lane; unit < from_loss + from_state; unit += POLICY_LANES) {
        if unit < from_loss {
            hidden[unit] = max(policy_weights[unit] * loss + policy_weights[from_loss + unit], 0.0);
        } else {
            let of_state = unit - from_loss;
            var sum = policy_weights[b3 + of_state];
            for (var k = 0u; k < cell; k++) {
                sum += policy_weights[w3 + k * from_state + of_state] * policy_memory[k];
            }
            hidden[unit] = max(sum, 0.0);
        }
    }
    // After this barrier h and c are replaced, which other invocations have read before it.
    storageBarrier();
    workgroupBarrier();

    var of_lane = 0.0;
    for (var unit = lane; unit < cell; unit += POLICY_LANES) {
        let kept = sigmoid(gate(cell + unit, w2, w4, biases)) * policy_memory[cell + unit];
        let candidate = hyperbolic_tangent(gate(2u * cell + unit, w2, w4, biases));
        let c = kept + sigmoid(gate(unit, w2, w4, biases)) * candidate;
        let h = sigmoid(gate(3u * cell + unit, w2, w4, biases)) * hyperbolic_tangent(c);
        of_lane += policy_weights[w + unit] * h;
        if changes {
            policy_memory[cell + unit] = c;
            policy_memory[unit] = h;
        }
    }
    lanes[lane] = of_lane;
    workgroupBarrier();

    // Every invocation adds up the same numbers, which is cheaper than a third barrier.
    var sum = policy_weights[w + cell];
    for (var other = 0u; other < POLICY_LANES; other++) {
        sum += lanes[other];
    }
    let rate = scale * sigmoid(sum);
    if !changes {
        return;
    }
    if lane == 0u {
        policy_memory[2u * cell] = scale;
    }
    for (var group = lane; group < settings.groups; group += POLICY_LANES) {
        controlled[group].controls.learning_rate_factor = select(min(rate, RATE_MAX), 0.0, rate < RATE_MIN);
    }
}
