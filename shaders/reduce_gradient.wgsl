// Pass 1: one sweep over the gradients (and over the direction memory, if the regime needs it). It stores, per block or per
// invocation, every sum that the step needs.
//
// Reads:  gradients; momentum; memory (counters, the last gradient, what Prodigy or Mechanic keeps); parameters with coupled weight decay, and before the first step.
// Writes: partials (see layout.wgsl for their order). They are 0 for groups that are frozen and for tensors without gradients.
// Grid:   one workgroup of WORKGROUP invocations per block; invocation i takes quads i, i + WORKGROUP, … of the block.
// Assumes: the trips of all loops of one invocation stay below 65,535 (some drivers stop there in silence).
//
// Norm. A plain sum of squares in f32 overflows for |g| above 1e19 and vanishes below 1e-23. The sweep therefore also keeps the
// largest magnitude, as bits, which costs one `max` per element. If it lies outside [2^-40, 2^40], the invocation sweeps its
// elements again with an exact power of two as scale (J. Blue, TOMS 4, 1978; E. Anderson, TOMS 44, 2017, with the range chosen
// per invocation rather than per element). A sum is stored with its scale. The maximum of the bits as they were loaded tells whether
// any element is NaN or infinite. Only then are such elements counted.
//
// Inner products are linear in g and need no second sweep. g is scaled by the exponent of recent norms, and the momentum by a bound on
// its norm. If that scale is off by more than 2^80, the learning-rate pass ignores the alignment. The alignment would then have a weight
// below 2^-40 or be dominated by the clamp. Groups that share a norm have the same scales for all regimes, because their products are
// added up.
//
// Loss scale. Gradients may be multiplied by 2^e. With coupled decay they are divided by 2^e when they are read. Otherwise the norm of
// the scaled gradients is computed and its exponent lowered, which is right even if f32 cannot hold the true gradient.

import package::coupled_decay::COUPLED_DECAY;
import package::elements::blocks::blocks;
import package::elements::gradients::bits_of_gradients;
import package::elements::parameters::{bits_of_parameters, load_parameters};
import package::geometry::WORKGROUP;
import package::layout::{Block, INFINITY_BITS, MAGNITUDE_BITS};
import package::measure::alignment::{AlignmentSums, add_alignment};
import package::reduction::partials::{COUNTERS, INITIAL_NORM, MOMENTUM, RAW_NORM};
import package::reduction::scaled_squares::{across, largest_of, magnitude_bits};
import package::reduction::sweep_again::{GRADIENT, PARAMETERS, RAW_GRADIENT, find_nonfinite, measure_initial_norm, squares_of};
import package::reduction::totals::no_totals;
import package::scaled::power_of_two;
import package::tables::{groups, states};
@if(per_invocation) import package::reduction::emit_per_invocation::{Invocation, emit_partial};
@if(per_workgroup) import package::reduction::emit_per_workgroup::{Invocation, emit_partial};
@if(per_subgroup) import package::reduction::emit_per_subgroup::{Invocation, emit_partial};
@if(measures_nothing) import package::measure::nothing::measure;
@if(measures_momentum) import package::measure::momentum::measure;
@if(measures_counters) import package::measure::direction_counters::measure;
@if(measures_iterates) import package::measure::iterates::measure;
@if(measures_magnitudes) import package::measure::magnitudes::measure;
@if(measures_distance) import package::measure::distance::measure;
@if(measures_estimate) import package::measure::estimate::measure;
@if(measures_displacement) import package::measure::displacement::measure;
@if(measures_secant) import package::measure::secant::measure;

override LOSS_SCALE: bool;

// The numbers from which a quad's gradient is computed, as bits.
struct Quad {
    gradients: vec4<u32>,
    parameters: vec4<u32>,
}

fn quad_of(block: Block, quad: u32) -> Quad {
    var q = Quad(bits_of_gradients(block, quad), vec4<u32>(0u));
    if COUPLED_DECAY {
        q.parameters = bits_of_parameters(block, quad);
    }
    return q;
}

fn magnitudes_of(q: Quad) -> vec4<u32> {
    let gradients = q.gradients & vec4<u32>(MAGNITUDE_BITS);
    if COUPLED_DECAY {
        return max(gradients, q.parameters & vec4<u32>(MAGNITUDE_BITS));
    }
    return gradients;
}

fn gradient_of(what: u32, block: Block, q: Quad) -> vec4<f32> {
    var g = groups[block.group].controls.gradient_factor * bitcast<vec4<f32>>(q.gradients);
    if COUPLED_DECAY && what == GRADIENT {
        if LOSS_SCALE {
            g *= power_of_two(-states[block.group].loss_scale_exponent);
        }
        g += groups[block.group].controls.weight_decay * bitcast<vec4<f32>>(q.parameters);
    }
    return g;
}

