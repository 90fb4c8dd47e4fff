// Tables of tiles for passes whose workgroups take one tile after another. Their number stands in the first entry.

import package::layout::Tile;

@group(0) @binding(1) var<storage, read> tiles: array<Tile>;

fn number_of_tiles() -> u32 {
    return tiles[0].matrix;
}

fn tile_at(i: u32) -> Tile {
    return tiles[i + 1u];
}
