// Goes on or back by some batches, for a second gradient of one of them.
//
// Writes: cursor.
// Grid:   one invocation.

override BATCHES: i32;

@group(0) @binding(0) var<storage, read_write> cursor: Cursor;

@compute @workgroup_size(1)
fn move_cursor() {
    cursor.batch = bitcast<u32>(bitcast<i32>(cursor.batch) + BATCHES);
}
