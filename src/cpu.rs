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
pub(crate) mod zeroth_order;

pub use tensor::Tensor;
pub use values::{Values, ValuesMut};

use crate::plan::Geometry;

/// Elements of a block: small enough for the first-level cache, large enough that handing it to a thread costs nothing.
pub(crate) const BLOCK_ELEMENTS: u32 = 4096;

/// Returns the geometry of a plan of the CPU path, which has no limits of a device. `joins` is true if neighbouring tensors
/// may share blocks.
pub(crate) fn geometry(joins: bool) -> Geometry {
    Geometry {
        block_elements: BLOCK_ELEMENTS,
        partials_per_block: 1,
        binding_elements: u64::MAX,
        binding_alignment: 4,
        dispatch_blocks: u32::MAX,
        scope_partials: u64::MAX,
        quads_need_alignment: false,
        movable: false,
        joins,
        one_access: false,
    }
}
