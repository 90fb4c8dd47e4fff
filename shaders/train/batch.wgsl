// Where training stands, shared by every kernel here: the device counts its own batches, so that many steps can be recorded
// into one submit. Batch b is rows b * batch .. of the order; the last one may be short.

struct Cursor {
    batch: u32,      // batches done
    batch_rows: u32, // rows of a full batch
    total_rows: u32, // rows of the split
}

fn rows_of(cursor: Cursor) -> u32 {
    return min(cursor.batch_rows, cursor.total_rows - min(cursor.batch * cursor.batch_rows, cursor.total_rows));
}
