// The one sweep of StepMode::Lagged: takes the step with the rate that the last step's sums gave, and adds up this step's sums.
//
// Reads:  updates; parameters; gradients; memory (momentum or counters).
// Writes: the new parameters, in the place of the gradients; next_memory; partials (see shared/layout.wgsl for their order).
//         Parameters and memory stay as they are, so that undo_step.wgsl can take the step back, bit for bit.
// Grid:   one workgroup of WORKGROUP invocations per block; invocation i takes quads i, i + WORKGROUP, … of the block.
// Assumes: the trips of all loops of one invocation stay below 65,535 (some drivers stop there in silence).
//
// The gradient is gone once its place is taken, so that nothing can be swept again (compare reduce_gradient.wgsl): its squares are added
// up at three scales (shared/scaled_squares.wgsl).

override WORKGROUP: u32;
override RULE: u32;
override COUPLED_DECAY: bool;
override INITIAL_NORM: bool;
override MOMENTUM: bool;
override COUNTERS: bool;
override LOSS_SCALE: bool;

// There is no clip, which would need this step's norm.
const RAW_NORM = false;

@group(0) @binding(0) var<storage, read> updates: array<Update>;
@group(0) @binding(1) var<storage, read_write> partials: array<u32>;
@group(1) @binding(0) var<storage, read> blocks: array<Block>;
@group(1) @binding(1) var<storage, read> parameters: array<ParameterLane>;
@group(1) @binding(2) var<storage, read_write> gradients: array<GradientLane>;
@group(1) @binding(3) var<storage, read> memory: array<Memory>;
@group(1) @binding(4) var<storage, read_write> next_memory: array<Memory>;

// Parameters are all that can be swept again.
fn load(what: u32, block: Block, quad: u32) -> vec4<f32> {
    return load_parameters(block, quad);
}

fn loaded(what: u32, block: Block, quad: u32) -> vec4<u32> {
    return bits_of_parameters(block, quad) & vec4<u32>(MAGNITUDE_BITS);
}

@compute @workgroup_size(WORKGROUP)
fn lagged_step(invocation: Invocation) {
    let lane = invocation.lane;
    let block = blocks[invocation.workgroup.x];
    let update = updates[block.group];
    let gradient_scale = power_of_two(-update.gradient_exponent);
    let momentum_scale = power_of_two(-update.direction_exponent);

    var t = no_totals();
    var squares = ScaledSquares();
    var alignment = AlignmentSums();
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        let w_bits = bits_of_parameters(block, quad);
        let g_bits = bits_of_gradients(block, quad);
        let w = bitcast<vec4<f32>>(w_bits);
        var g = update.gradient_factor * bitcast<vec4<f32>>(g_bits);
        if LOSS_SCALE && COUPLED_DECAY {
            g *= update.unscale;
        }
        if COUPLED_DECAY {
            g += update.coupled_decay * w;
        }
        add_squares_of(g, &squares);
        // As they were loaded, too: shared/sweep_again.wgsl says why.
        var bits = max(magnitude_bits(g), g_bits & vec4<u32>(MAGNITUDE_BITS));
        if COUPLED_DECAY {
            bits = max(bits, w_bits & vec4<u32>(MAGNITUDE_BITS));
        }
        if largest_of(bits) >= INFINITY_BITS {
            count_nonfinite(bits, block.first_element + 4u * quad, &t);
        }
        if LOSS_SCALE && !COUPLED_DECAY {
            g *= update.unscale;
        }
        let direction = remember(update, block.state_quad + quad, g, gradient_scale, momentum_scale, &alignment);
        store_parameters(block, quad, moved(update, w, direction), 0u);
    }

    if largest_of(squares.largest) >= INFINITY_BITS {
        count_overflow(block, &t);
    }
    t.square = trusted(squares);
    if LOSS_SCALE && !COUPLED_DECAY {
        // Of the gradients as they came, as in reduce_gradient.wgsl; unscale is 2^-e.
        t.square.exponent -= 127 - i32(bitcast<u32>(update.unscale) >> 23u);
    }
    add_alignment(alignment, &t);
    if INITIAL_NORM && update.started == 0u {
        measure_initial_norm(block, lane, &t);
    }
    emit_partial(block.row, invocation, t);
}
