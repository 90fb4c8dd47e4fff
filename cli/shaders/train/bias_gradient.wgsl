// The gradient of a bias: the column sums of the output's gradient.
//
// Reads:  cursor, output_gradient (batch x OUTPUT_QUADS, as scalars).
// Writes: gradients at BIAS.
// Grid:   one invocation per column.
// Assumes: rows of the output gradient are padded to whole quads; fewer than 65,535 rows in a batch.

override WORKGROUP: u32;
override OUTPUTS: u32;
override BIAS: u32;

override OUTPUT_QUADS: u32 = (OUTPUTS + 3u) / 4u;

@group(0) @binding(0) var<storage, read> cursor: Cursor;
@group(0) @binding(1) var<storage, read> output_gradient: array<f32>;
@group(0) @binding(2) var<storage, read_write> gradients: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn bias_gradient(@builtin(global_invocation_id) id: vec3<u32>) {
    let column = id.x;
    if column >= OUTPUTS {
        return;
    }
    let rows = rows_of(cursor);
    var sum = 0.0;
    for (var row = 0u; row < rows; row++) {
        sum += output_gradient[row * 4u * OUTPUT_QUADS + column];
    }
    gradients[BIAS + column] = sum;
}
