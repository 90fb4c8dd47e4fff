// The gradient of the mean square with respect to the nine parameters of a Gaussian. The invocations share the pixels of its box, and
// sum in workgroup memory. There are no atomics, so that the bits are the same in each run.
// Reads: `splats`, `residual`. Writes: `gradients`, in the layout of `parameters`. Grid: a workgroup per Gaussian.
//
// Eight sums over pixels are enough. With r the gradient at a pixel, 2/(3 pixels) · residual, and s = dL/dq there:
//     Σ r weight (three channels), Σ s u, Σ s v, Σ s u², Σ s v², Σ s u v.

@group(0) @binding(0) var<storage, read> splats: array<Splat>;
@group(0) @binding(1) var<storage, read> residual: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> gradients: array<f32>;

const LANES = 64u;
// Σ r weight, and Σ s u v.
var<workgroup> colours: array<vec4f, LANES>;
// Σ s u, Σ s v, Σ s u², Σ s v².
var<workgroup> moments: array<vec4f, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let index = group.x;
    let splat = splats[index];
    let size = vec2f(vec2u(WIDTH, HEIGHT));
    let first = vec2u(clamp(ceil(splat.centre - splat.extent - 0.5), vec2f(0.0), size));
    let end = vec2u(clamp(floor(splat.centre + splat.extent + 0.5), vec2f(0.0), size));
    let box = max(end, first) - first;

    var colour = vec4f(0.0);
    var moment = vec4f(0.0);
    for (var at = lane; at < box.x * box.y; at += LANES) {
        let pixel = first + vec2u(at % box.x, at / box.x);
        let d = vec2f(pixel) + 0.5 - splat.centre;
        let u = dot(splat.axes.xy, d);
        let v = dot(splat.axes.zw, d);
        let q = u * u + v * v;
        if q < RIM {
            let r = residual[pixel.y * WIDTH + pixel.x].rgb;
            let gaussian = exp(-0.5 * q);
            let s = -0.5 * gaussian * dot(r, splat.colour);
            colour += vec4f((gaussian - WEIGHT_AT_RIM) * r, s * u * v);
            moment += s * vec4f(u, v, u * u, v * v);
        }
    }
    colours[lane] = colour;
    moments[lane] = moment;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            colours[lane] += colours[lane + half];
            moments[lane] += moments[lane + half];
        }
    }
    if lane > 0u {
        return;
    }

    let mean = 2.0 / (3.0 * f32(WIDTH * HEIGHT));
    let by_weight = mean * colours[0].rgb;
    let by_q = mean * splat.opacity * moments[0];
    let by_turn = mean * splat.opacity * colours[0].w;
    // dq/dcentre = -2 (u axes.xy + v axes.zw).
    let position = -2.0 * side() * (by_q.x * splat.axes.xy + by_q.y * splat.axes.zw);
    // dq/dsigma = -2 (u², v²)/sigma, dsigma/dparameter = sigma - NARROWEST.
    let shape = -2.0 * by_q.zw * (splat.sigma - NARROWEST) / splat.sigma;
    // du/dangle = v sigma.y/sigma.x, dv/dangle = -u sigma.x/sigma.y.
    let angle = 2.0 * by_turn * (splat.sigma.y / splat.sigma.x - splat.sigma.x / splat.sigma.y);
    gradients[position_at(index)] = position.x;
    gradients[position_at(index) + 1u] = position.y;
    gradients[shape_at(index)] = shape.x;
    gradients[shape_at(index) + 1u] = shape.y;
    gradients[shape_at(index) + 2u] = angle;
    for (var channel = 0u; channel < 3u; channel += 1u) {
        gradients[colour_at(index) + channel] = splat.opacity * by_weight[channel];
    }
    gradients[opacity_at(index)] =
        splat.opacity * (1.0 - splat.opacity) * dot(by_weight, splat.colour);
}
