// The invocations of a workgroup add up their totals (shared/tree.wgsl) and leave one partial per block.

fn emit_partial(row: u32, lane: u32, t: Totals) {
    add_up_in_tree(lane, t);
    if lane == 0u {
        store_partial(row, tree[0]);
    }
}
