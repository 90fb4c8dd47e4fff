// Steps of Mechanic: the parameters are w_0 - D, and the displacement D = S Δ is kept, in quads like the momentum. A
// step multiplies D by the growth of the scale S and adds the rule's own step, with its weight decay. D begins at 0, so
// that it keeps small steps below the last place of the parameters.

import package::layout::Update;
import package::elements::memories::memory;

// Returns D before the step.
fn displacement(update: Update, at: u32) -> vec4<f32> {
    return select(memory[at], vec4<f32>(), vec4<bool>(update.first != 0u));
}

// Returns D after the step.
fn displaced(update: Update, last: vec4<f32>, w: vec4<f32>, direction: vec4<f32>) -> vec4<f32> {
    return update.memory_keep * last + (update.learning_rate * direction + update.memory_share * w);
}
