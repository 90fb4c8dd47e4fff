// Adding up what pass 4 measures of a step.

import package::layout::StepSums;
import package::reduction::totals::add_squares;

// The exponents of what is not finite: above all others, so that they are those of any sum with it.
const INFINITE_EXPONENT = 0x10000;
const NAN_EXPONENT = 0x20000;

fn add_step_sums(a: StepSums, b: StepSums) -> StepSums {
    return StepSums(
        add_squares(a.parameters, b.parameters),
        add_squares(a.step, b.step),
        max(a.overflow_key, b.overflow_key),
    );
}
