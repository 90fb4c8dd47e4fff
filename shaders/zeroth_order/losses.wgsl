// Takes the losses of a step.
//
// Reads:  the caller's loss; with `initial_norm` states, and Σ w² of the first parameters, block by block.
// Writes: probe; sums of pass 3, in place of those of a gradient.
// Grid:   one invocation.
//
// `keeps_loss`: keeps the first loss, before the caller writes the second in its place. Without it the slope is
//     computed from both.
// `initial_norm`: the norm of the first parameters sets the first rate.

@if(!keeps_loss) import package::layout::{ScopeSums, Squares, INFINITY_BITS, LOSS_ELEMENT, MAGNITUDE_BITS, NO_ELEMENT};
@if(initial_norm) import package::layout::{GroupState, LARGEST_F32};
@if(!keeps_loss) import package::scaled::scaled;
import package::zeroth_order::layout::Probe;
@if(!keeps_loss) import package::zeroth_order::layout::LARGEST_SLOPE;

// Index of the loss in its binding.
override LOSS_AT: u32;

@group(0) @binding(0) var<storage, read> losses: array<u32>;
@group(0) @binding(1) var<storage, read_write> probe: array<Probe>;
@if(!keeps_loss) @group(0) @binding(2) var<storage, read_write> sums: array<ScopeSums>;
@if(initial_norm) @group(0) @binding(3) var<storage, read> states: array<GroupState>;
@if(initial_norm) @group(0) @binding(4) var<storage, read> squares_of_blocks: array<f32>;

// Number of blocks that one loop adds up. Some drivers stop a loop after 65,535 iterations.
@if(initial_norm) const TRIPS = 4096u;

@if(keeps_loss)
@compute @workgroup_size(1)
fn take_loss() {
    probe[0].first_loss = losses[LOSS_AT];
}

@if(!keeps_loss)
@compute @workgroup_size(1)
fn take_loss() {
    // Whether a loss is finite is decided on its bits (reduction/sweep_again.wgsl).
    let bits = vec2<u32>(probe[0].first_loss, losses[LOSS_AT]);
    let are_finite = all((bits & vec2<u32>(MAGNITUDE_BITS)) < vec2<u32>(INFINITY_BITS));
    let halves = 0.5 * bitcast<vec2<f32>>(select(vec2<u32>(0u), bits, are_finite));
    let half = halves.x - halves.y;
    let fits = are_finite && abs(half) <= LARGEST_SLOPE * probe[0].epsilon;
    let slope = select(0.0, half / probe[0].epsilon, fits);
    probe[0].second_loss = bits.y;
    probe[0].slope = slope;
    let length = scaled(slope, 0);
    var t = ScopeSums();
    t.square = Squares(length.mantissa * length.mantissa * probe[0].square, length.exponent);
    @if(initial_norm) {
        if states[0].started == 0u {
            var square = 0.0;
            let blocks = arrayLength(&squares_of_blocks);
            for (var first = 0u; first < blocks; first += TRIPS) {
                for (var block = first; block < min(first + TRIPS, blocks); block++) {
                    square += squares_of_blocks[block];
                }
            }
            t.initial_square = Squares(min(square, LARGEST_F32), 0);
        }
    }
    t.first_nonfinite = select(LOSS_ELEMENT, NO_ELEMENT, fits);
    sums[0] = t;
}
