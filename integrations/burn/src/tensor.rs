//! Access to the buffers of burn's tensors, with burn's feature `fusion` and without it. All code that depends on the internals of burn's
//! backend, and therefore on its version, is in this file.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::{BackendTypes, Cube, TensorMetadata};
use burn::tensor::{DType, Tensor};
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::server::{Handle, ServerError};
use burn_cubecl::cubecl::wgpu::{AutoCompiler, WgpuServer};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeDevice};
use burn_fusion::client::GlobalFusionClient;
use burn_fusion::custom::{CustomOpIr, HandleContainer, Operation, OperationIr, StreamId, TensorIr};
use burn_fusion::{ExecutionError, Fusion, FusionBackend, FusionHandle, FusionRuntime, FusionTensor};
use wgpu_optim::{Element, gpu, wgpu};

use crate::error::Error;

/// Float tensor of burn's wgpu backend: a [`CubeTensor`], or with `fusion` a [`FusionTensor`], which has no buffer until burn has run the
/// operations that compute it.
pub(crate) type Primitive = <Cube as BackendTypes>::FloatTensorPrimitive;

/// Function that is called with tensors when they have buffers. It returns the tensors that replace the first ones, in the same order.
pub(crate) type Work = Box<dyn Fn(Vec<CubeTensor>) -> Vec<CubeTensor> + Send + Sync>;

/// Backend whose tensors have wgpu buffers, at once or later.
pub(crate) trait Buffers: BackendTypes {
    /// Calls `work` with the tensors: at once if they have buffers, otherwise after the operations that burn has recorded so far, at the
    /// latest in [`Buffers::submit`]. Returns tensors that replace the first `replaced` ones and have their shapes and element types.
    /// Copies nothing: `work` may write a tensor that has no other owner.
    fn with_buffers(
        tensors: Vec<Self::FloatTensorPrimitive>,
        replaced: usize,
        work: Work,
    ) -> Vec<Self::FloatTensorPrimitive>;

    /// Runs the operations that were recorded on this thread's stream, and submits them to the queue. Waits for the threads of burn that
    /// record commands, not for the device.
    fn submit(device: &CubeDevice) -> Result<(), Error>;
}

impl Buffers for CubeBackend {
    fn with_buffers(tensors: Vec<CubeTensor>, _replaced: usize, work: Work) -> Vec<CubeTensor> {
        work(tensors)
    }

    fn submit(device: &CubeDevice) -> Result<(), Error> {
        device.client().flush().map_err(Error::runtime)
    }
}

impl<R, B> Buffers for Fusion<B>
where
    R: FusionRuntime<FusionDevice = CubeDevice>,
    B: FusionBackend<FusionRuntime = R> + BackendTypes<FloatTensorPrimitive = CubeTensor>,
{
    fn with_buffers(tensors: Vec<FusionTensor<R>>, replaced: usize, work: Work) -> Vec<FusionTensor<R>> {
        let Some(client) = tensors.first().map(|tensor| tensor.client.clone()) else {
            return Vec::new();
        };
        let output = |tensor: &FusionTensor<R>| {
            TensorIr::uninit(client.create_empty_handle(), tensor.shape.clone(), tensor.dtype)
        };
        let outputs: Vec<TensorIr> = tensors[..replaced].iter().map(output).collect();
        let inputs: Vec<TensorIr> = tensors.into_iter().map(FusionTensor::into_ir).collect();
        let description = CustomOpIr::new("wgpu-optim", &inputs, &outputs);
        let operation = WithBuffers::<B> { inputs, outputs, work, backend: std::marker::PhantomData };
        client.register(StreamId::current(), OperationIr::Custom(description), operation)
    }

    fn submit(device: &CubeDevice) -> Result<(), Error> {
        let fused = GlobalFusionClient::<R>::load(device);
        let client = device.client();
        let flushed = fused.try_sync(move || client.flush());
        flushed.map_err(|error| Error::Runtime(format!("{error:?}")))?.map_err(Error::runtime)
    }
}

/// Operation of burn's stream that calls [`Work`].
struct WithBuffers<B> {
    inputs: Vec<TensorIr>,
    outputs: Vec<TensorIr>,
    work: Work,
    backend: std::marker::PhantomData<fn() -> B>,
}

impl<B> std::fmt::Debug for WithBuffers<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WithBuffers")
            .field("inputs", &self.inputs)
            .field("outputs", &self.outputs)
            .finish_non_exhaustive()
    }
}

impl<R, B> Operation<R> for WithBuffers<B>
where
    R: FusionRuntime,
    B: FusionBackend<FusionRuntime = R> + BackendTypes<FloatTensorPrimitive = CubeTensor>,
{
    fn execute(&self, handles: &mut HandleContainer<FusionHandle<R>>) -> Result<(), ExecutionError> {
        let tensors = self.inputs.iter().map(|input| handles.get_float_tensor::<B>(input)).collect();
        for (output, tensor) in self.outputs.iter().zip((self.work)(tensors)) {
            handles.register_float_tensor::<B>(&output.id, tensor);
        }
        Ok(())
    }
}

