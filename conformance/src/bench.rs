//! Measurements that `wgpu-optim bench` and the benchmarks share: the work, its memory on the host and on devices, and
//! the timing.

pub mod device;
pub mod host;
pub mod measure;
pub mod workload;