fn load(what: u32, block: Block, quad: u32) -> vec4<f32> {
    if what == PARAMETERS {
        return load_parameters(block, quad);
    }
    return gradient_of(what, block, quad_of(block, quad));
}

fn loaded(what: u32, block: Block, quad: u32) -> vec4<u32> {
    if what == PARAMETERS {
        return bits_of_parameters(block, quad) & vec4<u32>(MAGNITUDE_BITS);
    }
    return magnitudes_of(quad_of(block, quad));
}

// Returns a result of load(GRADIENT, …) without the loss scale.
fn true_gradient(g: vec4<f32>, unscale: f32) -> vec4<f32> {
    if LOSS_SCALE && !COUPLED_DECAY {
        return unscale * g;
    }
    return g;
}

// naga's HLSL writer declares the subgroup built-ins only if an argument of the entry point is one. A member of its struct is not enough.
// Without the second argument DXC stops with "Semantic must be defined for all parameters of an entry function" (docs/upstream-naga.md).
@if(per_subgroup && !whole_step)
@compute @workgroup_size(WORKGROUP)
fn reduce_gradient(invocation: Invocation, @builtin(subgroup_size) subgroup_size: u32) {
    reduce_block(blocks[invocation.workgroup.x], invocation);
}

@if(!per_subgroup && !whole_step)
@compute @workgroup_size(WORKGROUP)
fn reduce_gradient(invocation: Invocation) {
    reduce_block(blocks[invocation.workgroup.x], invocation);
}

// Returns true if the block belongs to a frozen group or to a tensor without gradients.
fn is_left_out(block: Block) -> bool {
    return groups[block.group].controls.frozen != 0u || groups[block.group].controls.present == 0u || blocks[block.lead].present == 0u;
}

fn reduce_block(whole: Block, invocation: Invocation) {
    var block = whole;
    if is_left_out(block) {
        // Nothing is read, and every sum is 0.
        block.elements = 0u;
    }
    let lane = invocation.lane;
    let gradient_scale = power_of_two(-states[block.group].gradient_exponent);
    let momentum_scale = power_of_two(-states[block.group].direction_exponent);
    let loss_scale_exponent = states[block.group].loss_scale_exponent;
    let unscale = power_of_two(-loss_scale_exponent);
    // Before the group's first step there is nothing to compare with, even if another group of the scope has taken steps.
    @if(!measures_magnitudes) let measures = (MOMENTUM || COUNTERS) && states[block.group].momentum_started != 0u;
    @if(measures_magnitudes) let measures = true;

    var largest_loaded = vec4<u32>(0u);
    var largest = vec4<u32>(0u);
    var squares = vec4<f32>();
    var raw_largest = vec4<u32>(0u);
    var raw_squares = vec4<f32>();
    var alignment = AlignmentSums();
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        let q = quad_of(block, quad);
        let g = gradient_of(GRADIENT, block, q);
        largest_loaded = max(largest_loaded, magnitudes_of(q));
        if COUPLED_DECAY {
            largest = max(largest, magnitude_bits(g));
        }
        squares += g * g;
        if RAW_NORM {
            let raw = gradient_of(RAW_GRADIENT, block, q);
            raw_largest = max(raw_largest, magnitude_bits(raw));
            raw_squares += raw * raw;
        }
        if measures {
            measure(block, quad, true_gradient(g, unscale), gradient_scale, momentum_scale, &alignment);
        }
    }

    var t = no_totals();
    let loaded_magnitude = largest_of(largest_loaded);
    var largest_magnitude = largest_of(largest);
    if !COUPLED_DECAY {
        // The largest of the products with one factor is that of the largest number.
        let most = groups[block.group].controls.gradient_factor * bitcast<f32>(loaded_magnitude);
        largest_magnitude = bitcast<u32>(most) & MAGNITUDE_BITS;
    }
    t.square = squares_of(GRADIENT, block, lane, largest_magnitude, across(squares));
    if LOSS_SCALE && !COUPLED_DECAY {
        t.square.exponent -= loss_scale_exponent;
    }
    if RAW_NORM {
        t.raw_square = squares_of(RAW_GRADIENT, block, lane, largest_of(raw_largest), across(raw_squares));
        if LOSS_SCALE {
            t.raw_square.exponent -= loss_scale_exponent;
        }
    }
    add_alignment(alignment, &t);
    if max(loaded_magnitude, largest_magnitude) >= INFINITY_BITS {
        find_nonfinite(GRADIENT, block, lane, &t);
    }

    if INITIAL_NORM && states[block.group].started == 0u {
        measure_initial_norm(block, lane, &t);
    }
    emit_partial(block.row, invocation, t);
}
