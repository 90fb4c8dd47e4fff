// The exact number of steps that were taken, by all groups and by one. CPU twin: src/cpu/count_steps.rs.

import package::layout::GroupState;

// Returns the number of previous steps that were not skipped, at most the largest u32.
fn steps_taken(s: GroupState) -> u32 {
    if s.steps_high > select(0u, 1u, s.steps_low < s.skipped) {
        return 0xffffffffu;
    }
    return s.steps_low - s.skipped;
}

// Returns the number of previous steps that moved the group. Skipped steps do not count, and neither do steps in which the group was frozen,
// had no gradients, or was left out as an outlier.
fn steps_moved(s: GroupState) -> u32 {
    let taken = steps_taken(s);
    return select(taken - s.left_out, taken, taken == 0xffffffffu);
}
