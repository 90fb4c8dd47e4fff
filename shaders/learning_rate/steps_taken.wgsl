// The exact number of steps that were taken. CPU twin: src/cpu/count_steps.rs.

import package::layout::GroupState;

// Steps that were not skipped, this one not counted; the largest u32 where there are more.
fn steps_taken(s: GroupState) -> u32 {
    if s.steps_high > select(0u, 1u, s.steps_low < s.skipped) {
        return 0xffffffffu;
    }
    return s.steps_low - s.skipped;
}
