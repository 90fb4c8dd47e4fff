// The gradient of a bias: the column sums of the output's gradient.
//
// Reads:  cursor, output_gradient (batch x COLUMNS).
// Writes: gradients at OFFSET.
// Grid:   one invocation per column.
// Assumes: fewer than 65,535 rows in a batch.

override WORKGROUP: u32;
override COLUMNS: u32;
override OFFSET: u32;

@group(0) @binding(0) var<storage, read> cursor: Cursor;
@group(0) @binding(1) var<storage, read> output_gradient: array<f32>;
@group(0) @binding(2) var<storage, read_write> gradients: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn bias_gradient(@builtin(global_invocation_id) id: vec3<u32>) {
    let column = id.x;
    if column >= COLUMNS {
        return;
    }
    var sum = 0.0;
    for (var row = 0u; row < rows_of(cursor); row++) {
        sum += output_gradient[row * COLUMNS + column];
    }
    gradients[OFFSET + column] = sum;
}
