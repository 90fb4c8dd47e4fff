// Pass 4: the fused update, one read-modify-write of the parameters and of the rule's memory.
//
// Reads:  updates (one per group, from pass 3), gradients; directions of a rule with its own passes over matrices; the second moments of rows
//         and columns and the limits of directions (factored/tensors.wgsl); factors of rates, and which rows have gradients (rows/table.wgsl).
// Writes: parameters, and their remainders if these are kept; momentum; memory (counters, the last gradient, the first parameters, the
//         memory of Prodigy or Mechanic, streams of parameters); averages; sums of the step. In the ring of records, the element that was out
//         of range. With `clears_gradients`, zeros in the place of the gradients, even if the step is skipped. A skipped step writes
//         nothing else, except that streams are exchanged. For a tensor without gradients nothing is written.
// Grid:   one workgroup of WORKGROUP invocations per block; invocation i takes quads i, i + WORKGROUP, … of the block.
//
// `bits8`: momentum and mean of squares are kept in 8 bits (elements/state.wgsl). Invocations then go from quad to quad together.
//
//     g ← g / loss scale
//     g ← sign·clip·g/k + λ w          k micro-batches; coupled weight decay
//     m ← keep·m + share·g             Sgdm, Nesterov, Signum, AdamW; Lion, after u
//     v ← β₂ v + (1 - β₂) g²           AdamW; behind the momentum, or alone where β₁ is 0
//     v̂ ← max(v̂, v)                    AMSGrad, which has v̂ for v in u; behind v
//     u = g | m | g + μ m | sign g | sign m | c₁ m / (c₂ √v + ε) | sign(β₁ m + (1 - β₁) g)
//     D ← keep·D + η u + η λ' w        Mechanic, for which w ← w + (D before) - D
//     w ← (1 - η λ') w - η u           decoupled weight decay; in schedule-free training this is z, and w what is between z and its average

import package::elements::blocks::blocks;
import package::elements::gradients::load_gradients;
@if(clears_gradients) import package::elements::gradients::clear_gradients;
@if(keeps_memory) import package::elements::memories::memory;
@if(momentum && !bits8) import package::elements::memories::momentum;
@if(squares && !momentum && !bits8) import package::elements::memories::momentum;
import package::elements::parameters::{load_parameters, store_parameters};
@if(limited) import package::factored::tensors::tensors;
@if(factored) import package::factored::tensors::second_moments;
import package::geometry::WORKGROUP;
@if(whole_step) import package::learning_rate::updates;
import package::layout::{Block, Update, SKIP_ALL};
import package::rule::{admitted, direction_of};
@if(momentum) import package::rule::next_momentum;
@if(squares) import package::rule::next_squares;
@if(squares && !bits8) import package::rule::squares_at;
@if(largest_squares) import package::rule::largest_squares_at;
@if(keeps_counters) import package::update::keep_counters::keep;
@if(keeps_gradient) import package::update::keep_gradient::keep;
@if(keeps_parameters) import package::update::keep_parameters::keep;
@if(keeps_estimate) import package::update::keep_estimate::keep;
@if(displaces) import package::update::displace::{displaced, displacement};
@if(streams) import package::update::exchange_streams::exchanged;
@if(averages) import package::update::average::average;
@if(bits8) import package::elements::state::{keep_state, remember};
@if(bits8 && momentum) import package::elements::state::decoded_momentum;
@if(bits8 && squares) import package::elements::state::decoded_squares;
import package::update::in_range::in_range;
@if(streams) import package::update::in_range::outside;
@if(!measures_step && !whole_step) import package::update::in_range::tell_overflow;
import package::update::moved::Moved;
import package::update::stepped::stepped;
@if(rates) import package::update::stepped::rate_factors;
@if(rates) import package::rows::table::factors_of;
@if(lazy_rows) import package::rows::table::have_gradients;
import package::update::step_gradient::step_gradient;
@if(schedule_free) import package::update::schedule_free::{base, moved_schedule_free};
@if(measures_step) import package::update::measure_step::{leave, watch};

@if(!whole_step) @group(0) @binding(0) var<storage, read> updates: array<Update>;
@if(matrices) @group(1) @binding(6) var<storage, read> directions: array<vec4<f32>>;

// Returns the index of a quad's first element in its tensor.
fn offset_of(block: Block, quad: u32) -> u32 {
    return block.first_element - blocks[block.lead].first_element + 4u * quad;
}

