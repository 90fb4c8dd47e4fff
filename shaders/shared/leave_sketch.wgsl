// How pass 4 goes over a block and leaves a count-sketch of its steps (Charikar, Chen & Farach-Colton 2002): element i of the scope, times
// a sign that is a hash of i, goes to bucket i mod 256. Sums of sketches are sketches of sums, and ‖sketch‖² is ‖Σ η u‖² on average; of
// up to 256 elements exactly.
//
// The 64 quads of a turn go round the buckets once. In workgroups of 64 lanes and more a lane meets the same four buckets every time, and
// adds them up in a register; lanes a turn apart meet in workgroup memory in the end. In smaller ones a lane meets several, and adds them
// up there: no other lane touches them.

// The sketches of all blocks, row by row.
alias Memory = f32;

// Quads of a turn.
const TURN = 64u;

// The larger of WORKGROUP and TURN.
override SLOTS: u32;

var<workgroup> slots: array<vec4<f32>, SLOTS>;

fn keep(update: Update, at: u32, w: vec4<f32>, raw: vec4<f32>, g: vec4<f32>) {}

fn with_signs(steps: vec4<f32>, first: u32) -> vec4<f32> {
    let bits = mix_bits(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u));
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(steps) ^ (bits & vec4<u32>(0x80000000u)));
}

// Updates a quad. Its step, with the signs.
fn step_of(block: Block, update: Update, quad: u32) -> vec4<f32> {
    let direction = update_quad(block, update, quad);
    return with_signs(update.regime_rate * direction, block.scope_element + 4u * quad);
}

fn sweep(block: Block, update: Update, lane: u32) {
    if WORKGROUP < TURN {
        for (var slot = lane; slot < TURN; slot += WORKGROUP) {
            slots[slot] = vec4<f32>();
        }
        for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
            slots[quad % TURN] += step_of(block, update, quad);
        }
    } else {
        var steps = vec4<f32>();
        for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
            steps += step_of(block, update, quad);
        }
        slots[lane] = steps;
    }
    if WORKGROUP > TURN {
        workgroupBarrier();
    }
    for (var first = lane; first < TURN; first += WORKGROUP) {
        var steps = slots[first];
        for (var slot = first + TURN; slot < SLOTS; slot += TURN) {
            steps += slots[slot];
        }
        for (var i = 0u; i < 4u; i++) {
            let bucket = (block.scope_element + 4u * first + i) % SKETCH_BUCKETS;
            memory[block.row * SKETCH_BUCKETS + bucket] = steps[i];
        }
    }
}
