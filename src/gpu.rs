//! The device path: the four passes on a [`wgpu::Device`], which the caller provides or this crate creates.

mod buffers;
pub(crate) mod context;
pub(crate) mod controllers;
mod factored;
mod finish_reduction;
mod finish_update;
mod learning_rate;
mod limits;
mod look;
pub(crate) mod optimizer;
mod orthogonalize;
pub(crate) mod pass;
mod readback;
mod reduce_gradient;
mod rows;
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
pub(crate) mod whole_step;
pub(crate) mod zeroth_order;

/// WGSL of the structs in [`Optimizer::controls_buffer`](crate::Optimizer::controls_buffer), including the padding between them. Put it before the
/// source of a kernel that sets controls.
///
/// ```wgsl
/// @group(0) @binding(0) var<storage, read_write> controls: array<GroupControls>;
/// @group(0) @binding(1) var<storage, read> factors: array<f32>;
///
/// @compute @workgroup_size(1)
/// fn set_factor(@builtin(global_invocation_id) id: vec3<u32>) {
///     controls[id.x].learning_rate_factor = factors[id.x];
/// }
/// ```
pub const CONTROLS_WGSL: &str = include_str!("../shaders/group_controls.wgsl");

pub use tensor::{ElementSlice, Tensor};
pub use tune::{Candidate, TuneOptions, TuneReport};
pub use tuning::{Partials, Tuning};
#[cfg(feature = "tuning-cache")]
pub use tuning_cache::TuningCache;