fn update_quad(block: Block, update: Update, quad: u32) {
    let w = load_parameters(block, quad);
    var raw = load_gradients(block, quad);
    @if(clears_gradients) clear_gradients(block, quad);
    raw *= update.unscale;
    let g = step_gradient(update, raw, w);
    let at = block.state_quad + quad;
    var last = vec4<f32>();
    var m = vec4<f32>();
    var v = vec4<f32>();
    @if(momentum) {
        @if(!bits8) last = momentum[at];
        @if(bits8) last = decoded_momentum(at);
        m = next_momentum(update, last, admitted(g));
    }
    @if(rates) rate_factors = factors_of(block.lead, offset_of(block, quad));
    @if(lazy_rows) let is_moved = have_gradients(block.lead, offset_of(block, quad));
    @if(squares && bits8) v = next_squares(update, decoded_squares(at), admitted(g));
    @if(squares && !bits8) {
        let behind = squares_at(arrayLength(&momentum), at);
        @if(!lazy_rows) {
            v = next_squares(update, momentum[behind], admitted(g));
        }
        @if(lazy_rows) {
            v = select(momentum[behind], next_squares(update, momentum[behind], admitted(g)), is_moved);
        }
        momentum[behind] = v;
    }
    @if(matrices) v = directions[at];
    @if(factored) {
        v = second_moments(tensors[block.lead], update.epsilon, offset_of(block, quad));
    }
    @if(largest_squares) {
        let last_place = largest_squares_at(arrayLength(&momentum), at);
        v = max(v, momentum[last_place]);
        momentum[last_place] = v;
    }
    @if(keeps_memory && !displaces) keep(update, at, w, raw, g);
    let u = direction_of(update, g, last, m, v);
    // The memory that moves with the parameters: the momentum, or z.
    var kept = last;
    var moved = Moved(stepped(update, w, u), m);
    @if(schedule_free) {
        kept = select(base[at], w, vec4<bool>(update.first != 0u));
        moved = moved_schedule_free(update, kept, w, u);
    }
    @if(displaces) let last_place = displacement(update, at);
    @if(displaces) let place = displaced(update, last_place, w, u);
    @if(displaces) moved.parameters = w + (last_place - place);
    @if(lazy_rows) {
        moved = Moved(select(w, moved.parameters, is_moved), select(kept, moved.beside, is_moved));
    }
    let fits = in_range(block, quad, moved);
    let next = select(w, moved.parameters, fits);
    kept = select(kept, moved.beside, fits);
    @if(momentum && !bits8) momentum[at] = kept;
    @if(bits8) remember(kept, v);
    @if(schedule_free) base[at] = kept;
    @if(displaces) memory[at] = select(last_place, place, fits);
    @if(streams) store_parameters(block, quad, exchanged(update, at, next), update.rounding_key);
    @if(!streams) store_parameters(block, quad, next, update.rounding_key);
    @if(averages) average(update, at, next);
    @if(measures_step) watch(w, next);
}

@if(!whole_step)
@compute @workgroup_size(WORKGROUP)
fn update_parameters(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    update_block(blocks[workgroup.x], lane);
}

fn update_block(whole: Block, lane: u32) {
    var block = whole;
    let present = blocks[block.lead].present != 0u;
    if !present {
        block.elements = 0u;
    }
    @if(!limited) let update = updates[block.group];
    @if(limited) var update = updates[block.group];
    @if(limited) update.learning_rate *= tensors[block.lead].factor;
    if update.skip == SKIP_ALL {
        @if(clears_gradients) {
            for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
                clear_gradients(block, quad);
            }
        }
        return;
    }
    @if(streams) let outside_before = outside;
    @if(!bits8) for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        update_quad(block, update, quad);
    }
    // Streams are exchanged in a skipped step, too. Such a step has no new values that could be out of range.
    @if(streams) if update.skip != 0u {
        outside = outside_before;
    }
    @if(bits8) for (var first = 0u; 4u * first < block.elements; first += WORKGROUP) {
        let quad = first + lane;
        let is_there = 4u * quad < block.elements;
        if is_there {
            update_quad(block, update, quad);
        }
        keep_state(lane, block.state_quad + quad, is_there, update.rounding_key, block.first_element + 4u * quad);
    }
    @if(measures_step) leave(block, lane, present);
    @if(!measures_step && !whole_step) tell_overflow(update);
}
