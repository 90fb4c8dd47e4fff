// The mean square of the residual over pixels and channels.
// Reads: `residual`. Writes: `history`, after the losses of the previous steps. Grid: one workgroup.

struct History {
    steps: u32,
    losses: array<f32>,
}

@group(0) @binding(0) var<storage, read> residual: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> history: History;

const LANES = 64u;
var<workgroup> sums: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var at = lane; at < WIDTH * HEIGHT; at += LANES) {
        sum += dot(residual[at].rgb, residual[at].rgb);
    }
    sums[lane] = sum;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    if lane == 0u && history.steps < arrayLength(&history.losses) {
        history.losses[history.steps] = sums[0] / (3.0 * f32(WIDTH * HEIGHT));
        history.steps += 1u;
    }
}
