//! Buffers, whole and in part.

use bytemuck::Pod;

use crate::gpu::context::Gpu;
use crate::plan::Region;

pub(crate) fn whole(buffer: &wgpu::Buffer) -> wgpu::BufferBinding<'_> {
    wgpu::BufferBinding { buffer, offset: 0, size: None }
}

pub(crate) fn part(buffer: &wgpu::Buffer, region: Region) -> wgpu::BufferBinding<'_> {
    wgpu::BufferBinding { buffer, offset: region.start_bytes(), size: wgpu::BufferSize::new(region.bytes()) }
}

/// A buffer of at least one item, so that it can be bound; wgpu fills it with zeros.
pub(crate) fn zeroed<T>(gpu: &Gpu, label: &str, items: u64) -> wgpu::Buffer {
    #[cfg(test)]
    let items = crate::faults::asked_for(items);
    gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: (items.max(1) * std::mem::size_of::<T>() as u64).next_multiple_of(16),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

pub(crate) fn filled<T: Pod>(gpu: &Gpu, label: &str, items: &[T]) -> wgpu::Buffer {
    let buffer = zeroed::<T>(gpu, label, items.len() as u64);
    gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(items));
    buffer
}
