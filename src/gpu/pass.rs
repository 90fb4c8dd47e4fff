//! Common set-up of all passes on the host: shader sources, layouts, pipelines, bind groups.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::gpu::context::Gpu;
use crate::gpu::shader::link;

/// How a buffer is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Binding {
    /// A storage buffer that is only read.
    Read,
    /// A storage buffer.
    Write,
    Uniform,
    /// The shader does not have this buffer. Its binding number is left out, and the buffer is not bound, because devices limit the number of
    /// bound buffers.
    Absent,
}

/// A shader to be compiled: files, overrides, and the buffers of each bind group.
pub(crate) struct PassSource<'a> {
    /// The WGSL module that has the entry point.
    pub(crate) module: &'static str,
    /// The entry point, and the label.
    pub(crate) stem: &'static str,
    /// Features that the module is linked with.
    pub(crate) features: &'a [&'a str],
    /// Values of the `override` constants.
    pub(crate) constants: &'a [(&'a str, f64)],
    /// Buffers by bind group, in the order of their binding numbers.
    pub(crate) groups: &'a [&'a [Binding]],
}

/// Source of a kernel, with everything that another host needs to compile it. The page in `tests/page` is such a host.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelSource {
    /// The whole module. If it has subgroup operations, browsers require the line `enable subgroups;` before it. wgpu refuses that line.
    pub wgsl: String,
    /// The entry point.
    pub entry_point: &'static str,
    /// Values of the `override` constants.
    pub constants: Vec<(String, f64)>,
}

/// A compiled kernel. It dereferences to its pipeline.
#[derive(Debug, Clone)]
pub struct CompiledKernel {
    pipeline: wgpu::ComputePipeline,
    source: Arc<KernelSource>,
}

impl CompiledKernel {
    /// Returns the source that the kernel is compiled from.
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

/// Buffer, or part of a buffer, that is bound to a kernel.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BoundBuffer {
    /// Binding number.
    pub binding: u32,
    /// The buffer.
    pub buffer: wgpu::Buffer,
    /// The first byte.
    pub offset_bytes: u64,
    /// Number of bytes.
    pub size_bytes: u64,
    /// True if the kernel only reads the buffer.
    pub read_only: bool,
    /// True if the buffer is bound as a uniform buffer, and not as a storage buffer.
    pub uniform: bool,
}

/// A bind group and its buffers by binding number. It dereferences to its bind group.
#[derive(Debug, Clone)]
pub struct BoundGroup {
    group: wgpu::BindGroup,
    /// Shared by all clones. A rebind clones bind groups.
    buffers: Arc<[BoundBuffer]>,
}

impl BoundGroup {
    /// Returns the buffers, in the order of their binding numbers. Some numbers may be left out.
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
    /// Use of the buffers of each bind group.
    groups: Vec<Vec<Binding>>,
    label: &'static str,
}

impl Pipeline {
    /// Returns the compiled pass, which [`Pipelines`] keep. Errors are reported in the caller's error scope.
    pub(crate) fn new(gpu: &Gpu, source: &PassSource) -> Self {
        let key = Key {
            module: source.module,
            features: source.features.iter().map(|&feature| feature.to_owned()).collect(),
            constants: source.constants.iter().map(|&(name, value)| (name.to_owned(), value.to_bits())).collect(),
            groups: source.groups.iter().map(|group| group.to_vec()).collect(),
        };
        gpu.pipelines().get(key, || Self::compile(gpu.device(), source))
    }

    fn compile(device: &wgpu::Device, source: &PassSource) -> Self {
        let kernel = Arc::new(KernelSource {
            wgsl: link(source.module, source.features),
            entry_point: source.stem,
            constants: source.constants.iter().map(|&(name, value)| (name.to_owned(), value)).collect(),
        });
        // Browsers require this directive if a kernel has subgroup operations. wgpu refuses it.
        let enable = if cfg!(target_arch = "wasm32") && kernel.wgsl.contains("subgroupAdd") {
            "enable subgroups;\n"
        } else {
            ""
        };
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(source.stem),
            source: wgpu::ShaderSource::Wgsl(format!("{enable}{}", kernel.wgsl).into()),
        });
        let layouts: Vec<_> =
            source.groups.iter().map(|bindings| buffer_layout(device, source.stem, bindings)).collect();
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

    /// Returns the number of bind groups.
    pub(crate) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Binds those of the buffers, whole or in part, that the shader has in bind group `group`.
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
                    read_only: *access != Binding::Write,
                    uniform: *access == Binding::Uniform,
                })
                .collect(),
        }
    }
}

/// The pipelines of a device by their sources, so that a second optimizer of the same kind compiles nothing.
///
/// They are kept as long as the device. Their number is bounded by the kinds of optimizers, because no kernel is compiled for the number or
/// the size of the tensors.
#[derive(Clone, Default)]
pub(crate) struct Pipelines(Arc<Mutex<HashMap<Key, Arc<OnceLock<Pipeline>>>>>);

impl Pipelines {
    /// Returns the pipeline of a kernel. Threads that request the same pipeline at once compile it only once.
    fn get(&self, key: Key, compile: impl FnOnce() -> Pipeline) -> Pipeline {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pipeline = Arc::clone(kept.entry(key).or_default());
        drop(kept);
        pipeline.get_or_init(compile).clone()
    }

    /// Returns true if no pipeline was requested yet.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Removes all pipelines. After an error one of them may be invalid, and wgpu cannot tell which one.
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

/// Key of a pipeline: everything that distinguishes it from others.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    module: &'static str,
    features: Vec<String>,
    /// Names, and values as bits, because floats do not implement `Eq` and `Hash`.
    constants: Vec<(String, u64)>,
    groups: Vec<Vec<Binding>>,
}

fn buffer_layout(device: &wgpu::Device, label: &str, bindings: &[Binding]) -> wgpu::BindGroupLayout {
    let entries: Vec<_> = bindings
        .iter()
        .enumerate()
        .filter(|(_, access)| **access != Binding::Absent)
        .map(|(binding, access)| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: match access {
                    Binding::Uniform => wgpu::BufferBindingType::Uniform,
                    _ => wgpu::BufferBindingType::Storage { read_only: *access == Binding::Read },
                },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(label), entries: &entries })
}

/// Returns an override constant for a flag.
pub(crate) fn flag(name: &'static str, set: bool) -> (&'static str, f64) {
    (name, if set { 1.0 } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    /// An invalid pipeline must not be kept, because wgpu reports the error only when the pipeline is created.
    #[test]
    fn a_kernel_that_does_not_compile_is_an_error_every_time() {
        let adapters = pollster::block_on(Gpu::adapters(None));
        assert!(!adapters.is_empty(), "no adapter");
        for adapter in adapters {
            let gpu = pollster::block_on(Gpu::open(&adapter)).expect("opens");
            let build = |features: &[&str]| {
                gpu.scoped("a kernel", || {
                    let (module, stem) = ("finish_update", "finish_update");
                    let constants = [("WORKGROUP", if features.is_empty() { 64.0 } else { -1.0 }), ("RING_STEPS", 4.0)];
                    let (read, write) = (Binding::Read, Binding::Write);
                    let groups: &[&[Binding]] = &[&[read, read, read, write, write, write]];
                    let source = PassSource { module, stem, features, constants: &constants, groups };
                    Ok::<_, Error>(Pipeline::new(&gpu, &source))
                })
            };
            for _ in 0..2 {
                let error = build(&["a workgroup of -1"]);
                assert_eq!(error.map_err(|error| error.kind()).err(), Some(ErrorKind::DeviceRefused));
            }
            build(&[]).expect("compiles");
        }
    }
}
