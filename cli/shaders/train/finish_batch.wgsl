// Adds up the rows' results and goes on to the next batch.
//
// Reads:  row_results.
// Writes: batch_results (mean loss, rows that are right, rows with an output that is not finite, unused), cursor (with that loss).
// Grid:   one invocation.
// Assumes: fewer than 65,535 rows in a batch.

@group(0) @binding(0) var<storage, read_write> cursor: Cursor;
@group(0) @binding(1) var<storage, read> row_results: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> batch_results: array<vec4<f32>>;

@compute @workgroup_size(1)
fn finish_batch() {
    let rows = rows_of(cursor);
    var sum = vec4<f32>();
    for (var row = 0u; row < rows; row++) {
        sum += row_results[row];
    }
    let loss = sum.x / f32(rows);
    batch_results[cursor.batch] = vec4<f32>(loss, sum.yz, 0.0);
    cursor.loss = loss;
    cursor.batch += 1u;
}
