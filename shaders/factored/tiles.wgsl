// Tables of tiles for passes whose workgroups process one tile after another. The first entry holds the number of
// tiles.

import package::layout::Tile;

@group(0) @binding(1) var<storage, read> tiles: array<Tile>;

fn number_of_tiles() -> u32 {
    return tiles[0].matrix;
}

fn tile_at(i: u32) -> Tile {
    return tiles[i + 1u];
}
