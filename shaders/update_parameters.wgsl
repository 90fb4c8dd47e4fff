// Pass 4: the fused update, one read-modify-write of the parameters and of what the rule remembers.
//
// Reads:  updates (one per group, from pass 3), gradients.
// Writes: parameters, with what 16 bits lack of them where that is kept; momentum; memory (counters, the last gradient, the first parameters, streams of
//         parameters); averages; what it measures of the step. Nothing where the step is skipped, but for streams, which change turns.
//         Zeros in the place of the gradients where that is asked, skipped or not.
// Grid:   one workgroup of WORKGROUP invocations per block; invocation i takes quads i, i + WORKGROUP, … of the block.
//
//     g ← g / loss scale
//     g ← sign·clip·g/k + λ w          k micro-batches; coupled weight decay
//     m ← keep·m + share·g             Sgdm, Nesterov, Signum, AdamW; Lion, after u
//     v ← β₂ v + (1 - β₂) g²           AdamW; in the second half of the momentum, or alone where β₁ is 0
//     u = g | m | g + μ m | sign g | sign m | c₁ m / (c₂ √v + ε) | sign(β₁ m + (1 - β₁) g)
//     w ← (1 - η λ') w - η u           decoupled weight decay; in schedule-free training this is z, and w what is between z and its average

override WORKGROUP: u32;
override RULE: u32;
override COUPLED_DECAY: bool;
override COUNTERS: bool;
override LOSS_SCALE: bool;
override CLEAR: bool;

@group(0) @binding(0) var<storage, read> updates: array<Update>;
@group(1) @binding(0) var<storage, read> blocks: array<Block>;
@group(1) @binding(1) var<storage, read_write> parameters: array<ParameterLane>;
@group(1) @binding(2) var<storage, read> gradients: array<GradientLane>;
@group(1) @binding(3) var<storage, read_write> momentum: array<vec4<f32>>;
@group(1) @binding(4) var<storage, read_write> memory: array<Memory>;

fn update_quad(block: Block, update: Update, quad: u32) {
    let w = load_parameters(block, quad);
    var raw = load_gradients(block, quad);
    if CLEAR {
        clear_gradients(block, quad);
    }
    if LOSS_SCALE {
        raw *= update.unscale;
    }
    var g = update.gradient_factor * raw;
    if COUPLED_DECAY {
        g += update.coupled_decay * w;
    }
    let at = block.state_quad + quad;
    var last = vec4<f32>();
    var m = vec4<f32>();
    var v = vec4<f32>();
    if has_momentum() {
        last = momentum[at];
        m = next_momentum(update, last, admitted(g));
        momentum[at] = m;
    }
    if has_squares() {
        let behind = squares_at(arrayLength(&momentum), at);
        v = next_squares(update, momentum[behind], admitted(g));
        momentum[behind] = v;
    }
    keep(update, at, w, raw, g);
    let direction = direction_of(update, g, last, m, v);
    let next = next_parameters(update, at, w, direction);
    store_parameters(block, quad, settled(update, at, next), update.rounding_key);
    average(update, at, next);
    watch(w, next);
}

@compute @workgroup_size(WORKGROUP)
fn update_parameters(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let block = blocks[workgroup.x];
    let update = updates[block.group];
    if update.skip == SKIP_ALL {
        if CLEAR {
            for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
                clear_gradients(block, quad);
            }
        }
        return;
    }
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        update_quad(block, update, quad);
    }
    leave(block, lane);
}
