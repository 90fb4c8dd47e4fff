// Pass 1: one sweep over the gradients (and over the direction memory, where the regime asks for it) that leaves, per block or
// per invocation, every sum the step needs.
//
// Reads:  gradients; momentum or counters; parameters with coupled weight decay, and before the first step.
// Writes: partials (see shared/layout.wgsl for their order).
// Grid:   one workgroup of WORKGROUP invocations per block; invocation i takes quads i, i + WORKGROUP, … of the block.
// Assumes: the trips of all loops of one invocation stay below 65,535 (some drivers stop there in silence).
//
// Norm. A plain sum of squares in f32 overflows for |g| above 1e19 and vanishes below 1e-23. So the sweep also keeps the
// largest magnitude, as bits, for one `max` per element; where that lies outside [2^-40, 2^40] the invocation sweeps its
// elements again with an exact power of two as scale (J. Blue, TOMS 4, 1978; E. Anderson, TOMS 44, 2017, with the range chosen
// per invocation rather than per element). A sum carries its scale with it. The same maximum tells whether any element is NaN or infinite; only then are those counted.
//
// Inner products are linear in g and need no such care: g is scaled by the exponent of recent norms, the momentum by a bound on its
// norm. Where that scale is off by more than 2^80 the learning-rate pass ignores the alignment, which then has a weight below
// 2^-40 or is drowned by the clamp. Groups that share a norm have the same scales, whatever their regimes: their products are
// added up.

override WORKGROUP: u32;
override PARTIALS: u32;
override COUPLED_DECAY: bool;
override RAW_NORM: bool;
override INITIAL_NORM: bool;
override MOMENTUM: bool;
override COUNTERS: bool;

@group(0) @binding(0) var<storage, read> groups: array<GroupConstants>;
@group(0) @binding(1) var<storage, read> states: array<GroupState>;
@group(0) @binding(2) var<storage, read_write> partials: array<u32>;
@group(1) @binding(0) var<storage, read> blocks: array<Block>;
@group(1) @binding(1) var<storage, read> parameters: array<Lane>;
@group(1) @binding(2) var<storage, read> gradients: array<Lane>;
@group(1) @binding(3) var<storage, read> momentum: array<vec4<f32>>;
@group(1) @binding(4) var<storage, read> counters: array<u32>;

const SMALL_BITS = 0x2b800000u; // 2^-40
const BIG_BITS = 0x53800000u;   // 2^40

// What a sweep can look at.
const GRADIENT = 0u;      // what the regime sees: sign * g + λ w
const RAW_GRADIENT = 1u;  // sign * g
const PARAMETERS = 2u;    // w

fn load(what: u32, block: Block, quad: u32) -> vec4<f32> {
    if what == PARAMETERS {
        return load_parameters(block, quad);
    }
    var g = groups[block.group].sign * load_gradients(block, quad);
    if COUPLED_DECAY && what == GRADIENT {
        g += groups[block.group].coupled_decay * load_parameters(block, quad);
    }
    return g;
}

fn largest_of(bits: vec4<u32>) -> u32 {
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

fn across(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

// The sum of squares, from the plain sum and the largest magnitude; sweeps again where the plain sum cannot be trusted.
fn squares_of(what: u32, block: Block, lane: u32, largest: u32, plain: f32) -> Squares {
    if largest == 0u || largest >= INFINITY_BITS {
        return no_squares();
    }
    if largest >= SMALL_BITS && largest <= BIG_BITS {
        return Squares(plain, 0);
    }
    let exponent = clamp(i32(largest >> 23u) - 127, -126, 126);
    let scale = power_of_two(-exponent);
    var squares = vec4<f32>();
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        let x = scale * load(what, block, quad);
        squares += x * x;
    }
    return Squares(across(squares), exponent);
}

// Counts what is not finite, and finds the first.
fn find_nonfinite(what: u32, block: Block, lane: u32, t: ptr<function, Totals>) {
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        let bits = bitcast<vec4<u32>>(load(what, block, quad)) & vec4<u32>(MAGNITUDE_BITS);
        for (var i = 0u; i < 4u; i++) {
            if bits[i] >= INFINITY_BITS {
                (*t).nonfinite += 1u;
                (*t).first_nonfinite = min((*t).first_nonfinite, block.first_element + 4u * quad + i);
            }
        }
    }
}

