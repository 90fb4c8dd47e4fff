//! A backend of wgpu over the caller's `GPUDevice`: every call of the library reaches the device, buffers and encoders of the
//! JavaScript program that made them.
//!
//! wgpu's own WebGPU backend opens devices itself and cannot use an existing one. This backend implements what an optimizer uses: buffers,
//! compute pipelines, bind groups, compute passes, copies and maps. Other functions of wgpu are never called.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt::Debug;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use js_sys::{Array, Object, Promise, Reflect, Uint8Array};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::{JsFuture, future_to_promise};
use wgpu::custom::*;

#[wasm_bindgen]
extern "C" {
    /// `GPUDevice`.
    #[derive(Debug, Clone)]
    pub type JsDevice;
    #[wasm_bindgen(method, getter)]
    fn queue(this: &JsDevice) -> JsQueue;
    #[wasm_bindgen(method, getter)]
    fn features(this: &JsDevice) -> js_sys::Set;
    #[wasm_bindgen(method, getter)]
    fn limits(this: &JsDevice) -> Object;
    #[wasm_bindgen(method, getter, js_name = adapterInfo)]
    fn adapter_info(this: &JsDevice) -> Option<Object>;
    #[wasm_bindgen(method, js_name = createBuffer)]
    fn create_buffer(this: &JsDevice, descriptor: &Object) -> JsBuffer;
    #[wasm_bindgen(method, js_name = createShaderModule)]
    fn create_shader_module(this: &JsDevice, descriptor: &Object) -> JsValue;
    #[wasm_bindgen(method, js_name = createBindGroupLayout)]
    fn create_bind_group_layout(this: &JsDevice, descriptor: &Object) -> JsValue;
    #[wasm_bindgen(method, js_name = createPipelineLayout)]
    fn create_pipeline_layout(this: &JsDevice, descriptor: &Object) -> JsValue;
    #[wasm_bindgen(method, js_name = createBindGroup)]
    fn create_bind_group(this: &JsDevice, descriptor: &Object) -> JsValue;
    #[wasm_bindgen(method, js_name = createComputePipelineAsync)]
    fn create_compute_pipeline_async(this: &JsDevice, descriptor: &Object) -> Promise;
    #[wasm_bindgen(method, js_name = createCommandEncoder)]
    fn create_command_encoder(this: &JsDevice, descriptor: &Object) -> JsEncoder;

    /// `GPUQueue`.
    #[derive(Debug, Clone)]
    type JsQueue;
    #[wasm_bindgen(method, js_name = writeBuffer)]
    fn write_buffer(this: &JsQueue, buffer: &JsBuffer, offset: f64, data: &[u8]);
    #[wasm_bindgen(method)]
    fn submit(this: &JsQueue, buffers: &Array);

    /// `GPUBuffer`.
    #[derive(Debug, Clone)]
    pub type JsBuffer;
    #[wasm_bindgen(method, getter)]
    fn size(this: &JsBuffer) -> f64;
    #[wasm_bindgen(method, getter)]
    fn usage(this: &JsBuffer) -> u32;
    #[wasm_bindgen(method, js_name = mapAsync)]
    fn map_async(this: &JsBuffer, mode: u32, offset: f64, size: f64) -> Promise;
    #[wasm_bindgen(method, catch, js_name = getMappedRange)]
    fn get_mapped_range(this: &JsBuffer, offset: f64, size: f64) -> Result<JsValue, JsValue>;
    #[wasm_bindgen(method)]
    fn unmap(this: &JsBuffer);
    #[wasm_bindgen(method)]
    fn destroy(this: &JsBuffer);

    /// `GPUCommandEncoder`.
    #[derive(Debug, Clone)]
    pub type JsEncoder;
    #[wasm_bindgen(method, js_name = beginComputePass)]
    fn begin_compute_pass(this: &JsEncoder, descriptor: &Object) -> JsPass;
    #[wasm_bindgen(method, js_name = copyBufferToBuffer)]
    fn copy_buffer_to_buffer(this: &JsEncoder, from: &JsBuffer, at: f64, to: &JsBuffer, to_at: f64, size: f64);
    #[wasm_bindgen(method, js_name = clearBuffer)]
    fn clear_buffer(this: &JsEncoder, buffer: &JsBuffer, offset: f64, size: f64);
    #[wasm_bindgen(method)]
    fn finish(this: &JsEncoder) -> JsValue;

    /// `GPUComputePassEncoder`.
    #[derive(Debug, Clone)]
    pub type JsPass;
    #[wasm_bindgen(method, js_name = setPipeline)]
    fn set_pipeline(this: &JsPass, pipeline: &JsValue);
    #[wasm_bindgen(method, js_name = setBindGroup)]
    fn set_bind_group(this: &JsPass, index: u32, group: &JsValue);
    #[wasm_bindgen(method, js_name = dispatchWorkgroups)]
    fn dispatch_workgroups(this: &JsPass, x: u32, y: u32, z: u32);
    #[wasm_bindgen(method)]
    fn end(this: &JsPass);
}