/// Returns the primitive of a tensor.
pub(crate) fn open<const D: usize>(tensor: Tensor<D>) -> Result<Primitive, String> {
    let opened = tensor.try_into_primitive::<Cube>();
    opened.map_err(|error| format!("it is not on burn's wgpu backend ({error:?})"))
}

/// Creates a tensor from its primitive.
pub(crate) fn close<const D: usize>(tensor: Primitive) -> Tensor<D> {
    Tensor::from_primitive::<Cube>(tensor)
}

/// Returns the device of a tensor in burn's backend.
pub(crate) fn place_of(tensor: &Primitive) -> CubeDevice {
    tensor.device()
}

/// Value that is set when tensors have their buffers.
pub(crate) struct Pending<T>(Arc<Mutex<Option<T>>>);

impl<T> Pending<T> {
    pub(crate) fn new() -> Self {
        Pending(Arc::default())
    }

    /// Returns another handle of the same value.
    pub(crate) fn share(&self) -> Self {
        Pending(self.0.clone())
    }

    pub(crate) fn set(&self, value: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }

    /// Takes the value if it was set.
    pub(crate) fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Contiguous tensor of burn that is kept alive. Its buffer and offset are not known yet: see [`Lease`].
pub(crate) struct Held {
    handle: Handle,
    element: Element,
    elements: usize,
    /// True if the tensor was copied.
    pub(crate) copied: bool,
}

impl Held {
    /// Allocates memory from burn's pool. Its contents are undefined.
    pub(crate) fn scratch(client: &Client, element: Element, elements: usize) -> Self {
        // Two elements of 16 bits share a word of 4 bytes.
        let bytes = (element.bytes() as usize * elements).next_multiple_of(4);
        Held { handle: client.empty(bytes), element, elements, copied: false }
    }
}

/// Makes a tensor contiguous and aligned for a binding, and not shared if it is `written`. Copies it if necessary.
pub(crate) fn hold(tensor: CubeTensor, element: Element, written: bool, alignment: u64) -> (CubeTensor, Held) {
    let elements = tensor.meta.shape().num_elements();
    let mut copied = tensor.meta.is_tiled() || !tensor.is_contiguous();
    let mut tensor = into_contiguous(tensor);
    // burn's allocations are aligned for a binding, but a view may start within one.
    let aligned = tensor.handle.offset_start.unwrap_or(0).is_multiple_of(alignment);
    if !aligned || !copied && written && !tensor.can_mut() {
        tensor = tensor.copy();
        copied = true;
    }
    let held = Held { handle: tensor.handle.clone(), element, elements, copied };
    (tensor, held)
}

/// Tensor in a buffer of burn. The tensor is neither moved nor freed while the lease exists.
pub(crate) struct Lease {
    buffer: wgpu::Buffer,
    element: Element,
    start: u64,
    bytes: u64,
    /// Reference that burn counts.
    _held: Box<dyn Any + Send>,
}

impl Lease {
    /// Gets the buffers and offsets of all tensors in one call, because each call waits for the thread that owns the memory.
    pub(crate) fn all(client: &Client, held: Vec<Held>) -> Result<Vec<Self>, Error> {
        let lease = |Held { handle, element, elements, .. }| {
            let bytes = element.bytes() * elements as u64;
            let held = client.get_resource::<WgpuServer<AutoCompiler>>(handle)?;
            let resource = held.resource();
            let (buffer, start) = (resource.buffer.clone(), resource.offset);
            Ok::<_, ServerError>(Lease { buffer, element, start, bytes, _held: Box::new(held) })
        };
        let leases = client.exclusive(|| held.into_iter().map(lease).collect::<Result<Vec<_>, _>>());
        leases.map_err(Error::runtime)?.map_err(Error::runtime)
    }

    pub(crate) fn slice(&self) -> wgpu::BufferSlice<'_> {
        self.buffer.slice(self.start..self.start + self.bytes)
    }

    /// Returns the slice with its element type.
    pub(crate) fn elements(&self) -> gpu::ElementSlice<'_> {
        self.element.of(self.slice())
    }
}

/// Returns the element type of a tensor.
///
/// # Errors
/// Returns the reason and the way out for a type that the optimizer does not support.
pub(crate) fn element_of(dtype: DType) -> Result<Element, String> {
    match dtype {
        DType::F32 | DType::Flex32 => Ok(Element::F32),
        DType::F16 => Ok(Element::F16),
        DType::BF16 => Ok(Element::Bf16),
        other => Err(format!(
            "it is {other:?}, but the optimizer steps f32, f16 and bf16: convert it (Tensor::cast in a ModuleMapper), or freeze it"
        )),
    }
}
