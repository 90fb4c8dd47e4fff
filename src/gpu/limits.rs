//! What a device allows, in the optimizer's terms.

/// Trips of a loop that are safe: some drivers stop an invocation in silence after 65,535.
pub(crate) const MOST_TRIPS: u64 = 60_000;

/// Bytes that one binding can hold: 4 GiB at most, so that indices within it fit 32 bits with room to spare.
pub(crate) fn largest_binding(limits: &wgpu::Limits) -> u64 {
    limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(1 << 32)
}

/// What the start of a binding is a multiple of, in bytes.
pub(crate) fn binding_alignment(limits: &wgpu::Limits) -> u64 {
    u64::from(limits.min_storage_buffer_offset_alignment.max(16))
}
