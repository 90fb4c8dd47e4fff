//! Limits of a device that an optimizer depends on.

use crate::error::{BuildError, Error};

/// Largest safe number of loop iterations. Some drivers silently stop an invocation after 65,535.
pub(crate) const MOST_TRIPS: u64 = 60_000;

/// Number of storage buffers of the learning-rate pass, which every optimizer has.
const FEWEST_STORAGE_BUFFERS: u32 = 7;

/// Size in bytes of the smallest binding that holds enough elements for a block.
const SMALLEST_BINDING: u64 = 16 << 10;

/// Returns an error for a device on which no optimizer can run, such as one with
/// [`wgpu::Limits::downlevel_webgl2_defaults`]. It must be called before anything is planned, because the limits
/// determine the blocks.
pub(crate) fn check(limits: &wgpu::Limits) -> Result<(), Error> {
    let needed = [
        (
            "the number of storage buffers of a kernel",
            u64::from(FEWEST_STORAGE_BUFFERS),
            u64::from(limits.max_storage_buffers_per_shader_stage),
        ),
        ("the number of bytes of a storage buffer binding", SMALLEST_BINDING, largest_binding(limits)),
        ("the number of workgroups of a dispatch", 1, u64::from(limits.max_compute_workgroups_per_dimension)),
    ];
    for (what, value, limit) in needed {
        if value > limit {
            return Err(Error::from(BuildError::Limit {
                what: what.to_owned(),
                value,
                limit,
                way_out: "create the device with required_limits of wgpu::Limits::default() or of adapter.limits(), since compute shaders need more than the downlevel defaults",
            }));
        }
    }
    Ok(())
}

/// Returns the number of bytes that one binding can hold. It is at most 4 GiB, so that indices within a binding easily
/// fit 32 bits.
pub(crate) fn largest_binding(limits: &wgpu::Limits) -> u64 {
    limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(1 << 32)
}

/// Returns the alignment of the start of a binding in bytes.
pub(crate) fn binding_alignment(limits: &wgpu::Limits) -> u64 {
    u64::from(limits.min_storage_buffer_offset_alignment.max(16))
}
