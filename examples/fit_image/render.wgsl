// Draws the sum of the Gaussians at each pixel, minus the target.
// Reads: `splats`, `cover` and the target. Writes: `residual`, one vec4 per pixel, row by row.
// Grid: an invocation per pixel, a workgroup per tile.

@group(0) @binding(0) var<storage, read> splats: array<Splat>;
@group(0) @binding(1) var<storage, read> cover: array<u32>;
@group(0) @binding(2) var<storage, read> goal: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> residual: array<vec4f>;

@compute @workgroup_size(TILE, TILE)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(workgroup_id) group: vec3u) {
    if id.x >= WIDTH || id.y >= HEIGHT {
        return;
    }
    let pixel = vec2f(id.xy) + 0.5;
    let tile = group.y * tiles().x + group.x;
    var sum = vec3f(0.0);
    for (var word = 0u; word < words(); word += 1u) {
        for (var bits = cover[tile * words() + word]; bits != 0u; bits &= bits - 1u) {
            let index = 32u * word + firstTrailingBit(bits);
            let axes = splats[index].axes;
            let d = pixel - splats[index].centre;
            let u = dot(axes.xy, d);
            let v = dot(axes.zw, d);
            let q = u * u + v * v;
            if q < RIM {
                let weight = exp(-0.5 * q) - WEIGHT_AT_RIM;
                sum += splats[index].opacity * weight * splats[index].colour;
            }
        }
    }
    let at = id.y * WIDTH + id.x;
    residual[at] = vec4f(sum - goal[at].rgb, 0.0);
}
