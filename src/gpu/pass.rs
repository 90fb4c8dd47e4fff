//! What the four passes have in common on the host: shader sources, layouts, pipelines, bind groups. All of it is set-up.

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::gpu::context::Gpu;

/// Shader files that several passes share.
pub(crate) mod shared {
    pub(crate) const LAYOUT: &str = include_str!("../../shaders/shared/layout.wgsl");
    pub(crate) const SCALED: &str = include_str!("../../shaders/shared/scaled.wgsl");
    pub(crate) const TOTALS: &str = include_str!("../../shaders/shared/totals.wgsl");
    pub(crate) const SCALED_SQUARES: &str = include_str!("../../shaders/shared/scaled_squares.wgsl");
    pub(crate) const STEP_SUMS: &str = include_str!("../../shaders/shared/step_sums.wgsl");
    pub(crate) const MEASURE_STEP: &str = include_str!("../../shaders/shared/measure_step.wgsl");
    pub(crate) const MEASURE_NO_STEP: &str = include_str!("../../shaders/shared/measure_no_step.wgsl");
    pub(crate) const SWEEP_AGAIN: &str = include_str!("../../shaders/shared/sweep_again.wgsl");
    pub(crate) const ALIGNMENT: &str = include_str!("../../shaders/shared/alignment.wgsl");
    pub(crate) const PARTIALS: &str = include_str!("../../shaders/shared/partials.wgsl");
    pub(crate) const RULE: &str = include_str!("../../shaders/shared/rule.wgsl");
    pub(crate) const MEASURE_MOMENTUM: &str = include_str!("../../shaders/shared/measure_momentum.wgsl");
    pub(crate) const MEASURE_COUNTERS: &str = include_str!("../../shaders/shared/measure_counters.wgsl");
    pub(crate) const MEASURE_SECANT: &str = include_str!("../../shaders/shared/measure_secant.wgsl");
    pub(crate) const MEASURE_ITERATES: &str = include_str!("../../shaders/shared/measure_iterates.wgsl");
    pub(crate) const MEASURE_DISTANCE: &str = include_str!("../../shaders/shared/measure_distance.wgsl");
    pub(crate) const KEEP_PARAMETERS: &str = include_str!("../../shaders/shared/keep_parameters.wgsl");
    pub(crate) const STORE_MOVED: &str = include_str!("../../shaders/shared/store_moved.wgsl");
    pub(crate) const STORE_EXCHANGED: &str = include_str!("../../shaders/shared/store_exchanged.wgsl");
    pub(crate) const KEEP_COUNTERS: &str = include_str!("../../shaders/shared/keep_counters.wgsl");
    pub(crate) const KEEP_GRADIENT: &str = include_str!("../../shaders/shared/keep_gradient.wgsl");
    pub(crate) const MOVE_PARAMETERS: &str = include_str!("../../shaders/shared/move_parameters.wgsl");
    pub(crate) const SCHEDULE_FREE: &str = include_str!("../../shaders/shared/schedule_free.wgsl");
    pub(crate) const MOVE_SCHEDULE_FREE: &str = include_str!("../../shaders/shared/move_schedule_free.wgsl");
    pub(crate) const AVERAGE: &str = include_str!("../../shaders/shared/average.wgsl");
    pub(crate) const NO_AVERAGE: &str = include_str!("../../shaders/shared/no_average.wgsl");
    pub(crate) const TREE: &str = include_str!("../../shaders/shared/tree.wgsl");
    pub(crate) const COUNTERS: &str = include_str!("../../shaders/shared/counters.wgsl");
    pub(crate) const LOAD_QUADS: &str = include_str!("../../shaders/shared/load_quads.wgsl");
    pub(crate) const LOAD_SCALARS: &str = include_str!("../../shaders/shared/load_scalars.wgsl");
    pub(crate) const STORE_QUADS: &str = include_str!("../../shaders/shared/store_quads.wgsl");
    pub(crate) const STORE_SCALARS: &str = include_str!("../../shaders/shared/store_scalars.wgsl");
    pub(crate) const LOAD_HALF_QUADS: &str = include_str!("../../shaders/shared/load_half_quads.wgsl");
    pub(crate) const LOAD_HALF_SCALARS: &str = include_str!("../../shaders/shared/load_half_scalars.wgsl");
    pub(crate) const STORE_HALF_QUADS: &str = include_str!("../../shaders/shared/store_half_quads.wgsl");
    pub(crate) const STORE_HALF_SCALARS: &str = include_str!("../../shaders/shared/store_half_scalars.wgsl");
    pub(crate) const HALF: &str = include_str!("../../shaders/shared/half.wgsl");
    pub(crate) const HALF_GRADIENTS: &str = include_str!("../../shaders/shared/half_gradients.wgsl");
    pub(crate) const HALF_MASTERS: &str = include_str!("../../shaders/shared/half_masters.wgsl");
    pub(crate) const STORE_NEAREST: &str = include_str!("../../shaders/shared/store_nearest.wgsl");
    pub(crate) const STORE_STOCHASTIC: &str = include_str!("../../shaders/shared/store_stochastic.wgsl");
    pub(crate) const STORE_MASTERS: &str = include_str!("../../shaders/shared/store_masters.wgsl");
    pub(crate) const CLEAR_GRADIENTS: &str = include_str!("../../shaders/shared/clear_gradients.wgsl");
    pub(crate) const CLEAR_HALF_GRADIENTS: &str = include_str!("../../shaders/shared/clear_half_gradients.wgsl");
    pub(crate) const LEAVE_GRADIENTS: &str = include_str!("../../shaders/shared/leave_gradients.wgsl");
    pub(crate) const RANDOM_BITS: &str = include_str!("../../shaders/shared/random_bits.wgsl");
    pub(crate) const EMIT_PER_INVOCATION: &str = include_str!("../../shaders/shared/emit_per_invocation.wgsl");
    pub(crate) const EMIT_PER_WORKGROUP: &str = include_str!("../../shaders/shared/emit_per_workgroup.wgsl");
    pub(crate) const EMIT_PER_SUBGROUP: &str = include_str!("../../shaders/shared/emit_per_subgroup.wgsl");
    /// What a browser wants at the head of a module with subgroup operations, and naga refuses.
    pub(crate) const ENABLE_SUBGROUPS: &str = if cfg!(target_arch = "wasm32") { "enable subgroups;" } else { "" };
}

