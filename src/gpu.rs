//! The device path: the four passes on a [`wgpu::Device`], yours or ours.

mod buffers;
mod context;
mod finish_reduction;
mod finish_update;
mod learning_rate;
mod limits;
mod optimizer;
mod pass;
mod readback;
mod reduce_gradient;
mod shader;
mod swap_averages;
mod sweep;
mod tensor;
mod timestamps;
mod tune;
mod tuning;
#[cfg(feature = "tuning-cache")]
mod tuning_cache;
mod update_parameters;

pub use context::{DEFAULT_READBACK_TIMEOUT, Gpu, GpuOptions};
pub use optimizer::{Dispatch, Optimizer, PassName};
pub use pass::{BoundBuffer, BoundGroup, CompiledKernel, KernelSource};
#[doc(hidden)]
pub use shader::link;
pub use tensor::{ElementSlice, Tensor};
pub use timestamps::Timestamps;
pub use tune::{Candidate, TuneOptions, TuneReport};
pub use tuning::{Partials, Tuning};
#[cfg(feature = "tuning-cache")]
pub use tuning_cache::{CACHE_VARIABLE, TuningCache};