/// `GPUShaderStage.COMPUTE` and `GPUMapMode.READ`, which are not globals in Node.
const COMPUTE: u32 = 4;
const READ: u32 = 1;

/// Returns an object with these properties.
fn object(properties: &[(&str, &JsValue)]) -> Object {
    let object = Object::new();
    for (name, value) in properties {
        set(&object, name, value);
    }
    object
}

fn set(object: &Object, name: &str, value: &JsValue) {
    // Plain objects take every property.
    let _ = Reflect::set(object, &JsValue::from_str(name), value);
}

fn label(label: Option<&str>) -> JsValue {
    label.map_or(JsValue::UNDEFINED, JsValue::from_str)
}

/// A `GPUDevice` and its pending work. [`Host::device`] returns it as a [`wgpu::Device`], and [`Host::queue`] as a [`wgpu::Queue`].
#[derive(Debug, Clone)]
pub struct Host(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    device: JsDevice,
    queue: JsQueue,
    /// Object of the caller that the next `create_buffer` or `create_command_encoder` wraps instead of creating a new one.
    adopted: RefCell<Option<Adopted>>,
    /// Pipelines that are being compiled.
    compiling: RefCell<Vec<Promise>>,
    /// The last map that was requested.
    mapping: RefCell<Option<Promise>>,
    /// True once a mapped buffer could not be read, because its device was destroyed.
    unreadable: Cell<bool>,
    /// True while an optimizer is dropped whose buffers are freed at once, and not by the garbage collector.
    frees: Cell<bool>,
}

#[derive(Debug)]
enum Adopted {
    Buffer(JsBuffer),
    Encoder(JsEncoder),
    Pass(JsPass),
}

impl Host {
    pub fn new(device: JsDevice) -> Self {
        Host(Rc::new(Shared {
            queue: device.queue(),
            device,
            adopted: RefCell::default(),
            compiling: RefCell::default(),
            mapping: RefCell::default(),
            unreadable: Cell::new(false),
            frees: Cell::new(false),
        }))
    }

    pub fn device(&self) -> wgpu::Device {
        wgpu::Device::from_custom(self.clone())
    }

    pub fn queue(&self) -> wgpu::Queue {
        wgpu::Queue::from_custom(self.clone())
    }

    /// Returns the caller's buffer as a wgpu buffer.
    pub fn buffer(&self, device: &wgpu::Device, buffer: &JsBuffer) -> wgpu::Buffer {
        let descriptor = wgpu::BufferDescriptor {
            label: None,
            size: buffer.size() as u64,
            usage: wgpu::BufferUsages::from_bits_truncate(buffer.usage()),
            mapped_at_creation: false,
        };
        self.adopt(Adopted::Buffer(buffer.clone()));
        device.create_buffer(&descriptor)
    }

