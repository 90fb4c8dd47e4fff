//! What a device allows, in the optimizer's terms.

use crate::error::{BuildError, Error};

/// Trips of a loop that are safe: some drivers stop an invocation in silence after 65,535.
pub(crate) const MOST_TRIPS: u64 = 60_000;

/// Storage buffers of the pass that computes the learning rates, which every optimizer has.
const FEWEST_STORAGE_BUFFERS: u32 = 7;

/// Bytes below which a binding holds too few elements for a block.
const SMALLEST_BINDING: u64 = 16 << 10;

/// Refuses a device on which no optimizer can run, such as one with [`wgpu::Limits::downlevel_webgl2_defaults`]. To be called before anything
/// is planned, because blocks are cut by these limits.
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

/// Bytes that one binding can hold: 4 GiB at most, so that indices within it fit 32 bits with room to spare.
pub(crate) fn largest_binding(limits: &wgpu::Limits) -> u64 {
    limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(1 << 32)
}

/// What the start of a binding is a multiple of, in bytes.
pub(crate) fn binding_alignment(limits: &wgpu::Limits) -> u64 {
    u64::from(limits.min_storage_buffer_offset_alignment.max(16))
}
