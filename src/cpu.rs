//! The CPU path: the same four passes over slices, blocked as the kernels are. It is what the device is checked against, and
//! what runs where no device is.

mod average;
mod controls;
pub(crate) mod count_steps;
mod factored;
mod finish_reduction;
mod finish_update;
pub(crate) mod half;
mod learning_rate;
pub(crate) mod optimizer;
mod orthogonalize;
mod outliers;
mod reduce_gradient;
mod rows;
pub(crate) mod schedule;
pub(crate) mod schedule_free;
pub(crate) mod state;
mod tensor;
mod update_parameters;
pub(crate) mod values;

pub use tensor::Tensor;
pub use values::{Values, ValuesMut};

/// Elements of a block: small enough for the first-level cache, large enough that handing it to a thread costs nothing.
pub(crate) const BLOCK_ELEMENTS: u32 = 4096;
