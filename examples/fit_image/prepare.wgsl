// Computes from the parameters the values that the pixels need.
// Reads: `parameters`. Writes: `splats`. Grid: an invocation per Gaussian.

@group(0) @binding(0) var<storage, read> parameters: array<f32>;
@group(0) @binding(1) var<storage, read_write> splats: array<Splat>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
    let index = id.x;
    if index >= SPLATS {
        return;
    }
    let position = position_at(index);
    let shape = shape_at(index);
    let colour = colour_at(index);
    let sigma = side() * exp(vec2f(parameters[shape], parameters[shape + 1u])) + NARROWEST;
    let c = cos(parameters[shape + 2u]);
    let s = sin(parameters[shape + 2u]);
    var splat: Splat;
    splat.centre = side() * vec2f(parameters[position], parameters[position + 1u]);
    splat.extent = sqrt(RIM) * vec2f(length(vec2f(c, s) * sigma), length(vec2f(s, c) * sigma));
    splat.axes = vec4f(c, s, -s, c) / sigma.xxyy;
    splat.colour = vec3f(parameters[colour], parameters[colour + 1u], parameters[colour + 2u]);
    splat.opacity = 1.0 / (1.0 + exp(-parameters[opacity_at(index)]));
    splat.sigma = sigma;
    splats[index] = splat;
}
