// Every invocation stores its own partial, without a barrier, for devices on which a barrier costs more than a few stores.

import package::geometry::WORKGROUP;
import package::reduction::partials::store_partial;
import package::reduction::totals::Totals;

struct Invocation {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
}

fn emit_partial(row: u32, invocation: Invocation, t: Totals) {
    store_partial(row * WORKGROUP + invocation.lane, t);
}
