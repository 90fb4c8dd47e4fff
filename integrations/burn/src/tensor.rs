//! What lies under a burn tensor: its buffer on the device.

use std::any::Any;

use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::server::Handle;
use burn_cubecl::cubecl::wgpu::{AutoCompiler, WgpuServer};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use wgpu_optim::wgpu;

use crate::error::Error;

/// Takes a tensor apart.
pub(crate) fn open<const D: usize>(tensor: Tensor<D>) -> Result<CubeTensor, String> {
    let opened = tensor.try_into_primitive::<CubeBackend>();
    opened.map_err(|error| format!("it is not on burn's wgpu backend ({error:?})"))
}

/// Puts it together again.
pub(crate) fn close<const D: usize>(tensor: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<CubeBackend>(tensor)
}

/// Elements of one tensor in a buffer of burn's, which stay where they are for as long as this lives.
pub(crate) struct Lease {
    buffer: wgpu::Buffer,
    start: u64,
    bytes: u64,
    /// What burn counts to know that somebody uses them.
    _held: Box<dyn Any + Send>,
}

impl Lease {
    /// Of a tensor without gaps.
    pub(crate) fn of(tensor: &CubeTensor, elements: usize) -> Result<Self, Error> {
        Self::of_handle(&tensor.client, tensor.handle.clone(), elements)
    }

    /// Of an allocation's first elements.
    pub(crate) fn of_handle(client: &Client, handle: Handle, elements: usize) -> Result<Self, Error> {
        let bytes = 4 * elements as u64;
        let held = client
            .get_resource::<WgpuServer<AutoCompiler>>(handle)
            .map_err(|error| Error::Runtime(error.to_string()))?;
        let resource = held.resource();
        Ok(Lease { buffer: resource.buffer.clone(), start: resource.offset, bytes, _held: Box::new(held) })
    }

    pub(crate) fn slice(&self) -> wgpu::BufferSlice<'_> {
        self.buffer.slice(self.start..self.start + self.bytes)
    }

    /// Whether a binding can start here.
    fn is_aligned(&self, alignment: u64) -> bool {
        self.start.is_multiple_of(alignment)
    }
}

/// A tensor's elements in the order of its shape, without gaps, and where they are; and whether they had to be copied for that. A tensor
/// that is to be `written` must also be nobody else's.
pub(crate) fn lease(tensor: CubeTensor, written: bool, alignment: u64) -> (CubeTensor, Result<(Lease, bool), Error>) {
    let elements = tensor.meta.shape().num_elements();
    let mut copied = tensor.meta.is_tiled() || !tensor.is_contiguous();
    let mut tensor = into_contiguous(tensor);
    if !copied && written && !tensor.can_mut() {
        tensor = tensor.copy();
        copied = true;
    }
    let mut leased = Lease::of(&tensor, elements);
    if leased.as_ref().is_ok_and(|lease| !lease.is_aligned(alignment)) {
        // A view into the midst of another tensor.
        tensor = tensor.copy();
        copied = true;
        leased = Lease::of(&tensor, elements);
    }
    (tensor, leased.map(|lease| (lease, copied)))
}

/// Refuses what is not f32.
pub(crate) fn check_dtype<const D: usize>(tensor: &Tensor<D>) -> Result<(), String> {
    match tensor.dtype() {
        DType::F32 | DType::Flex32 => Ok(()),
        other => Err(format!(
            "it is {other:?}, but the optimizer steps f32 only: convert it (Module::cast or a device's float_dtype), or freeze it"
        )),
    }
}
