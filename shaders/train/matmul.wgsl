// C = A B, for the three products of a dense layer; I x L times L x J.
//
//     forward           output = input W + bias, then ReLU        I = batch, L = inputs,  J = outputs
//     weight gradient   W' = inputᵀ output'                       I = inputs, L = batch,  J = outputs
//     input gradient    input' = output' Wᵀ where input > 0       I = batch, L = outputs, J = inputs
//
// Element (i, l) of A lies at A_OFFSET + i * A_ROW + l * A_COLUMN, and so on; only the batch's own rows count.
//
// Reads:  cursor, a, b, bias (BIAS); c where MASK.
// Writes: c.
// Grid:   one invocation per 8 x 4 elements of C: columns along x, rows along y.
// Assumes: L below 65,535.

override WORKGROUP: u32;
override I: u32;
override J: u32;
override L: u32;
override BATCH_IS_I: bool;
override BATCH_IS_L: bool;
override A_OFFSET: u32;
override A_ROW: u32;
override A_COLUMN: u32;
override B_OFFSET: u32;
override B_ROW: u32;
override B_COLUMN: u32;
override C_OFFSET: u32;
override BIAS: bool;
override BIAS_OFFSET: u32;
override RELU: bool;
override MASK: bool;

@group(0) @binding(0) var<storage, read> cursor: Cursor;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> c: array<f32>;

fn store(row: u32, column: u32, value: f32) {
    let at = C_OFFSET + row * J + column;
    // Compared so that a NaN flows on.
    if (RELU && value < 0.0) || (MASK && c[at] == 0.0) {
        c[at] = 0.0;
    } else {
        c[at] = value;
    }
}

fn store_row(row: u32, rows: u32, column: u32, value: vec4<f32>) {
    if row >= rows {
        return;
    }
    store(row, column, value.x);
    if column + 1u < J {
        store(row, column + 1u, value.y);
    }
    if column + 2u < J {
        store(row, column + 2u, value.z);
    }
    if column + 3u < J {
        store(row, column + 3u, value.w);
    }
}

@compute @workgroup_size(WORKGROUP)
fn matmul(@builtin(global_invocation_id) id: vec3<u32>) {
    let rows = select(I, rows_of(cursor), BATCH_IS_I);
    let inner = select(L, rows_of(cursor), BATCH_IS_L);
    let row = 8u * id.y;
    let column = 4u * id.x;
    if row >= rows || column >= J {
        return;
    }
    // Past the edges the last row and column are computed again, and not stored.
    let last_row = rows - 1u;
    let last_column = J - 1u;
    var a0 = A_OFFSET + row * A_ROW;
    var a1 = A_OFFSET + min(row + 1u, last_row) * A_ROW;
    var a2 = A_OFFSET + min(row + 2u, last_row) * A_ROW;
    var a3 = A_OFFSET + min(row + 3u, last_row) * A_ROW;
    var a4 = A_OFFSET + min(row + 4u, last_row) * A_ROW;
    var a5 = A_OFFSET + min(row + 5u, last_row) * A_ROW;
    var a6 = A_OFFSET + min(row + 6u, last_row) * A_ROW;
    var a7 = A_OFFSET + min(row + 7u, last_row) * A_ROW;
    let b0 = B_OFFSET + column * B_COLUMN;
    let b1 = B_OFFSET + min(column + 1u, last_column) * B_COLUMN;
    let b2 = B_OFFSET + min(column + 2u, last_column) * B_COLUMN;
    let b3 = B_OFFSET + min(column + 3u, last_column) * B_COLUMN;
    var sum0 = vec4<f32>();
    if BIAS {
        sum0 = vec4<f32>(
            bias[BIAS_OFFSET + column],
            bias[BIAS_OFFSET + min(column + 1u, last_column)],
            bias[BIAS_OFFSET + min(column + 2u, last_column)],
            bias[BIAS_OFFSET + min(column + 3u, last_column)],
        );
    }
    var sum1 = sum0;
    var sum2 = sum0;
    var sum3 = sum0;
    var sum4 = sum0;
    var sum5 = sum0;
    var sum6 = sum0;
    var sum7 = sum0;
    for (var l = 0u; l < inner; l++) {
        let bl = l * B_ROW;
        let al = l * A_COLUMN;
        let factors = vec4<f32>(b[b0 + bl], b[b1 + bl], b[b2 + bl], b[b3 + bl]);
        sum0 += a[a0 + al] * factors;
        sum1 += a[a1 + al] * factors;
        sum2 += a[a2 + al] * factors;
        sum3 += a[a3 + al] * factors;
        sum4 += a[a4 + al] * factors;
        sum5 += a[a5 + al] * factors;
        sum6 += a[a6 + al] * factors;
        sum7 += a[a7 + al] * factors;
    }
    store_row(row, rows, column, sum0);
    store_row(row + 1u, rows, column, sum1);
    store_row(row + 2u, rows, column, sum2);
    store_row(row + 3u, rows, column, sum3);
    store_row(row + 4u, rows, column, sum4);
    store_row(row + 5u, rows, column, sum5);
    store_row(row + 6u, rows, column, sum6);
    store_row(row + 7u, rows, column, sum7);
}