    /// Returns the caller's encoder as a wgpu encoder.
    pub fn encoder(&self, device: &wgpu::Device, encoder: &JsEncoder) -> wgpu::CommandEncoder {
        self.adopt(Adopted::Encoder(encoder.clone()));
        device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Returns a wgpu encoder whose compute pass is the caller's. The encoder does not end the pass.
    pub fn encoder_of_pass(&self, device: &wgpu::Device, pass: &JsPass) -> wgpu::CommandEncoder {
        self.adopt(Adopted::Pass(pass.clone()));
        device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    fn adopt(&self, object: Adopted) {
        *self.0.adopted.borrow_mut() = Some(object);
    }

    /// Returns a promise for each pipeline that is being compiled.
    pub fn compiling(&self) -> Array {
        let mut compiling = self.0.compiling.borrow_mut();
        compiling.drain(..).collect()
    }

    /// Returns the last map that was requested, as a promise that is never rejected.
    pub fn mapping(&self) -> Promise {
        self.0.mapping.borrow().clone().unwrap_or_else(|| Promise::resolve(&JsValue::UNDEFINED))
    }

    /// Returns true if a mapped buffer could not be read.
    pub fn is_unreadable(&self) -> bool {
        self.0.unreadable.get()
    }

    /// Drops a value, and frees its buffers at once.
    pub fn free<T>(&self, value: T) {
        self.0.frees.set(true);
        drop(value);
        self.0.frees.set(false);
    }
}

/// Returns the JavaScript object of a wgpu buffer.
pub fn js_buffer(buffer: &wgpu::Buffer) -> JsValue {
    buffer.as_custom::<HostBuffer>().map_or(JsValue::UNDEFINED, |buffer| buffer.js.clone().into())
}

#[derive(Debug)]
struct HostBuffer {
    js: JsBuffer,
    host: Host,
    /// False for the caller's buffers.
    owned: bool,
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        if self.owned && self.host.0.frees.get() {
            self.js.destroy();
        }
    }
}

fn inner(buffer: &DispatchBuffer) -> &JsBuffer {
    // There is no other backend.
    &buffer.as_custom::<HostBuffer>().expect("a buffer of this backend").js
}

/// An object without methods of its own.
#[derive(Debug)]
struct Handle(JsValue);

impl BindGroupLayoutInterface for Handle {}
impl BindGroupInterface for Handle {}
impl PipelineLayoutInterface for Handle {}
impl CommandBufferInterface for Handle {}

impl ShaderModuleInterface for Handle {
    fn get_compilation_info(&self) -> Pin<Box<dyn ShaderCompilationInfoFuture>> {
        unused()
    }
}

/// Pipeline, which has a value after it was compiled.
#[derive(Debug)]
struct HostPipeline(Rc<OnceCell<JsValue>>);

impl ComputePipelineInterface for HostPipeline {
    fn get_bind_group_layout(&self, _: u32) -> DispatchBindGroupLayout {
        unused()
    }
}

/// Panics. It implements calls of wgpu that the optimizer never makes and that the package does not export.
#[track_caller]
fn unused<T>() -> T {
    unreachable!("an optimizer made a call of wgpu that this backend does not have")
}

/// Implements methods that no optimizer calls.
macro_rules! unused {
    ($(fn $name:ident($($kind:ty),*) $(-> $result:ty)?;)*) => {
        $(unused!(@one $name, (a b c d e), ($($kind),*) $(-> $result)?);)*
    };
    (@one $name:ident, ($($_:ident)*), () $(-> $result:ty)?) => {
        fn $name(&self) $(-> $result)? { unused() }
    };
    (@one $name:ident, ($($_:ident)*), ($a:ty) $(-> $result:ty)?) => {
        fn $name(&self, _: $a) $(-> $result)? { unused() }
    };
    (@one $name:ident, ($($_:ident)*), ($a:ty, $b:ty) $(-> $result:ty)?) => {
        fn $name(&self, _: $a, _: $b) $(-> $result)? { unused() }
    };
    (@one $name:ident, ($($_:ident)*), ($a:ty, $b:ty, $c:ty) $(-> $result:ty)?) => {
        fn $name(&self, _: $a, _: $b, _: $c) $(-> $result)? { unused() }
    };
    (@one $name:ident, ($($_:ident)*), ($a:ty, $b:ty, $c:ty, $d:ty) $(-> $result:ty)?) => {
        fn $name(&self, _: $a, _: $b, _: $c, _: $d) $(-> $result)? { unused() }
    };
    (@one $name:ident, ($($_:ident)*), ($a:ty, $b:ty, $c:ty, $d:ty, $e:ty) $(-> $result:ty)?) => {
        fn $name(&self, _: $a, _: $b, _: $c, _: $d, _: $e) $(-> $result)? { unused() }
    };
}

impl DeviceInterface for Host {
    fn features(&self) -> wgpu::Features {
        let has = self.0.device.features();
        let known = [("subgroups", wgpu::Features::SUBGROUP), ("shader-f16", wgpu::Features::SHADER_F16)];
        let there = known.into_iter().filter(|(name, _)| has.has(&JsValue::from_str(name)));
        there.fold(wgpu::Features::empty(), |features, (_, feature)| features | feature)
    }

