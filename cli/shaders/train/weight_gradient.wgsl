// The gradient of a dense layer's weights: W' = inputᵀ output'.
//
// Reads:  cursor, input (batch x INPUT_QUADS), output_gradient (batch x OUTPUT_QUADS).
// Writes: gradients: W' (INPUTS x OUTPUTS) at WEIGHTS.
// Grid:   one invocation per tile of 8 x 4 weights, see `tile_of`.
// Assumes: rows of input and output gradient are padded to whole quads; fewer than 65,535 rows in a batch.

override WORKGROUP: u32;
override INPUTS: u32;
override OUTPUTS: u32;
override WEIGHTS: u32;

override INPUT_QUADS: u32 = (INPUTS + 3u) / 4u;
override OUTPUT_QUADS: u32 = (OUTPUTS + 3u) / 4u;

@group(0) @binding(0) var<storage, read> cursor: Cursor;
@group(0) @binding(1) var<storage, read> input: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> output_gradient: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> gradients: array<f32>;

fn store(from_input: u32, quad: u32, sum: vec4<f32>) {
    if from_input >= INPUTS {
        return;
    }
    let column = 4u * quad;
    let at = WEIGHTS + from_input * OUTPUTS + column;
    gradients[at] = sum.x;
    if column + 1u < OUTPUTS {
        gradients[at + 1u] = sum.y;
    }
    if column + 2u < OUTPUTS {
        gradients[at + 2u] = sum.z;
    }
    if column + 3u < OUTPUTS {
        gradients[at + 3u] = sum.w;
    }
}

@compute @workgroup_size(WORKGROUP)
fn weight_gradient(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let rows = rows_of(cursor);
    let tile = tile_of(id, groups.x * WORKGROUP, OUTPUT_QUADS);
    let quad = tile.x;
    let first = 2u * tile.y;
    if first >= INPUT_QUADS {
        return;
    }
    // Past the last input quad, that quad is computed again, and not stored.
    let second = min(first + 1u, INPUT_QUADS - 1u);
    var sum0 = vec4<f32>();
    var sum1 = sum0;
    var sum2 = sum0;
    var sum3 = sum0;
    var sum4 = sum0;
    var sum5 = sum0;
    var sum6 = sum0;
    var sum7 = sum0;
    for (var row = 0u; row < rows; row++) {
        let g = output_gradient[row * OUTPUT_QUADS + quad];
        let a = input[row * INPUT_QUADS + first];
        let b = input[row * INPUT_QUADS + second];
        sum0 += a.x * g;
        sum1 += a.y * g;
        sum2 += a.z * g;
        sum3 += a.w * g;
        sum4 += b.x * g;
        sum5 += b.y * g;
        sum6 += b.z * g;
        sum7 += b.w * g;
    }
    let from_input = 4u * first;
    store(from_input, quad, sum0);
    store(from_input + 1u, quad, sum1);
    store(from_input + 2u, quad, sum2);
    store(from_input + 3u, quad, sum3);
    store(from_input + 4u, quad, sum4);
    store(from_input + 5u, quad, sum5);
    store(from_input + 6u, quad, sum6);
    store(from_input + 7u, quad, sum7);
}
