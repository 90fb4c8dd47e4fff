// Pass 3, of the regimes with one stream of parameters: every step is of the one, and none is put aside.

fn begin_step(
    c: GroupConstants,
    loss: f32,
    skip: bool,
    halted: bool,
    s: ptr<function, GroupState>,
    r: ptr<function, RawRecord>,
) -> Turn {
    return Turn(1.0, 1u - (*s).momentum_started, SKIP_ALL, NO_SLOT, NO_SLOT);
}
