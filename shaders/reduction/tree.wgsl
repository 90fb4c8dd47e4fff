// Adds up the totals of a workgroup. WORKGROUP is a power of two. Afterwards tree[0] holds the result for invocation 0.

import package::geometry::WORKGROUP;
import package::reduction::totals::{Totals, add_totals};

var<workgroup> tree: array<Totals, WORKGROUP>;

fn add_up_in_tree(lane: u32, t: Totals) {
    tree[lane] = t;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            tree[lane] = add_totals(tree[lane], tree[lane + half]);
        }
    }
}