fn store_squares(word: u32, at: u32, squares: Squares) {
    partials[word * PARTIALS + at] = bitcast<u32>(squares.sum);
    partials[(word + 1u) * PARTIALS + at] = bitcast<u32>(squares.exponent);
}

fn store_partial(at: u32, t: Totals) {
    store_squares(SQUARE, at, t.square);
    if RAW_NORM {
        store_squares(RAW_SQUARE, at, t.raw_square);
    }
    if INITIAL_NORM {
        store_squares(INITIAL_SQUARE, at, t.initial_square);
    }
    if MOMENTUM || COUNTERS {
        partials[SLOW_DOT * PARTIALS + at] = bitcast<u32>(t.slow_dot);
        partials[DIRECTION_SQUARE * PARTIALS + at] = bitcast<u32>(t.direction_square);
    }
    if COUNTERS {
        partials[ABSOLUTE * PARTIALS + at] = bitcast<u32>(t.absolute);
        partials[FAST_DOT * PARTIALS + at] = bitcast<u32>(t.fast_dot);
    }
    partials[NONFINITE * PARTIALS + at] = t.nonfinite;
    partials[FIRST_NONFINITE * PARTIALS + at] = t.first_nonfinite;
}

@compute @workgroup_size(WORKGROUP)
fn reduce_gradient(invocation: Invocation) {
    let block = blocks[invocation.workgroup.x];
    let lane = invocation.lane;
    let gradient_scale = power_of_two(-states[block.group].gradient_exponent);
    let momentum_scale = power_of_two(-states[block.group].direction_exponent);

    var largest = vec4<u32>();
    var squares = vec4<f32>();
    var raw_largest = vec4<u32>();
    var raw_squares = vec4<f32>();
    var absolute = vec4<f32>();
    var slow_dot = vec4<f32>();
    var fast_dot = vec4<f32>();
    var direction_squares = vec4<f32>();
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        let g = load(GRADIENT, block, quad);
        largest = max(largest, bitcast<vec4<u32>>(g) & vec4<u32>(MAGNITUDE_BITS));
        squares += g * g;
        if RAW_NORM {
            let raw = load(RAW_GRADIENT, block, quad);
            raw_largest = max(raw_largest, bitcast<vec4<u32>>(raw) & vec4<u32>(MAGNITUDE_BITS));
            raw_squares += raw * raw;
        }
        if MOMENTUM {
            let m = momentum_scale * momentum[block.state_quad + quad];
            slow_dot += (gradient_scale * g) * m;
            direction_squares += m * m;
        }
        if COUNTERS {
            let word = counters[block.state_quad + quad];
            let scaled_g = gradient_scale * g;
            let q = counters_of(word);
            slow_dot += scaled_g * q;
            direction_squares += q * q;
            fast_dot += scaled_g * last_signs_of(word);
            absolute += abs(scaled_g);
        }
    }

    var t = no_totals();
    let largest_magnitude = largest_of(largest);
    t.square = squares_of(GRADIENT, block, lane, largest_magnitude, across(squares));
    if RAW_NORM {
        t.raw_square = squares_of(RAW_GRADIENT, block, lane, largest_of(raw_largest), across(raw_squares));
    }
    t.absolute = across(absolute);
    t.slow_dot = across(slow_dot);
    t.fast_dot = across(fast_dot);
    t.direction_square = across(direction_squares);
    if largest_magnitude >= INFINITY_BITS {
        find_nonfinite(GRADIENT, block, lane, &t);
    }

    if INITIAL_NORM && states[block.group].started == 0u {
        var w_largest = vec4<u32>();
        var w_squares = vec4<f32>();
        for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
            let w = load_parameters(block, quad);
            w_largest = max(w_largest, bitcast<vec4<u32>>(w) & vec4<u32>(MAGNITUDE_BITS));
            w_squares += w * w;
        }
        let w_magnitude = largest_of(w_largest);
        t.initial_square = squares_of(PARAMETERS, block, lane, w_magnitude, across(w_squares));
        if w_magnitude >= INFINITY_BITS {
            find_nonfinite(PARAMETERS, block, lane, &t);
        }
    }
    emit_partial(block.row, invocation, t);
}
