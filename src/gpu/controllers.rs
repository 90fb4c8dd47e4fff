//! Controllers on the device. Each records its own small kernels beside the optimizer's step. The passes of the step do not depend on them.

pub(crate) mod bi_level;
mod element_pairs;
pub(crate) mod extragradient;
mod kept_copy;
pub(crate) mod learned_schedule;
mod products;
pub(crate) mod variance_reduction;
pub(crate) mod watchdog;

use crate::error::{CallError, Error};
use crate::gpu::buffers::part;
use crate::gpu::context::Gpu;
use crate::gpu::limits::{binding_alignment, largest_binding};
use crate::gpu::optimizer::{Dispatch, Optimizer, PassName};
use crate::gpu::pass::{Binding, PassSource, Pipeline};
use crate::layout::GroupState;
use crate::plan::{Place, Region};

/// Invocations of a workgroup.
const WORKGROUP: u32 = crate::controllers::products::LANES as u32;

/// Compiles a kernel of `shaders/controllers/`.
fn pipeline(
    gpu: &Gpu,
    module: &'static str,
    stem: &'static str,
    features: &[&str],
    constants: &[(&str, f64)],
    bindings: &[Binding],
) -> Pipeline {
    let own = [("WORKGROUP", f64::from(WORKGROUP))];
    let constants = [if stem == "add_loss" { &[][..] } else { &own }, constants].concat();
    let source = PassSource { module, stem, features, constants: &constants, groups: &[bindings] };
    Pipeline::new(gpu, &source)
}

/// Binds a kernel.
fn dispatch(gpu: &Gpu, pipeline: &Pipeline, buffers: &[wgpu::BufferBinding], workgroups: u32) -> Dispatch {
    Dispatch {
        pass: PassName::Control,
        bind_groups: vec![pipeline.bind(gpu.device(), 0, buffers)],
        pipeline: pipeline.pipeline.clone(),
        workgroups,
    }
}

/// A part of a tensor that bindings hold, in elements from the tensor's start on.
#[derive(Clone, Copy)]
struct Part<'a> {
    place: &'a Place,
    first: u64,
    elements: u64,
}

impl Part<'_> {
    /// Returns the binding of the parameters or gradients, and the word in it at which they begin.
    fn bind<'b>(&self, optimizer: &'b Optimizer, gradients: bool) -> (wgpu::BufferBinding<'b>, u32) {
        let Place { params, params_buffer, params_start, grads, grads_buffer, grads_start, .. } = *self.place;
        let (element, buffer, start) =
            if gradients { (grads, grads_buffer, grads_start) } else { (params, params_buffer, params_start) };
        let start = start + self.first;
        let alignment = binding_alignment(&optimizer.gpu.device().limits()) / element.bytes();
        let aligned = start / alignment * alignment;
        // A binding consists of whole words.
        let end = (start + self.elements).next_multiple_of(4 / element.bytes());
        let region = Region { buffer, element, start: aligned, end };
        let word = (start - aligned) * element.bytes() / 4;
        (part(&optimizer.kept.buffers[buffer], region), word as u32)
    }
}

/// Returns the parts of a tensor, each with at most `rows` rows of elements.
fn parts_of<'a>(optimizer: &Optimizer, place: &'a Place) -> impl Iterator<Item = Part<'a>> {
    let limits = optimizer.gpu.device().limits();
    let row = u64::from(crate::controllers::products::PRODUCT_ROW);
    let bytes = largest_binding(&limits) - binding_alignment(&limits);
    let rows = (bytes / 4 / row).min(u64::from(limits.max_compute_workgroups_per_dimension));
    let most = rows.max(1) * row;
    let firsts = (0..place.elements).step_by(most as usize);
    firsts.map(move |first| Part { place, first, elements: most.min(place.elements - first) })
}

/// Checks that this is the controller's optimizer, and that its averages are not swapped in.
fn check_same(optimizer: &Optimizer, states: &wgpu::Buffer, call: &'static str) -> Result<(), Error> {
    optimizer.gpu.check_alive()?;
    optimizer.check_averages_in_place("a controller's call")?;
    if optimizer.states != *states {
        return Err(Error::from(CallError::Controller {
            call,
            problem: "was given another optimizer than the one it was made for".to_owned(),
            way_out: "make a controller for each optimizer".to_owned(),
        }));
    }
    Ok(())
}

/// Returns an error for optimizers whose buffers may move.
fn check_fixed(optimizer: &Optimizer, call: &'static str) -> Result<(), Error> {
    optimizer.gpu.check_alive()?;
    optimizer.plan.check_controllable(call)?;
    if optimizer.is_rebindable() {
        return Err(Error::from(CallError::Controller {
            call,
            problem: "cannot work with an optimizer whose buffers move".to_owned(),
            way_out: "build it without OptimizerBuilder::rebindable".to_owned(),
        }));
    }
    Ok(())
}

/// Number of workgroups of a kernel over the groups' states.
fn group_workgroups(optimizer: &Optimizer) -> u32 {
    (optimizer.states.size() / size_of::<GroupState>() as u64).div_ceil(u64::from(WORKGROUP)) as u32
}

/// Creates a uniform buffer.
fn uniform<T: bytemuck::Pod>(gpu: &Gpu, label: &str, value: &T) -> wgpu::Buffer {
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: (size_of::<T>() as u64).next_multiple_of(16),
        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    gpu.queue().write_buffer(&buffer, 0, bytemuck::bytes_of(value));
    buffer
}

/// Records dispatches in a compute pass of their own.
fn record(encoder: &mut wgpu::CommandEncoder, label: &str, dispatches: &[Dispatch]) {
    let mut pass =
        encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes: None });
    for dispatch in dispatches {
        dispatch.encode(&mut pass);
    }
}
