// The blocks of a window, for the passes that have one workgroup for each.

import package::layout::Block;

@group(1) @binding(0) var<storage, read> blocks: array<Block>;
