//! Dispatches over two slices of every tensor, for the controllers that combine them element by element.

use bytemuck::bytes_of;

use crate::controllers::element_pairs::{ElementPair, check_count, check_length};
use crate::element::Element;
use crate::error::{BuildError, Error};
use crate::gpu::buffers::{part, zeroed};
use crate::gpu::context::Gpu;
use crate::gpu::limits::{binding_alignment, largest_binding};
use crate::gpu::optimizer::Optimizer;
use crate::gpu::pass::{Binding, BoundGroup, PassSource, Pipeline, flag};
use crate::gpu::tensor::Tensor;
use crate::group::TensorSlice;
use crate::plan::Region;

const WORKGROUP: u64 = 256;

/// Names of the slices in messages.
pub(super) type Roles = [&'static str; 2];

/// A kernel with a switch. It has one pipeline with the switch set and one without.
pub(super) struct Switched {
    pub(super) module: &'static str,
    pub(super) stem: &'static str,
    pub(super) switch: &'static str,
    /// Name of the memory of 4 bytes per element.
    pub(super) memory: &'static str,
}

/// Both slices of every non-empty tensor, and a memory of 4 bytes per element.
#[derive(Debug)]
pub(super) struct Pairs {
    gpu: Gpu,
    /// Pipelines with the switch, and without it.
    pipelines: [Pipeline; 2],
    /// Bind groups and number of workgroups of each tensor.
    tensors: Vec<([BoundGroup; 2], u32)>,
}

impl Pairs {
    /// Checks the slices, one pair for each tensor of the optimizer, and binds them. `tables` are bound after the
    /// memory.
    pub(super) fn new<'a>(
        optimizer: &Optimizer,
        kernel: &Switched,
        slices: &[[wgpu::BufferSlice; 2]],
        roles: Roles,
        tables: &[wgpu::BufferBinding<'a>],
    ) -> Result<Self, Error> {
        let gpu = optimizer.gpu();
        gpu.check_alive()?;
        let plan = &optimizer.plan;
        let limits = gpu.device().limits();
        check_count(plan, roles[0], slices.len())?;
        let tensors: Vec<[Tensor; 2]> = slices.iter().map(|pair| pair.map(TensorSlice::tensor)).collect();
        for (index, pair) in tensors.iter().enumerate() {
            let name = &plan.tensors[index].name;
            for (tensor, role) in pair.iter().zip(roles) {
                tensor.check(name, role)?;
                check_length(plan, index, role, tensor.elements())?;
                check_binding(name, role, tensor.elements(), &limits)?;
            }
            check_apart(name, pair, roles)?;
        }
        let bindings: Vec<Binding> = [Binding::Uniform, Binding::Write, Binding::Write, Binding::Write]
            .into_iter()
            .chain(tables.iter().map(|_| Binding::Read))
            .collect();
        gpu.scoped(kernel.memory, || {
            let pipelines = [true, false].map(|set| {
                let source = PassSource {
                    module: kernel.module,
                    stem: kernel.stem,
                    features: &[],
                    constants: &[("WORKGROUP", WORKGROUP as f64), flag(kernel.switch, set)],
                    groups: &[&bindings],
                };
                Pipeline::new(gpu, &source)
            });
            let alignment = binding_alignment(&limits) / Element::F32.bytes();
            let mut bound = Vec::with_capacity(tensors.len());
            for (info, pair) in plan.tensors.iter().zip(&tensors).filter(|(info, _)| info.elements > 0) {
                // A binding may only start at certain offsets.
                let start = |tensor: &Tensor| tensor.start() / alignment * alignment;
                let region = |tensor: &Tensor| {
                    let (element, end) = (tensor.element, tensor.start() + info.elements);
                    Region { buffer: 0, element, start: start(tensor), end }
                };
                let [first, second] = pair.each_ref().map(|tensor| (tensor.start() - start(tensor)) as u32);
                let place = ElementPair { first, second, elements: info.elements as u32, group: info.group as u32 };
                let uniform = gpu.device().create_buffer(&wgpu::BufferDescriptor {
                    label: Some("two slices of a tensor"),
                    size: size_of::<ElementPair>() as u64,
                    usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                });
                gpu.queue().write_buffer(&uniform, 0, bytes_of(&place));
                let memory = zeroed::<f32>(gpu, kernel.memory, info.elements);
                let mut buffers = vec![uniform.as_entire_buffer_binding()];
                buffers.extend(pair.iter().map(|tensor| part(&tensor.buffer, region(tensor))));
                buffers.push(memory.as_entire_buffer_binding());
                buffers.extend(tables.iter().cloned());
                let groups = pipelines.each_ref().map(|pipeline| pipeline.bind(gpu.device(), 0, &buffers));
                let most = u64::from(limits.max_compute_workgroups_per_dimension);
                bound.push((groups, info.elements.div_ceil(WORKGROUP).min(most) as u32));
            }
            Ok(Pairs { gpu: gpu.clone(), pipelines, tensors: bound })
        })
    }

    /// Records the kernel for every tensor, with or without the switch, in a compute pass of its own.
    pub(super) fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        label: &'static str,
        switch: bool,
    ) -> Result<(), Error> {
        self.gpu.check_alive()?;
        let which = usize::from(!switch);
        let mut pass =
            encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes: None });
        pass.set_pipeline(&self.pipelines[which].pipeline);
        for (groups, workgroups) in &self.tensors {
            pass.set_bind_group(0, &*groups[which], &[]);
            pass.dispatch_workgroups(*workgroups, 1, 1);
        }
        Ok(())
    }
}

fn check_binding(name: &str, role: &str, elements: u64, limits: &wgpu::Limits) -> Result<(), Error> {
    // The binding may begin before the slice.
    let (value, limit) = (4 * elements + binding_alignment(limits), largest_binding(limits));
    if value <= limit {
        return Ok(());
    }
    Err(Error::from(BuildError::Limit {
        what: format!("the number of bytes of a binding of the {role} slice of tensor \"{name}\""),
        value,
        limit,
        way_out: "divide the tensor into smaller ones",
    }))
}

/// Returns an error if the two slices of a tensor share elements.
fn check_apart(name: &str, [first, second]: &[Tensor; 2], roles: Roles) -> Result<(), Error> {
    let range = |tensor: &Tensor| [4 * tensor.start(), 4 * (tensor.start() + tensor.elements())];
    let ([first_start, first_end], [second_start, second_end]) = (range(first), range(second));
    let (start, end) = (first_start.max(second_start), first_end.min(second_end));
    if first.buffer != second.buffer || start >= end {
        return Ok(());
    }
    let [first, second] = roles.map(|role| format!("the {role}s of tensor \"{name}\""));
    Err(Error::from(BuildError::Overlap { first, second, start, end }))
}
