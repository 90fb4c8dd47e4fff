// The watchdog's verdict at the end of an epoch: from the mean loss to the outcome, which the kernels that follow obey, and to the groups'
// learning-rate factors. With START it begins to watch instead.
//
// Reads:  constants, rows (of the distance that the parameters have come), learning_rates.
// Writes: watch, groups (their controls), verdicts (a ring).
// Grid:   one workgroup of WORKGROUP invocations.
//
// CPU twin: `WatchdogState::start` and `WatchdogState::judge` in src/controllers/watchdog.rs.

import package::controllers::rows::add_up_rows;
import package::geometry::WORKGROUP;
import package::layout::{
    GroupConstants, RawVerdict, WatchdogConstants, WatchdogState, EPOCH_ACCEPTED, EPOCH_SLOWED, EPOCH_TAKEN_BACK, INFINITY_BITS,
    MAGNITUDE_BITS, RATE_MIN, VERDICT_LOST, VERDICT_RING, VERDICT_UNKNOWN, WATCHDOG_WINDOW,
};

override START: bool;

@group(0) @binding(1) var<uniform> constants: WatchdogConstants;
@group(0) @binding(2) var<storage, read_write> watch: array<WatchdogState>;
@group(0) @binding(3) var<storage, read> learning_rates: array<f32>;
@group(0) @binding(4) var<storage, read_write> groups: array<GroupConstants>;
@group(0) @binding(5) var<storage, read_write> verdicts: array<RawVerdict>;

fn mean_is_finite(s: WatchdogState) -> bool {
    return s.lost == 0u && (bitcast<u32>(s.sum) & MAGNITUDE_BITS) < INFINITY_BITS && s.weight > 0.0;
}

fn begin() {
    let known = mean_is_finite(watch[0]);
    let loss = select(0.0, watch[0].sum / watch[0].weight, known);
    watch[0].started = 1u;
    watch[0].has_start = select(0u, 1u, known);
    watch[0].start = loss;
    watch[0].least = loss;
    watch[0].accepted[0] = loss;
    watch[0].accepted_count = 1u;
    watch[0].taken_back = 0u;
    watch[0].sum = 0.0;
    watch[0].weight = 0.0;
    watch[0].lost = 0u;
}

fn end_epoch(distance: f32) {
    let s = watch[0];
    var rate = 0.0;
    for (var group = 0u; group < arrayLength(&groups); group++) {
        rate = max(rate, learning_rates[group]);
    }
    let finite = mean_is_finite(s);
    let loss = select(0.0, s.sum / s.weight, finite);
    var limit = min(s.start, s.least - constants.margin * rate);
    let count = min(s.accepted_count, constants.window);
    if constants.window != 0u {
        var largest = s.accepted[(s.accepted_count - 1u) % WATCHDOG_WINDOW];
        for (var back = 2u; back <= count; back++) {
            largest = max(largest, s.accepted[(s.accepted_count - back) % WATCHDOG_WINDOW]);
        }
        limit = largest - constants.margin * max(rate, distance);
    }
    let known = finite && s.has_start != 0u;
    var outcome = EPOCH_TAKEN_BACK;
    if known && loss < limit {
        outcome = EPOCH_ACCEPTED;
    } else if known && constants.window == 0u && loss <= s.start {
        outcome = EPOCH_SLOWED;
    }
    if known {
        watch[0].least = min(s.least, loss);
    }
    // After an epoch that was not accepted, the last accepted loss is stored once more.
    let last = s.accepted[(s.accepted_count - 1u) % WATCHDOG_WINDOW];
    watch[0].accepted[s.accepted_count % WATCHDOG_WINDOW] = select(last, loss, outcome == EPOCH_ACCEPTED);
    watch[0].accepted_count = s.accepted_count + 1u;
    watch[0].taken_back = select(0u, 1u, outcome == EPOCH_TAKEN_BACK);
    watch[0].sum = 0.0;
    watch[0].weight = 0.0;
    watch[0].lost = 0u;
    watch[0].epochs = s.epochs + 1u;
    var next_rate = rate;
    if outcome != EPOCH_ACCEPTED {
        next_rate = rate * constants.decrease;
        for (var group = 0u; group < arrayLength(&groups); group++) {
            let factor = groups[group].controls.learning_rate_factor;
            if factor > 0.0 {
                groups[group].controls.learning_rate_factor = max(factor * constants.decrease, RATE_MIN);
            }
        }
    }
    let flags = select(VERDICT_LOST, 0u, finite) | select(0u, VERDICT_UNKNOWN, s.has_start == 0u);
    verdicts[s.epochs % VERDICT_RING] = RawVerdict(s.epochs, outcome, flags, loss, limit, s.start, rate, next_rate);
}

@compute @workgroup_size(WORKGROUP)
fn judge(@builtin(local_invocation_index) lane: u32) {
    if START {
        if lane == 0u {
            begin();
        }
        return;
    }
    let total = add_up_rows(lane, 0u, constants.rows);
    if lane == 0u {
        end_epoch(sqrt(total.x));
    }
}
