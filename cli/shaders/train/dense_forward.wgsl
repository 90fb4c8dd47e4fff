// A dense layer: output = input W + bias, then ReLU where asked for.
//
// Reads:  cursor, input (batch x INPUT_QUADS), parameters: W (INPUTS x OUTPUTS) at WEIGHTS, bias at BIAS.
// Writes: output (batch x OUTPUT_QUADS); what it leaves in the padding of a row means nothing.
// Grid:   one invocation per tile of 8 rows x 1 quad of the output, see `tile_of`.
// Assumes: rows of input and output are padded to whole quads, tensors start on a quad; INPUTS below 4 x 65,532.

override WORKGROUP: u32;
override INPUTS: u32;
override OUTPUTS: u32;
override WEIGHTS: u32;
override BIAS: u32;
override RELU: bool;

override INPUT_QUADS: u32 = (INPUTS + 3u) / 4u;
override OUTPUT_QUADS: u32 = (OUTPUTS + 3u) / 4u;
override WHOLE_ROWS: bool = OUTPUTS % 4u == 0u;

@group(0) @binding(0) var<storage, read> cursor: Cursor;
@group(0) @binding(1) var<storage, read> input: array<vec4<f32>>;
// The same buffer twice: only quads that start on a multiple of four can be loaded as such.
@group(0) @binding(2) var<storage, read> parameters: array<f32>;
@group(0) @binding(3) var<storage, read> parameter_quads: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> output: array<vec4<f32>>;

// Four weights of one input; past the end of a row they belong to something else, and end up in the output's padding.
fn weights(from_input: u32, quad: u32) -> vec4<f32> {
    let at = WEIGHTS + from_input * OUTPUTS + 4u * quad;
    if WHOLE_ROWS {
        return parameter_quads[at / 4u];
    }
    return vec4<f32>(parameters[at], parameters[at + 1u], parameters[at + 2u], parameters[at + 3u]);
}

fn store(row: u32, rows: u32, quad: u32, sum: vec4<f32>) {
    if row >= rows {
        return;
    }
    if RELU {
        output[row * OUTPUT_QUADS + quad] = positive_part(sum);
    } else {
        output[row * OUTPUT_QUADS + quad] = sum;
    }
}

@compute @workgroup_size(WORKGROUP)
fn dense_forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let rows = rows_of(cursor);
    let tile = tile_of(id, groups.x * WORKGROUP, OUTPUT_QUADS);
    let row = 8u * tile.y;
    let quad = tile.x;
    if row >= rows {
        return;
    }
    // Past the last row, that row is computed again, and not stored.
    let last = rows - 1u;
    let a0 = row * INPUT_QUADS;
    let a1 = min(row + 1u, last) * INPUT_QUADS;
    let a2 = min(row + 2u, last) * INPUT_QUADS;
    let a3 = min(row + 3u, last) * INPUT_QUADS;
    let a4 = min(row + 4u, last) * INPUT_QUADS;
    let a5 = min(row + 5u, last) * INPUT_QUADS;
    let a6 = min(row + 6u, last) * INPUT_QUADS;
    let a7 = min(row + 7u, last) * INPUT_QUADS;
    var sum0 = parameter_quads[BIAS / 4u + quad];
    var sum1 = sum0;
    var sum2 = sum0;
    var sum3 = sum0;
    var sum4 = sum0;
    var sum5 = sum0;
    var sum6 = sum0;
    var sum7 = sum0;
    for (var k = 0u; k < INPUTS / 4u; k++) {
        let w0 = weights(4u * k, quad);
        let w1 = weights(4u * k + 1u, quad);
        let w2 = weights(4u * k + 2u, quad);
        let w3 = weights(4u * k + 3u, quad);
        let w = mat4x4<f32>(w0, w1, w2, w3);
        sum0 += w * input[a0 + k];
        sum1 += w * input[a1 + k];
        sum2 += w * input[a2 + k];
        sum3 += w * input[a3 + k];
        sum4 += w * input[a4 + k];
        sum5 += w * input[a5 + k];
        sum6 += w * input[a6 + k];
        sum7 += w * input[a7 + k];
    }
    // The inputs of the last quad that exist: a zero in the padding would turn an infinite weight of something else into NaN.
    for (var l = INPUTS / 4u * 4u; l < INPUTS; l++) {
        let w = weights(l, quad);
        let k = l / 4u;
        sum0 += w * input[a0 + k][l % 4u];
        sum1 += w * input[a1 + k][l % 4u];
        sum2 += w * input[a2 + k][l % 4u];
        sum3 += w * input[a3 + k][l % 4u];
        sum4 += w * input[a4 + k][l % 4u];
        sum5 += w * input[a5 + k][l % 4u];
        sum6 += w * input[a6 + k][l % 4u];
        sum7 += w * input[a7 + k][l % 4u];
    }
    store(row, rows, quad, sum0);
    store(row + 1u, rows, quad, sum1);
    store(row + 2u, rows, quad, sum2);
    store(row + 3u, rows, quad, sum3);
    store(row + 4u, rows, quad, sum4);
    store(row + 5u, rows, quad, sum5);
    store(row + 6u, rows, quad, sum6);
    store(row + 7u, rows, quad, sum7);
}