    fn limits(&self) -> wgpu::Limits {
        let limits = self.0.device.limits();
        let number = |name: &str| {
            let value = Reflect::get(&limits, &JsValue::from_str(name)).ok();
            value.and_then(|value| value.as_f64())
        };
        let mut known = wgpu::Limits::default();
        macro_rules! take {
            ($($name:literal => $field:ident: $kind:ty,)*) => {
                $(if let Some(value) = number($name) { known.$field = value as $kind; })*
            };
        }
        take! {
            "maxBindGroups" => max_bind_groups: u32,
            "maxBindingsPerBindGroup" => max_bindings_per_bind_group: u32,
            "maxStorageBuffersPerShaderStage" => max_storage_buffers_per_shader_stage: u32,
            "maxUniformBufferBindingSize" => max_uniform_buffer_binding_size: u64,
            "maxStorageBufferBindingSize" => max_storage_buffer_binding_size: u64,
            "maxBufferSize" => max_buffer_size: u64,
            "minUniformBufferOffsetAlignment" => min_uniform_buffer_offset_alignment: u32,
            "minStorageBufferOffsetAlignment" => min_storage_buffer_offset_alignment: u32,
            "maxComputeWorkgroupStorageSize" => max_compute_workgroup_storage_size: u32,
            "maxComputeInvocationsPerWorkgroup" => max_compute_invocations_per_workgroup: u32,
            "maxComputeWorkgroupSizeX" => max_compute_workgroup_size_x: u32,
            "maxComputeWorkgroupSizeY" => max_compute_workgroup_size_y: u32,
            "maxComputeWorkgroupSizeZ" => max_compute_workgroup_size_z: u32,
            "maxComputeWorkgroupsPerDimension" => max_compute_workgroups_per_dimension: u32,
        }
        known
    }

    fn adapter_info(&self) -> wgpu::AdapterInfo {
        let info = self.0.device.adapter_info().unwrap_or_default();
        let get = |name: &str| Reflect::get(&info, &JsValue::from_str(name)).unwrap_or(JsValue::UNDEFINED);
        let word = |name: &str| get(name).as_string().filter(|word| !word.is_empty());
        let name = word("description").or_else(|| word("device")).or_else(|| word("architecture"));
        let name = name.or_else(|| word("vendor")).unwrap_or_else(|| "a WebGPU device".to_owned());
        let software = get("isFallbackAdapter").as_bool() == Some(true)
            || ["SwiftShader", "llvmpipe"].iter().any(|software| name.contains(software))
            || word("architecture").as_deref() == Some("swiftshader");
        let kind = if software { wgpu::DeviceType::Cpu } else { wgpu::DeviceType::Other };
        let mut described = wgpu::AdapterInfo::new(kind, wgpu::Backend::BrowserWebGpu);
        described.name = name;
        if let Some(size) = get("subgroupMinSize").as_f64().filter(|size| *size >= 1.0) {
            described.subgroup_min_size = size as u32;
        }
        described
    }

    fn create_shader_module(
        &self,
        descriptor: wgpu::ShaderModuleDescriptor<'_>,
        _: wgpu::ShaderRuntimeChecks,
    ) -> DispatchShaderModule {
        let wgpu::ShaderSource::Wgsl(code) = descriptor.source else { return unused() };
        let code = JsValue::from_str(&code);
        let module = object(&[("label", &label(descriptor.label)), ("code", &code)]);
        DispatchShaderModule::custom(Handle(self.0.device.create_shader_module(&module)))
    }

