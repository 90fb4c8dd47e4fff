// The exact number of steps that were taken, by all groups and by one. CPU twin: src/cpu/count_steps.rs.

import package::layout::GroupState;

// Steps that were not skipped, this one not counted; the largest u32 where there are more.
fn steps_taken(s: GroupState) -> u32 {
    if s.steps_high > select(0u, 1u, s.steps_low < s.skipped) {
        return 0xffffffffu;
    }
    return s.steps_low - s.skipped;
}

// Those of them that moved the group: all but those in which it was frozen, had no gradients, or was left out as an outlier.
fn steps_moved(s: GroupState) -> u32 {
    let taken = steps_taken(s);
    return select(taken - s.left_out, taken, taken == 0xffffffffu);
}
