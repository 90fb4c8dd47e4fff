// The gradient of a dense layer's input, which came out of a ReLU: input' = output' Wᵀ where input is not 0, else 0.
//
// Reads:  cursor, output_gradient (batch x OUTPUT_QUADS), parameters: W (INPUTS x OUTPUTS) at WEIGHTS.
// Writes: input (batch x INPUT_QUADS, replaced by its gradient).
// Grid:   one invocation per tile of 4 rows x 1 quad of the input, see `tile_of`.
// Assumes: rows of input and output gradient are padded to whole quads; OUTPUTS below 65,535.

override WORKGROUP: u32;
override INPUTS: u32;
override OUTPUTS: u32;
override WEIGHTS: u32;

override INPUT_QUADS: u32 = (INPUTS + 3u) / 4u;
override OUTPUT_QUADS: u32 = (OUTPUTS + 3u) / 4u;

@group(0) @binding(0) var<storage, read> cursor: Cursor;
@group(0) @binding(1) var<storage, read> output_gradient: array<f32>;
@group(0) @binding(2) var<storage, read> parameters: array<f32>;
@group(0) @binding(3) var<storage, read_write> input: array<vec4<f32>>;

fn store(row: u32, rows: u32, quad: u32, sum: vec4<f32>) {
    if row < rows {
        let at = row * INPUT_QUADS + quad;
        input[at] = select(sum, vec4<f32>(), input[at] == vec4<f32>());
    }
}

@compute @workgroup_size(WORKGROUP)
fn input_gradient(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let rows = rows_of(cursor);
    let tile = tile_of(id, groups.x * WORKGROUP, INPUT_QUADS);
    let row = 4u * tile.y;
    let quad = tile.x;
    if row >= rows {
        return;
    }
    // Past the edges the last row and input are computed again, and not stored or stored in the padding.
    let stride = 4u * OUTPUT_QUADS;
    let last_row = rows - 1u;
    let a0 = row * stride;
    let a1 = min(row + 1u, last_row) * stride;
    let a2 = min(row + 2u, last_row) * stride;
    let a3 = min(row + 3u, last_row) * stride;
    let last_input = INPUTS - 1u;
    let w0 = WEIGHTS + 4u * quad * OUTPUTS;
    let w1 = WEIGHTS + min(4u * quad + 1u, last_input) * OUTPUTS;
    let w2 = WEIGHTS + min(4u * quad + 2u, last_input) * OUTPUTS;
    let w3 = WEIGHTS + min(4u * quad + 3u, last_input) * OUTPUTS;
    var sum0 = vec4<f32>();
    var sum1 = sum0;
    var sum2 = sum0;
    var sum3 = sum0;
    for (var k = 0u; k < OUTPUTS; k++) {
        let w = vec4<f32>(parameters[w0 + k], parameters[w1 + k], parameters[w2 + k], parameters[w3 + k]);
        sum0 += output_gradient[a0 + k] * w;
        sum1 += output_gradient[a1 + k] * w;
        sum2 += output_gradient[a2 + k] * w;
        sum3 += output_gradient[a3 + k] * w;
    }
    store(row, rows, quad, sum0);
    store(row + 1u, rows, quad, sum1);
    store(row + 2u, rows, quad, sum2);
    store(row + 3u, rows, quad, sum3);
}
