//! What is measured, by `wgpu-optim bench` and by the benches alike: the work, memory on the host and on devices that it is done over, and how its time
//! is taken.

pub mod device;
pub mod host;
pub mod measure;
pub mod workload;
