// The invocations of a workgroup add up their totals (reduction/tree.wgsl) and store one partial per block.

import package::reduction::partials::store_partial;
import package::reduction::totals::Totals;
import package::reduction::tree::{add_up_in_tree, tree};

struct Invocation {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
}

fn emit_partial(row: u32, invocation: Invocation, t: Totals) {
    add_up_in_tree(invocation.lane, t);
    if invocation.lane == 0u {
        store_partial(row, tree[0]);
    }
}
