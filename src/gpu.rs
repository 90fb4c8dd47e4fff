//! The device path: the four passes on a [`wgpu::Device`], yours or ours.

mod context;
mod finish_reduction;
mod lagged_step;
mod learning_rate;
mod optimizer;
mod pass;
mod readback;
mod reduce_gradient;
mod tensor;
mod tuning;
mod undo_step;
mod update_parameters;

pub use context::{Gpu, GpuOptions};
pub use optimizer::{Dispatch, Optimizer, PassName};
pub use tensor::Tensor;
pub use tuning::{Partials, Tuning};
