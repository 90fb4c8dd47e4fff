// The watchdog's sum: adds the loss of a batch to that of the epoch.
//
// Reads:  the loss, and the weight of the batch.
// Writes: watch.
// Grid:   one invocation.
//
// The first loss of the first epoch is the loss before any step. It stands for the loss at the start where none was measured. CPU twin:
// `WatchdogState::add` in src/controllers/watchdog.rs.

import package::layout::{WatchdogBatch, WatchdogState, INFINITY_BITS, MAGNITUDE_BITS};

@group(0) @binding(0) var<storage, read_write> watch: array<WatchdogState>;
@group(0) @binding(1) var<uniform> batch: WatchdogBatch;
@group(0) @binding(2) var<storage, read> losses: array<u32>;

@compute @workgroup_size(1)
fn add_loss() {
    let bits = losses[batch.loss_at];
    let loss = bitcast<f32>(bits);
    if (bits & MAGNITUDE_BITS) >= INFINITY_BITS {
        watch[0].lost = 1u;
    } else {
        if watch[0].started != 0u && watch[0].has_start == 0u && watch[0].weight == 0.0 && watch[0].lost == 0u {
            watch[0].has_start = 1u;
            watch[0].start = loss;
            watch[0].least = loss;
            watch[0].accepted[0] = loss;
        }
        watch[0].sum += batch.weight * loss;
    }
    watch[0].weight += batch.weight;
}
