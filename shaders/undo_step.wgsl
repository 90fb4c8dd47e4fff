// Takes a lagged step back where its gradient turned out not to be finite: the new parameters and the new memory become copies of
// the old ones. Elsewhere the step holds, and the new parameters go into their average, where there is one.
//
// Reads:  updates (their skip flag, from learning_rate.wgsl); parameters; memory.
// Writes: the new parameters, in the place of the gradients; next_memory; or averages.
// Grid:   one workgroup of WORKGROUP invocations per block; invocation i takes quads i, i + WORKGROUP, … of the block.

override WORKGROUP: u32;
// Words that are remembered of a quad in one place: 4 of momentum, 1 of counters, or none.
override MEMORY_WORDS: u32;
// Such places, as far apart as the memory's length has it: a second one of squares.
override MEMORY_PLACES: u32;
override AVERAGES: bool;

@group(0) @binding(0) var<storage, read> updates: array<Update>;
@group(1) @binding(0) var<storage, read> blocks: array<Block>;
@group(1) @binding(1) var<storage, read> parameters: array<ParameterLane>;
@group(1) @binding(2) var<storage, read_write> gradients: array<GradientLane>;
@group(1) @binding(3) var<storage, read> memory: array<u32>;
@group(1) @binding(4) var<storage, read_write> next_memory: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn undo_step(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let block = blocks[workgroup.x];
    let update = updates[block.group];
    if update.skip == 0u {
        if AVERAGES && update.average_weight > 0.0 {
            for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
                average(update, block.state_quad + quad, load_gradients(block, quad));
            }
        }
        return;
    }
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        store_parameters(block, quad, load_parameters(block, quad), 0u);
        for (var place = 0u; place < MEMORY_PLACES; place++) {
            let first = place * (arrayLength(&memory) / MEMORY_PLACES) + (block.state_quad + quad) * MEMORY_WORDS;
            for (var word = 0u; word < MEMORY_WORDS; word++) {
                next_memory[first + word] = memory[first + word];
            }
        }
    }
}
