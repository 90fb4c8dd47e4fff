//! Devices, uploads and downloads.

use wgpu_optim::gpu::{Partials, Tensor};
use wgpu_optim::{Gpu, Optimizer, OptimizerBuilder, Records, wgpu};

/// Opens a device on every adapter with compute shaders. Having none is a failure, never a skip.
pub fn adapters() -> Vec<Gpu> {
    let open = |adapter| pollster::block_on(Gpu::open(adapter)).expect("an adapter opens");
    let all: Vec<Gpu> = pollster::block_on(Gpu::adapters(None)).iter().map(open).collect();
    assert!(
        !all.is_empty(),
        "no adapter: the device tests need at least a software driver (Debian: mesa-vulkan-drivers)"
    );
    all
}

/// Returns the kinds of partial sums that the device supports.
pub fn kinds_of_partials(gpu: &Gpu) -> impl Iterator<Item = Partials> {
    let features = gpu.device().features();
    Partials::ALL.into_iter().filter(move |partials| partials.is_supported(features))
}

/// Creates a buffer with these values.
pub fn upload(gpu: &Gpu, values: &[f32]) -> wgpu::Buffer {
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("test"),
        size: (values.len().max(4) as u64 * 4).next_multiple_of(16),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(values));
    buffer
}

/// Reads the first `len` values of a buffer.
pub fn download(gpu: &Gpu, buffer: &wgpu::Buffer, len: usize) -> Vec<f32> {
    let staging = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("staging"),
        size: buffer.size(),
        usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
        mapped_at_creation: false,
    });
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
    gpu.queue().submit([encoder.finish()]);
    staging.map_async(wgpu::MapMode::Read, .., |result| result.expect("maps"));
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("polls");
    let view = staging.get_mapped_range(..).expect("mapped");
    bytemuck::pod_collect_to_vec::<u8, f32>(&view)[..len].to_vec()
}

/// Records into one encoder and submits it.
pub fn submit(gpu: &Gpu, record: impl FnOnce(&mut wgpu::CommandEncoder)) {
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    record(&mut encoder);
    gpu.queue().submit([encoder.finish()]);
}

/// Records into one compute pass and submits it.
pub fn submit_pass(gpu: &Gpu, record: impl FnOnce(&mut wgpu::ComputePass)) {
    submit(gpu, |encoder| record(&mut encoder.begin_compute_pass(&Default::default())));
}

/// Records and submits one step.
pub fn step(gpu: &Gpu, optimizer: &Optimizer) {
    submit(gpu, |encoder| optimizer.encode_step(encoder).expect("alive"));
}

/// Drains all records so far.
pub fn drain(optimizer: &mut Optimizer) -> Records {
    pollster::block_on(optimizer.drain_records()).expect("records arrive")
}

/// Builds an optimizer from a builder that is known to be valid.
pub fn build(builder: OptimizerBuilder<Tensor>, gpu: &Gpu) -> Optimizer {
    builder.build(gpu).expect("builds")
}

/// Creates the compute pipeline of a module with one entry point. The layout follows from its bindings.
pub fn pipeline(gpu: &Gpu, source: &str) -> wgpu::ComputePipeline {
    let device = gpu.device();
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(source.into()),
    });
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: Default::default(),
        cache: None,
    })
}

/// Kernel of a caller, with storage buffers by binding. It writes the last one.
pub struct Kernel {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
}

impl Kernel {
    /// Creates a kernel with these storage buffers, in the order of their bindings.
    pub fn new(gpu: &Gpu, source: &str, buffers: &[&wgpu::Buffer]) -> Self {
        let device = gpu.device();
        let pipeline = pipeline(gpu, source);
        let entries: Vec<_> = buffers
            .iter()
            .enumerate()
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding: binding as u32,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        Kernel { pipeline, bind_group }
    }

    /// Records one workgroup of the kernel.
    pub fn dispatch(&self, pass: &mut wgpu::ComputePass) {
        self.dispatch_many(pass, 1);
    }

    /// Records this many workgroups of the kernel.
    pub fn dispatch_many(&self, pass: &mut wgpu::ComputePass, workgroups: u32) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(workgroups, 1, 1);
    }
}

/// Creates a storage buffer of this size in bytes, with additional usages.
pub fn storage(gpu: &Gpu, size: u64, more: wgpu::BufferUsages) -> wgpu::Buffer {
    gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("storage"),
        size,
        usage: wgpu::BufferUsages::STORAGE | more,
        mapped_at_creation: false,
    })
}

/// Opens a device with changed limits on each adapter.
pub fn limited_devices(change: impl Fn(&mut wgpu::Limits)) -> Vec<Gpu> {
    let open = |adapter: &wgpu::Adapter| {
        let mut required_limits = adapter.limits();
        change(&mut required_limits);
        let descriptor = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
        let opened = pollster::block_on(adapter.request_device(&descriptor));
        let (device, queue) = opened.expect("a device with less than the adapter has");
        Gpu::from_parts(device, queue)
    };
    pollster::block_on(Gpu::adapters(None)).iter().map(open).collect()
}

/// Opens a device on each adapter whose bindings are limited to this many bytes.
pub fn small_bindings(bytes: u64) -> Vec<Gpu> {
    limited_devices(|limits| limits.max_storage_buffer_binding_size = bytes)
}
