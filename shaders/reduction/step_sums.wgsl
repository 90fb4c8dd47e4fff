// Adds up the sums that pass 4 measures of a step.

import package::layout::StepSums;
import package::reduction::totals::add_squares;

// Exponent of sums that are not finite. It is above all others, so that every total with such a sum has it.
const INFINITE_EXPONENT = 0x10000;
const NAN_EXPONENT = 0x20000;

fn add_step_sums(a: StepSums, b: StepSums) -> StepSums {
    return StepSums(
        add_squares(a.parameters, b.parameters),
        add_squares(a.step, b.step),
        max(a.overflow_key, b.overflow_key),
    );
}
