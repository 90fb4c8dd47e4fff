// Result of a step, before it is known whether the numbers are in the range of their types.

struct Moved {
    parameters: vec4<f32>,
    beside: vec4<f32>,  // the momentum, or z of schedule-free training; 0 where the rule keeps neither
}