    fn create_bind_group_layout(&self, descriptor: &wgpu::BindGroupLayoutDescriptor<'_>) -> DispatchBindGroupLayout {
        let entries = descriptor.entries.iter().map(|entry| {
            let wgpu::BindingType::Buffer { ty, .. } = entry.ty else { return unused() };
            let kind = match ty {
                wgpu::BufferBindingType::Uniform => "uniform",
                wgpu::BufferBindingType::Storage { read_only: true } => "read-only-storage",
                wgpu::BufferBindingType::Storage { read_only: false } => "storage",
            };
            let buffer = object(&[("type", &kind.into())]);
            let (binding, stage) = (entry.binding.into(), COMPUTE.into());
            JsValue::from(object(&[("binding", &binding), ("visibility", &stage), ("buffer", &buffer)]))
        });
        let entries: Array = entries.collect();
        let layout = object(&[("label", &label(descriptor.label)), ("entries", &entries)]);
        DispatchBindGroupLayout::custom(Handle(self.0.device.create_bind_group_layout(&layout)))
    }

    fn create_bind_group(&self, descriptor: &wgpu::BindGroupDescriptor<'_>) -> DispatchBindGroup {
        let entries = descriptor.entries.iter().map(|entry| {
            let wgpu::BindingResource::Buffer(bound) = &entry.resource else { return unused() };
            let buffer = js_buffer(bound.buffer);
            let resource = object(&[("buffer", &buffer), ("offset", &(bound.offset as f64).into())]);
            if let Some(size) = bound.size {
                set(&resource, "size", &(size.get() as f64).into());
            }
            JsValue::from(object(&[("binding", &entry.binding.into()), ("resource", &resource)]))
        });
        let entries: Array = entries.collect();
        let layout = descriptor.layout.as_custom::<Handle>().map_or(JsValue::UNDEFINED, |layout| layout.0.clone());
        let group = object(&[("label", &label(descriptor.label)), ("layout", &layout), ("entries", &entries)]);
        DispatchBindGroup::custom(Handle(self.0.device.create_bind_group(&group)))
    }

    fn create_pipeline_layout(&self, descriptor: &wgpu::PipelineLayoutDescriptor<'_>) -> DispatchPipelineLayout {
        let layouts = descriptor.bind_group_layouts.iter().flatten();
        let layouts: Array = layouts.filter_map(|layout| Some(layout.as_custom::<Handle>()?.0.clone())).collect();
        let layout = object(&[("label", &label(descriptor.label)), ("bindGroupLayouts", &layouts)]);
        DispatchPipelineLayout::custom(Handle(self.0.device.create_pipeline_layout(&layout)))
    }

    fn create_compute_pipeline(&self, descriptor: &wgpu::ComputePipelineDescriptor<'_>) -> DispatchComputePipeline {
        let constants = Object::new();
        for (name, value) in descriptor.compilation_options.constants {
            set(&constants, name, &(*value).into());
        }
        let module = descriptor.module.as_custom::<Handle>().map_or(JsValue::UNDEFINED, |module| module.0.clone());
        let entry = label(descriptor.entry_point);
        let compute = object(&[("module", &module), ("entryPoint", &entry), ("constants", &constants)]);
        let layout = descriptor.layout.and_then(|layout| layout.as_custom::<Handle>());
        let layout = layout.map_or(JsValue::UNDEFINED, |layout| layout.0.clone());
        let pipeline = object(&[("label", &label(descriptor.label)), ("layout", &layout), ("compute", &compute)]);
        let compiled = Rc::new(OnceCell::new());
        let promise = self.0.device.create_compute_pipeline_async(&pipeline);
        let slot = Rc::clone(&compiled);
        self.0.compiling.borrow_mut().push(future_to_promise(async move {
            // The cell is not set elsewhere.
            let _ = slot.set(JsFuture::from(promise).await?);
            Ok(JsValue::UNDEFINED)
        }));
        DispatchComputePipeline::custom(HostPipeline(compiled))
    }

    fn create_buffer(&self, descriptor: &wgpu::BufferDescriptor<'_>) -> DispatchBuffer {
        let host = self.clone();
        if let Some(Adopted::Buffer(js)) = self.0.adopted.take() {
            return DispatchBuffer::custom(HostBuffer { js, host, owned: false });
        }
        let js = self.0.device.create_buffer(&object(&[
            ("label", &label(descriptor.label)),
            ("size", &(descriptor.size as f64).into()),
            ("usage", &descriptor.usage.bits().into()),
            ("mappedAtCreation", &descriptor.mapped_at_creation.into()),
        ]));
        DispatchBuffer::custom(HostBuffer { js, host, owned: true })
    }

