// Conjugate gradients for (J Jᵀ + λ I) x = r, and the step Jᵀ x of a least-squares problem with residuals r.
//
// One iteration is three dispatches: `transposed`, `product`, `advance`. Nothing is read back between iterations.
//
// `vectors` holds one vector after the other, each with one element per row: x, the residual of the system, the direction p, and
// (J Jᵀ + λ I) p.

struct Sizes {
    rows: u32,
    columns: u32,
    lambda: f32,
    unused: u32,
}

@group(0) @binding(0) var<uniform> sizes: Sizes;
// Row by row.
@group(0) @binding(1) var<storage, read> jacobian: array<f32>;
@group(0) @binding(2) var<storage, read> residuals: array<f32>;
@group(0) @binding(3) var<storage, read_write> vectors: array<f32>;
// Jᵀ p, and at the end -Jᵀ x, which is the gradient for an optimizer with a rate of 1.
@group(0) @binding(4) var<storage, read_write> columns: array<f32>;
// The square of the residual's norm.
@group(0) @binding(5) var<storage, read_write> square: array<f32, 1>;

const WORKGROUP = 64u;

// Vector that `transposed` multiplies: 0 for x, 2 for p; and the sign of the result.
override SOURCE = 2u;
override SIGN = 1.0;

var<workgroup> partial: array<f32, WORKGROUP>;

// Returns the sum of `value` over all invocations of the workgroup.
fn sum_of(value: f32, lane: u32) -> f32 {
    partial[lane] = value;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            partial[lane] += partial[lane + half];
        }
        workgroupBarrier();
    }
    let sum = workgroupUniformLoad(&partial[0]);
    return sum;
}

// x = 0, so that the residual of the system and the first direction are r. One workgroup.
@compute @workgroup_size(WORKGROUP)
fn start(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var row = lane; row < sizes.rows; row += WORKGROUP) {
        let r = residuals[row];
        vectors[row] = 0.0;
        vectors[sizes.rows + row] = r;
        vectors[2u * sizes.rows + row] = r;
        sum += r * r;
    }
    let total = sum_of(sum, lane);
    if lane == 0u {
        square[0] = total;
    }
}

// Jᵀ v: one invocation per column.
@compute @workgroup_size(WORKGROUP)
fn transposed(@builtin(global_invocation_id) id: vec3<u32>) {
    let column = id.x;
    if column >= sizes.columns {
        return;
    }
    var sum = 0.0;
    for (var row = 0u; row < sizes.rows; row++) {
        sum += jacobian[row * sizes.columns + column] * vectors[SOURCE * sizes.rows + row];
    }
    columns[column] = SIGN * sum;
}

// J (Jᵀ p) + λ p: one workgroup per row.
@compute @workgroup_size(WORKGROUP)
fn product(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x;
    var sum = 0.0;
    for (var column = lane; column < sizes.columns; column += WORKGROUP) {
        sum += jacobian[row * sizes.columns + column] * columns[column];
    }
    let total = sum_of(sum, lane);
    if lane == 0u {
        vectors[3u * sizes.rows + row] = total + sizes.lambda * vectors[2u * sizes.rows + row];
    }
}

// The step along p, and the next direction. One workgroup. A residual of zero is not changed.
@compute @workgroup_size(WORKGROUP)
fn advance(@builtin(local_invocation_index) lane: u32) {
    let rows = sizes.rows;
    var curvature = 0.0;
    for (var row = lane; row < rows; row += WORKGROUP) {
        curvature += vectors[2u * rows + row] * vectors[3u * rows + row];
    }
    let along = sum_of(curvature, lane);
    let before = square[0];
    let alpha = select(0.0, before / along, along > 0.0);
    var after = 0.0;
    for (var row = lane; row < rows; row += WORKGROUP) {
        vectors[row] += alpha * vectors[2u * rows + row];
        let r = vectors[rows + row] - alpha * vectors[3u * rows + row];
        vectors[rows + row] = r;
        after += r * r;
    }
    let total = sum_of(after, lane);
    let beta = select(0.0, total / before, before > 0.0);
    for (var row = lane; row < rows; row += WORKGROUP) {
        vectors[2u * rows + row] = vectors[rows + row] + beta * vectors[2u * rows + row];
    }
    if lane == 0u {
        square[0] = total;
    }
}
