// The one sweep of StepMode::Lagged: takes the step with the rate that the last step's sums gave, and adds up this step's sums.
//
// Reads:  updates; parameters; gradients; memory (momentum or counters).
// Writes: the new parameters, in the place of the gradients; next_memory; partials (see shared/layout.wgsl for their order).
//         Parameters and memory stay as they are, so that undo_step.wgsl can take the step back, bit for bit.
// Grid:   one workgroup of WORKGROUP invocations per block; invocation i takes quads i, i + WORKGROUP, … of the block.
// Assumes: the trips of all loops of one invocation stay below 65,535 (some drivers stop there in silence).
//
// The gradient is gone once its place is taken, so that nothing can be swept again (compare reduce_gradient.wgsl): squares are
// added up at three scales, and the largest magnitude tells afterwards which of the sums to trust (J. Blue, TOMS 4, 1978).

override WORKGROUP: u32;
override PARTIALS: u32;
override RULE: u32;
override COUPLED_DECAY: bool;
override INITIAL_NORM: bool;
override MOMENTUM: bool;
override COUNTERS: bool;

// There is no clip, which would need this step's norm.
const RAW_NORM = false;

@group(0) @binding(0) var<storage, read> updates: array<Update>;
@group(0) @binding(1) var<storage, read_write> partials: array<u32>;
@group(1) @binding(0) var<storage, read> blocks: array<Block>;
@group(1) @binding(1) var<storage, read> parameters: array<Lane>;
@group(1) @binding(2) var<storage, read_write> gradients: array<Lane>;
@group(1) @binding(3) var<storage, read> memory: array<Memory>;
@group(1) @binding(4) var<storage, read_write> next_memory: array<Memory>;

// Parameters are all that can be swept again.
fn load(what: u32, block: Block, quad: u32) -> vec4<f32> {
    return load_parameters(block, quad);
}

// Squares of numbers up to 2^-40 and from 2^40 on are added up multiplied by 2^160 and 2^-160.
const UP = 0x1p80;
const DOWN = 0x1p-80;
const SCALE_EXPONENT = 80;

struct ScaledSquares {
    largest: vec4<u32>,
    plain: vec4<f32>,
    small: vec4<f32>,
    big: vec4<f32>,
}

fn add_squares_of(g: vec4<f32>, squares: ptr<function, ScaledSquares>) {
    (*squares).largest = max((*squares).largest, magnitude_bits(g));
    (*squares).plain += g * g;
    let up = UP * g;
    (*squares).small += up * up;
    let down = DOWN * g;
    (*squares).big += down * down;
}

fn trusted(squares: ScaledSquares) -> Squares {
    let largest = largest_of(squares.largest);
    if largest == 0u || largest >= INFINITY_BITS {
        return no_squares();
    }
    // Sums meet those of invocations at the next scale, which add_squares brings to one exponent by a factor that f32 must hold: not
    // 2^160. So what lies next to that scale leaves from halfway to it; the factors here are exact.
    if largest < SMALL_BITS {
        let small = across(squares.small);
        if small < 1.0 {
            return Squares(small, -SCALE_EXPONENT);
        }
        return Squares(DOWN * small, -SCALE_EXPONENT / 2);
    }
    if largest > BIG_BITS {
        let big = across(squares.big);
        if big >= 1.0 {
            return Squares(big, SCALE_EXPONENT);
        }
        return Squares(UP * big, SCALE_EXPONENT / 2);
    }
    return Squares(across(squares.plain), 0);
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
        let w = load_parameters(block, quad);
        var g = update.gradient_factor * load_gradients(block, quad);
        if COUPLED_DECAY {
            g += update.coupled_decay * w;
        }
        add_squares_of(g, &squares);
        let bits = magnitude_bits(g);
        if largest_of(bits) >= INFINITY_BITS {
            count_nonfinite(bits, block.first_element + 4u * quad, &t);
        }
        let direction = remember(update, block.state_quad + quad, g, gradient_scale, momentum_scale, &alignment);
        store_parameters(block, quad, moved(update, w, direction));
    }

    t.square = trusted(squares);
    add_alignment(alignment, &t);
    if INITIAL_NORM && update.started == 0u {
        measure_initial_norm(block, lane, &t);
    }
    emit_partial(block.row, invocation, t);
}
