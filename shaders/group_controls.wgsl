// A group's controls, for kernels of the caller: what a step reads when it runs. Written by a test from src/layout.rs.

struct GroupControls {
    learning_rate_factor: f32,
    gradient_factor: f32,
    weight_decay: f32,
    clip_norm: f32,
    frozen: u32,
    present: u32,
    reserved: array<u32, 48>,
}
