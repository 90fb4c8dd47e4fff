//! The CPU path: the same four passes over slices, in blocks as in the kernels. The device is tested against it, and it runs
//! on machines without a device.

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

/// Number of elements of a block. It is small enough for the first-level cache, and large enough that handing a block to a
/// thread costs nothing.
pub(crate) const BLOCK_ELEMENTS: u32 = 4096;

/// Returns the geometry of a plan of the CPU path, which has no device limits. `joins` is true if neighbouring tensors may
/// share blocks.
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