    fn create_command_encoder(&self, descriptor: &wgpu::CommandEncoderDescriptor<'_>) -> DispatchCommandEncoder {
        DispatchCommandEncoder::custom(match self.0.adopted.take() {
            Some(Adopted::Encoder(encoder)) => HostEncoder::Whole(encoder),
            Some(Adopted::Pass(pass)) => HostEncoder::Pass(pass),
            _ => {
                let descriptor = object(&[("label", &label(descriptor.label))]);
                HostEncoder::Whole(self.0.device.create_command_encoder(&descriptor))
            }
        })
    }

    fn poll(&self, _: wgpu::wgt::PollType<u64>) -> Result<wgpu::PollStatus, wgpu::PollError> {
        // The event loop polls the device.
        Ok(wgpu::PollStatus::Poll)
    }

    fn set_device_lost_callback(&self, _: BoxDeviceLostCallback) {
        // The caller uses `GPUDevice.lost`.
    }

    unsafe fn create_shader_module_passthrough(
        &self,
        _: &wgpu::ShaderModuleDescriptorPassthrough<'_>,
    ) -> DispatchShaderModule {
        unused()
    }

    unsafe fn create_pipeline_cache(&self, _: &wgpu::PipelineCacheDescriptor<'_>) -> DispatchPipelineCache {
        unused()
    }

    unsafe fn start_graphics_debugger_capture(&self) {}

    unsafe fn stop_graphics_debugger_capture(&self) {}