/// How a storage buffer is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Binding {
    Read,
    Write,
    /// The shader does not have it: its number is left out, and what is given for it is not bound. Devices count what is bound.
    Absent,
}

/// A shader to be compiled: files, overrides, and the storage buffers of each bind group.
pub(crate) struct PassSource<'a> {
    /// The pass's stem: entry point and label.
    pub(crate) stem: &'static str,
    /// The files that make up the module.
    pub(crate) files: &'a [&'a str],
    /// Values of the `override` constants.
    pub(crate) constants: &'a [(&'a str, f64)],
    /// Buffers by bind group, in the order of their binding numbers.
    pub(crate) groups: &'a [&'a [Binding]],
}

/// What a kernel is compiled from: all that a host other than this crate needs of it, as the page in `examples/web` does.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelSource {
    /// The whole module. Browsers want the line `enable subgroups;` before it where it has subgroup operations, which wgpu refuses.
    pub wgsl: String,
    /// The entry point.
    pub entry_point: &'static str,
    /// Values of the `override` constants.
    pub constants: Vec<(String, f64)>,
}

/// A compiled kernel. It stands for its pipeline wherever one is asked for.
#[derive(Debug, Clone)]
pub struct CompiledKernel {
    pipeline: wgpu::ComputePipeline,
    source: Arc<KernelSource>,
}

impl CompiledKernel {
    /// What it is compiled from.
    pub fn source(&self) -> &KernelSource {
        &self.source
    }
}

impl std::ops::Deref for CompiledKernel {
    type Target = wgpu::ComputePipeline;

    fn deref(&self) -> &wgpu::ComputePipeline {
        &self.pipeline
    }
}

/// A storage buffer, or a part of one, that a kernel is given.
#[derive(Debug, Clone)]
pub struct BoundBuffer {
    /// Its binding number.
    pub binding: u32,
    /// The buffer.
    pub buffer: wgpu::Buffer,
    /// The first byte.
    pub offset_bytes: u64,
    /// How many bytes.
    pub size_bytes: u64,
    /// Whether the kernel only reads it.
    pub read_only: bool,
}

/// A bind group, and what is in it: the buffers by binding. It stands for its bind group wherever one is asked for.
#[derive(Debug, Clone)]
pub struct BoundGroup {
    group: wgpu::BindGroup,
    /// Shared by all clones, which a rebind makes.
    buffers: Arc<[BoundBuffer]>,
}

impl BoundGroup {
    /// The buffers, in the order of their binding numbers, some of which may be left out.
    pub fn buffers(&self) -> &[BoundBuffer] {
        &self.buffers
    }
}

impl std::ops::Deref for BoundGroup {
    type Target = wgpu::BindGroup;

    fn deref(&self) -> &wgpu::BindGroup {
        &self.group
    }
}

/// A kernel with the layouts its bind groups need.
#[derive(Debug, Clone)]
pub(crate) struct Pipeline {
    pub(crate) pipeline: CompiledKernel,
    layouts: Vec<wgpu::BindGroupLayout>,
    /// Of each bind group, how its buffers are used.
    groups: Vec<Vec<Binding>>,
    label: &'static str,
}

impl Pipeline {
    /// The compiled pass, which [`Pipelines`] keep. Errors surface in the caller's error scope.
    pub(crate) fn new(gpu: &Gpu, source: &PassSource) -> Self {
        let key = Key {
            source: Arc::new(KernelSource {
                wgsl: source.files.join("\n"),
                entry_point: source.stem,
                constants: source.constants.iter().map(|&(name, value)| (name.to_owned(), value)).collect(),
            }),
            groups: source.groups.iter().map(|group| group.to_vec()).collect(),
        };
        let kernel = Arc::clone(&key.source);
        gpu.pipelines().get(key, || Self::compile(gpu.device(), source, kernel))
    }

