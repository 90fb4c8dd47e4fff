// Adding up what pass 4 measures of a step.

fn add_step_sums(a: StepSums, b: StepSums) -> StepSums {
    return StepSums(add_squares(a.parameters, b.parameters), add_squares(a.step, b.step));
}
