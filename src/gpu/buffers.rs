//! Creation and copies of buffers.

use bytemuck::Pod;

use crate::gpu::context::Gpu;
use crate::layout::TABLE_FACTORS;
use crate::plan::Region;

pub(crate) fn whole(buffer: &wgpu::Buffer) -> wgpu::BufferBinding<'_> {
    wgpu::BufferBinding { buffer, offset: 0, size: None }
}

pub(crate) fn part(buffer: &wgpu::Buffer, region: Region) -> wgpu::BufferBinding<'_> {
    wgpu::BufferBinding { buffer, offset: region.start_bytes(), size: wgpu::BufferSize::new(region.bytes()) }
}

/// Creates a buffer of at least one item, so that it can be bound. wgpu fills it with zeros.
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

/// Creates the uniform buffer of the schedule tables. Only kernels with a table read it. Without a table it has the
/// smallest possible size.
pub(crate) fn table_factors(gpu: &Gpu, factors: &[f32]) -> wgpu::Buffer {
    let size = if factors.is_empty() { 4 } else { u64::from(TABLE_FACTORS) * 4 };
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("tables of schedules"),
        size,
        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(factors));
    buffer
}

pub(crate) fn filled<T: Pod>(gpu: &Gpu, label: &str, items: &[T]) -> wgpu::Buffer {
    let buffer = zeroed::<T>(gpu, label, items.len() as u64);
    gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(items));
    buffer
}