    unused! {
        fn create_render_pipeline(&wgpu::RenderPipelineDescriptor<'_>) -> DispatchRenderPipeline;
        fn create_mesh_pipeline(&wgpu::MeshPipelineDescriptor<'_>) -> DispatchRenderPipeline;
        fn create_texture(&wgpu::TextureDescriptor<'_>) -> DispatchTexture;
        fn create_external_texture(&wgpu::ExternalTextureDescriptor<'_>, &[&wgpu::TextureView]) -> DispatchExternalTexture;
        fn create_blas(&wgpu::CreateBlasDescriptor<'_>, wgpu::BlasGeometrySizeDescriptors) -> (Option<u64>, DispatchBlas);
        fn create_tlas(&wgpu::CreateTlasDescriptor<'_>) -> DispatchTlas;
        fn create_sampler(&wgpu::SamplerDescriptor<'_>) -> DispatchSampler;
        fn create_query_set(&wgpu::QuerySetDescriptor<'_>) -> DispatchQuerySet;
        fn create_render_bundle_encoder(&wgpu::RenderBundleEncoderDescriptor<'_>) -> DispatchRenderBundleEncoder;
        fn on_uncaptured_error(Arc<dyn wgpu::UncapturedErrorHandler>);
        fn push_error_scope(wgpu::ErrorFilter) -> u32;
        fn pop_error_scope(u32) -> Pin<Box<dyn PopErrorScopeFuture>>;
        fn get_internal_counters() -> wgpu::InternalCounters;
        fn generate_allocator_report() -> Option<wgpu::AllocatorReport>;
        fn destroy();
    }
}

impl QueueInterface for Host {
    fn write_buffer(&self, buffer: &DispatchBuffer, offset: wgpu::BufferAddress, data: &[u8]) {
        if !data.is_empty() {
            self.0.queue.write_buffer(inner(buffer), offset as f64, data);
        }
    }

    fn submit(&self, buffers: &mut dyn Iterator<Item = DispatchCommandBuffer>) -> u64 {
        let buffers: Array = buffers.filter_map(|buffer| Some(buffer.as_custom::<Handle>()?.0.clone())).collect();
        self.0.queue.submit(&buffers);
        0
    }

    fn get_timestamp_period(&self) -> f32 {
        1.0
    }

    unused! {
        fn create_staging_buffer(wgpu::BufferSize) -> Option<DispatchQueueWriteBuffer>;
        fn validate_write_buffer(&DispatchBuffer, wgpu::BufferAddress, wgpu::BufferSize) -> Option<()>;
        fn write_staging_buffer(&DispatchBuffer, wgpu::BufferAddress, &DispatchQueueWriteBuffer);
        fn write_texture(wgpu::TexelCopyTextureInfo<'_>, &[u8], wgpu::TexelCopyBufferLayout, wgpu::Extent3d);
        fn on_submitted_work_done(BoxSubmittedWorkDoneCallback);
        fn compact_blas(&DispatchBlas) -> (Option<u64>, DispatchBlas);
        fn present(&DispatchSurfaceOutputDetail);
    }
}

impl BufferInterface for HostBuffer {
    fn map_async(&self, _: wgpu::MapMode, range: Range<wgpu::BufferAddress>, callback: BufferMapCallback) {
        let promise = self.js.map_async(READ, range.start as f64, (range.end - range.start) as f64);
        let arrived = future_to_promise(async move {
            callback(JsFuture::from(promise).await.map(drop).map_err(|_| wgpu::BufferAsyncError));
            Ok(JsValue::UNDEFINED)
        });
        *self.host.0.mapping.borrow_mut() = Some(arrived);
    }

    fn get_mapped_range(
        &self,
        range: Range<wgpu::BufferAddress>,
    ) -> Result<DispatchBufferMappedRange, wgpu::MapRangeError> {
        let bytes = range.end - range.start;
        let mapped = self.js.get_mapped_range(range.start as f64, bytes as f64);
        let mapped = mapped.map(|mapped| Uint8Array::new(&mapped)).unwrap_or_else(|_| {
            // A backend cannot create wgpu's error type here.
            self.host.0.unreadable.set(true);
            Uint8Array::new_with_length(bytes as u32)
        });
        Ok(DispatchBufferMappedRange::custom(HostRange { bytes: mapped.to_vec(), mapped, is_written: false }))
    }

    fn unmap(&self) {
        self.js.unmap();
    }

    fn destroy(&self) {
        self.js.destroy();
    }
}

/// Copy of a mapped range, which is copied back if it was written.
#[derive(Debug)]
struct HostRange {
    bytes: Vec<u8>,
    mapped: Uint8Array,
    is_written: bool,
}

impl BufferMappedRangeInterface for HostRange {
    fn len(&self) -> usize {
        self.bytes.len()
    }

    unsafe fn read_slice(&self) -> &[u8] {
        &self.bytes
    }

    unsafe fn write_slice(&mut self) -> wgpu::WriteOnly<'_, [u8]> {
        self.is_written = true;
        wgpu::WriteOnly::from_mut(&mut self.bytes)
    }
}

impl Drop for HostRange {
    fn drop(&mut self) {
        if self.is_written {
            self.mapped.copy_from(&self.bytes);
        }
    }
}

/// Encoder, or a compute pass of the caller.
#[derive(Debug)]
enum HostEncoder {
    Whole(JsEncoder),
    Pass(JsPass),
}

impl HostEncoder {
    fn whole(&self) -> &JsEncoder {
        match self {
            HostEncoder::Whole(encoder) => encoder,
            HostEncoder::Pass(_) => unused(),
        }
    }
}

impl CommandEncoderInterface for HostEncoder {
    fn copy_buffer_to_buffer(
        &self,
        from: &DispatchBuffer,
        at: wgpu::BufferAddress,
        to: &DispatchBuffer,
        to_at: wgpu::BufferAddress,
        size: Option<wgpu::BufferAddress>,
    ) {
        let from = inner(from);
        let size = size.map_or(from.size() - at as f64, |size| size as f64);
        self.whole().copy_buffer_to_buffer(from, at as f64, inner(to), to_at as f64, size);
    }

    fn begin_compute_pass(&self, descriptor: &wgpu::ComputePassDescriptor<'_>) -> DispatchComputePass {
        DispatchComputePass::custom(match self {
            HostEncoder::Pass(pass) => HostPass { js: pass.clone(), ends: false },
            HostEncoder::Whole(encoder) => {
                let descriptor = object(&[("label", &label(descriptor.label))]);
                HostPass { js: encoder.begin_compute_pass(&descriptor), ends: true }
            }
        })
    }

    fn finish(&mut self) -> DispatchCommandBuffer {
        DispatchCommandBuffer::custom(Handle(self.whole().finish()))
    }

    fn clear_buffer(&self, buffer: &DispatchBuffer, offset: wgpu::BufferAddress, size: Option<wgpu::BufferAddress>) {
        let buffer = inner(buffer);
        let size = size.map_or(buffer.size() - offset as f64, |size| size as f64);
        self.whole().clear_buffer(buffer, offset as f64, size);
    }

    fn mark_acceleration_structures_built<'a>(
        &self,
        _: &mut dyn Iterator<Item = &'a wgpu::Blas>,
        _: &mut dyn Iterator<Item = &'a wgpu::Tlas>,
    ) {
        unused()
    }

    fn build_acceleration_structures<'a>(
        &self,
        _: &mut dyn Iterator<Item = &'a wgpu::BlasBuildEntry<'a>>,
        _: &mut dyn Iterator<Item = &'a wgpu::Tlas>,
    ) {
        unused()
    }

    fn transition_resources<'a>(
        &mut self,
        _: &mut dyn Iterator<Item = wgpu::wgt::BufferTransition<&'a DispatchBuffer>>,
        _: &mut dyn Iterator<Item = wgpu::wgt::TextureTransition<&'a DispatchTexture>>,
    ) {
        unused()
    }

    unused! {
        fn copy_buffer_to_texture(wgpu::TexelCopyBufferInfo<'_>, wgpu::TexelCopyTextureInfo<'_>, wgpu::Extent3d);
        fn copy_texture_to_buffer(wgpu::TexelCopyTextureInfo<'_>, wgpu::TexelCopyBufferInfo<'_>, wgpu::Extent3d);
        fn copy_texture_to_texture(wgpu::TexelCopyTextureInfo<'_>, wgpu::TexelCopyTextureInfo<'_>, wgpu::Extent3d);
        fn begin_render_pass(&wgpu::RenderPassDescriptor<'_>) -> DispatchRenderPass;
        fn clear_texture(&DispatchTexture, &wgpu::ImageSubresourceRange);
        fn insert_debug_marker(&str);
        fn push_debug_group(&str);
        fn pop_debug_group();
        fn write_timestamp(&DispatchQuerySet, u32);
        fn resolve_query_set(&DispatchQuerySet, u32, u32, &DispatchBuffer, wgpu::BufferAddress);
    }
}

#[derive(Debug)]
struct HostPass {
    js: JsPass,
    /// False for the caller's passes.
    ends: bool,
}

impl Drop for HostPass {
    fn drop(&mut self) {
        if self.ends {
            self.js.end();
        }
    }
}

impl ComputePassInterface for HostPass {
    fn set_pipeline(&mut self, pipeline: &DispatchComputePipeline) {
        let pipeline = pipeline.as_custom::<HostPipeline>().and_then(|pipeline| pipeline.0.get());
        // The caller gets an optimizer only after every pipeline has been compiled.
        self.js.set_pipeline(pipeline.expect("a compiled pipeline"));
    }

    fn set_bind_group(&mut self, index: u32, group: Option<&DispatchBindGroup>, _: &[wgpu::DynamicOffset]) {
        if let Some(group) = group.and_then(|group| group.as_custom::<Handle>()) {
            self.js.set_bind_group(index, &group.0);
        }
    }

    fn dispatch_workgroups(&mut self, x: u32, y: u32, z: u32) {
        self.js.dispatch_workgroups(x, y, z);
    }

    fn set_immediates(&mut self, _: u32, _: &[u8]) {
        unused()
    }

    fn insert_debug_marker(&mut self, _: &str) {
        unused()
    }

    fn push_debug_group(&mut self, _: &str) {
        unused()
    }

    fn pop_debug_group(&mut self) {
        unused()
    }

    fn write_timestamp(&mut self, _: &DispatchQuerySet, _: u32) {
        unused()
    }

    fn begin_pipeline_statistics_query(&mut self, _: &DispatchQuerySet, _: u32) {
        unused()
    }

    fn end_pipeline_statistics_query(&mut self) {
        unused()
    }

    fn dispatch_workgroups_indirect(&mut self, _: &DispatchBuffer, _: wgpu::BufferAddress) {
        unused()
    }

    fn transition_resources<'a>(
        &mut self,
        _: &mut dyn Iterator<Item = wgpu::wgt::BufferTransition<&'a DispatchBuffer>>,
        _: &mut dyn Iterator<Item = wgpu::wgt::TextureTransition<&'a DispatchTextureView>>,
    ) {
        unused()
    }
}
