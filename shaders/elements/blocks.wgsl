// The blocks of a window, for passes with one workgroup per block.

import package::layout::Block;

@group(1) @binding(0) var<storage, read> blocks: array<Block>;
