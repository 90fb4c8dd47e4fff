//! The device path: the four passes on a [`wgpu::Device`], yours or ours.

mod buffers;
pub(crate) mod context;
mod finish_reduction;
mod finish_update;
mod learning_rate;
mod limits;
pub(crate) mod optimizer;
pub(crate) mod pass;
mod readback;
mod reduce_gradient;
pub(crate) mod shader;
mod swap_averages;
mod sweep;
mod tensor;
pub(crate) mod timestamps;
mod tune;
mod tuning;
#[cfg(feature = "tuning-cache")]
pub(crate) mod tuning_cache;
mod update_parameters;

pub use tensor::{ElementSlice, Tensor};
pub use tune::{Candidate, TuneOptions, TuneReport};
pub use tuning::{Partials, Tuning};
#[cfg(feature = "tuning-cache")]
pub use tuning_cache::TuningCache;