    fn compile(device: &wgpu::Device, source: &PassSource, kernel: Arc<KernelSource>) -> Self {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(source.stem),
            source: wgpu::ShaderSource::Wgsl(kernel.wgsl.as_str().into()),
        });
        let layouts: Vec<_> =
            source.groups.iter().map(|bindings| storage_layout(device, source.stem, bindings)).collect();
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(source.stem),
            bind_group_layouts: &layouts.iter().map(Some).collect::<Vec<_>>(),
            ..Default::default()
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(source.stem),
            layout: Some(&layout),
            module: &module,
            entry_point: Some(source.stem),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: source.constants,
                // Every shader writes its workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        Pipeline {
            pipeline: CompiledKernel { pipeline, source: kernel },
            layouts,
            groups: source.groups.iter().map(|group| group.to_vec()).collect(),
            label: source.stem,
        }
    }

    /// Binds buffers, whole or in part, to bind group `group`: those that the shader has.
    pub(crate) fn bind(&self, device: &wgpu::Device, group: usize, buffers: &[wgpu::BufferBinding]) -> BoundGroup {
        let bound = || {
            (0u32..).zip(buffers.iter().zip(&self.groups[group])).filter(|(_, (_, access))| **access != Binding::Absent)
        };
        let entries: Vec<_> = bound()
            .map(|(binding, (buffer, _))| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(buffer.clone()),
            })
            .collect();
        BoundGroup {
            group: device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(self.label),
                layout: &self.layouts[group],
                entries: &entries,
            }),
            buffers: bound()
                .map(|(number, (binding, access))| BoundBuffer {
                    binding: number,
                    buffer: binding.buffer.clone(),
                    offset_bytes: binding.offset,
                    size_bytes: binding.size.map_or(binding.buffer.size() - binding.offset, u64::from),
                    read_only: *access == Binding::Read,
                })
                .collect(),
        }
    }
}

/// The pipelines of a device by what they are compiled from, so that a second optimizer of the same kind compiles nothing.
///
/// They are kept as long as the device is. Their number is bounded by the kinds of optimizers, since no kernel is compiled for the number or
/// the size of the tensors.
#[derive(Clone, Default)]
pub(crate) struct Pipelines(Arc<Mutex<HashMap<Key, Arc<OnceLock<Pipeline>>>>>);

impl Pipelines {
    /// The pipeline of a kernel. Threads that ask for the same one compile it once.
    fn get(&self, key: Key, compile: impl FnOnce() -> Pipeline) -> Pipeline {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pipeline = Arc::clone(kept.entry(key).or_default());
        drop(kept);
        pipeline.get_or_init(compile).clone()
    }

    /// Forgets all pipelines: after an error one of them may be invalid, which wgpu does not tell of a pipeline.
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl fmt::Debug for Pipelines {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        write!(f, "Pipelines({})", kept.len())
    }
}

/// What tells one pipeline from another.
struct Key {
    source: Arc<KernelSource>,
    groups: Vec<Vec<Binding>>,
}

impl Key {
    /// The constants with their values as bits, which can be compared and hashed.
    fn constants(&self) -> impl Iterator<Item = (&str, u64)> {
        let constants = self.source.constants.iter();
        constants.map(|(name, value)| (name.as_str(), value.to_bits()))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.source.entry_point == other.source.entry_point
            && self.constants().eq(other.constants())
            && self.groups == other.groups
            && self.source.wgsl == other.source.wgsl
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.source.wgsl.hash(state);
        self.groups.hash(state);
        for constant in self.constants() {
            constant.hash(state);
        }
    }
}

fn storage_layout(device: &wgpu::Device, label: &str, bindings: &[Binding]) -> wgpu::BindGroupLayout {
    let entries: Vec<_> = bindings
        .iter()
        .enumerate()
        .filter(|(_, access)| **access != Binding::Absent)
        .map(|(binding, access)| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: *access == Binding::Read },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(label), entries: &entries })
}

/// An override constant from a flag.
pub(crate) fn flag(name: &'static str, set: bool) -> (&'static str, f64) {
    (name, if set { 1.0 } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    /// A pipeline that is not valid must not be kept: wgpu reports the error only when the pipeline is made.
    #[test]
    fn a_kernel_that_does_not_compile_is_an_error_every_time() {
        let adapters = pollster::block_on(Gpu::adapters(None));
        assert!(!adapters.is_empty(), "no adapter");
        for adapter in adapters {
            let gpu = pollster::block_on(Gpu::open(&adapter)).expect("opens");
            let build = |wgsl: &str| {
                gpu.scoped("a kernel", || {
                    let source = PassSource { stem: "kernel", files: &[wgsl], constants: &[], groups: &[] };
                    Ok::<_, Error>(Pipeline::new(&gpu, &source))
                })
            };
            for _ in 0..2 {
                let error = build("@compute @workgroup_size(1) fn kernel() { missing(); }");
                assert!(matches!(error, Err(Error::Device { .. })), "{error:?}");
            }
            build("@compute @workgroup_size(1) fn kernel() {}").expect("compiles");
        }
    }
}
