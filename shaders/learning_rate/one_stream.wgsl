// For regimes with one stream of parameters: every step belongs to it, and no parameters are put aside.

import package::layout::{GroupConstants, GroupState, RawRecord, NO_SLOT, SKIP_ALL};
import package::learning_rate::gradient::Turn;

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
