// The loss of a batch and its gradients, for a network of HIDDEN units: y = Σ_j head_j tanh(backbone_j · x).
//
// There is one workgroup with one invocation per sample. Each invocation first computes the error of its sample, then the gradients of one unit.

const SAMPLES = 64u;
const HIDDEN = 16u;

struct Sample {
    x: vec2<f32>,
    target_value: f32,
    unused: f32,
}

@group(0) @binding(0) var<storage, read> samples: array<Sample>;
@group(0) @binding(1) var<storage, read> backbone: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> head: array<f32>;
@group(0) @binding(3) var<storage, read_write> backbone_gradients: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> head_gradients: array<f32>;
@group(0) @binding(5) var<storage, read_write> loss: array<f32>;

var<workgroup> errors: array<f32, SAMPLES>;

@compute @workgroup_size(SAMPLES)
fn gradient(@builtin(local_invocation_index) i: u32) {
    var y = 0.0;
    for (var j = 0u; j < HIDDEN; j++) {
        y += head[j] * tanh(dot(backbone[j], samples[i].x));
    }
    errors[i] = y - samples[i].target_value;
    workgroupBarrier();
    if i < HIDDEN {
        var of_head = 0.0;
        var of_backbone = vec2<f32>();
        for (var k = 0u; k < SAMPLES; k++) {
            let unit = tanh(dot(backbone[i], samples[k].x));
            of_head += errors[k] * unit;
            of_backbone += errors[k] * head[i] * (1.0 - unit * unit) * samples[k].x;
        }
        head_gradients[i] = of_head / f32(SAMPLES);
        backbone_gradients[i] = of_backbone / f32(SAMPLES);
    }
    if i == 0u {
        var sum = 0.0;
        for (var k = 0u; k < SAMPLES; k++) {
            sum += errors[k] * errors[k];
        }
        loss[0] = 0.5 * sum / f32(SAMPLES);
    }
}
