// Sets a bit for each Gaussian whose box meets a tile, without atomics and always in the same order.
// Reads: `splats`. Writes: `cover`, `words()` words per tile. Grid: an invocation per word (x) and tile (y).

@group(0) @binding(0) var<storage, read> splats: array<Splat>;
@group(0) @binding(1) var<storage, read_write> cover: array<u32>;

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) id: vec3u) {
    let tiles = tiles();
    if id.x >= words() || id.y >= tiles.x * tiles.y {
        return;
    }
    // The centres of the tile's first and last pixel.
    let first = vec2f(TILE * vec2u(id.y % tiles.x, id.y / tiles.x)) + 0.5;
    let last = first + f32(TILE - 1u);
    var bits = 0u;
    for (var bit = 0u; bit < 32u; bit += 1u) {
        let index = 32u * id.x + bit;
        if index < SPLATS {
            let centre = splats[index].centre;
            let extent = splats[index].extent;
            if all(centre + extent >= first) && all(centre - extent <= last) {
                bits |= 1u << bit;
            }
        }
    }
    cover[id.y * words() + id.x] = bits;
}
