// Where training stands, shared by every kernel here: the device counts its own batches, so that many steps can be recorded
// into one submit. Batch b is rows b * batch .. of the order; the last one may be short.

struct Cursor {
    batch: u32,      // batches done
    batch_rows: u32, // rows of a full batch
    total_rows: u32, // rows of the split
    loss: f32,       // mean loss of the last batch
}

fn rows_of(cursor: Cursor) -> u32 {
    return min(cursor.batch_rows, cursor.total_rows - min(cursor.batch * cursor.batch_rows, cursor.total_rows));
}

// Which tile of a matrix an invocation computes: tiles are numbered row by row, `columns` of them in a row, and the grid is folded
// into x and y, `width` invocations wide, as one number of workgroups may not suffice.
fn tile_of(id: vec3<u32>, width: u32, columns: u32) -> vec2<u32> {
    let tile = id.x + id.y * width;
    return vec2<u32>(tile % columns, tile / columns);
}

// 0 for what is below 0, else x, NaN included: by its bits, as some compilers turn a comparison of floats into max(), which drops
// a NaN. Bits from 0x80000001 to 0xff800000 are the negative numbers down to minus infinity; above them are NaN.
fn positive_part(x: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(x);
    let negative = (bits > vec4<u32>(0x80000000u)) & (bits <= vec4<u32>(0xff800000u));
    return select(x, vec4<f32>(), negative);
}

// By its bits, as compilers may suppose that there is nothing but numbers.
fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}
