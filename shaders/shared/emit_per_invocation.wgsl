// Every invocation leaves a partial of its own: no barrier. For devices where a barrier costs more than a few stores.

fn emit_partial(row: u32, lane: u32, t: Totals) {
    store_partial(row * WORKGROUP + lane, t);
}
