// Copies the rows of the present batch side by side: those of them that lie in this chunk of the data. A set that is larger than
// one binding has several chunks, and one dispatch of this kernel for each.
//
// Reads:  cursor, order (a permutation of the rows), data (rows CHUNK_START .. CHUNK_END x QUADS), labels.
// Writes: input (batch x QUADS), batch_labels.
// Grid:   one invocation per QUADS_PER_INVOCATION quads of a row (x) and row of the batch (y).
// Assumes: rows are padded with zeros to whole quads.

override WORKGROUP: u32;
override QUADS: u32;
override CHUNK_START: u32;
override CHUNK_END: u32;

const QUADS_PER_INVOCATION = 4u;

@group(0) @binding(0) var<storage, read> cursor: Cursor;
@group(0) @binding(1) var<storage, read> order: array<u32>;
@group(0) @binding(2) var<storage, read> data: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> labels: array<u32>;
@group(0) @binding(4) var<storage, read_write> input: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> batch_labels: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn gather(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.y;
    if row >= rows_of(cursor) {
        return;
    }
    let source = order[cursor.batch * cursor.batch_rows + row];
    if source < CHUNK_START || source >= CHUNK_END {
        return;
    }
    let first = id.x * QUADS_PER_INVOCATION;
    for (var k = first; k < min(first + QUADS_PER_INVOCATION, QUADS); k++) {
        input[row * QUADS + k] = data[(source - CHUNK_START) * QUADS + k];
    }
    if id.x == 0u {
        batch_labels[row] = labels[source];
    }
}
