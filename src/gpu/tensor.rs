//! Tensor on the device, made of two slices of the caller's buffers.

use crate::element::Element;
use crate::error::{BuildError, CallError, Error};
use crate::gpu::limits::binding_alignment;
use crate::group::TensorSlice;
use crate::group::sealed::Sealed;
use crate::plan::Region;

/// Slice of parameters or gradients in a buffer of the caller. It keeps the buffer alive.
/// [`Group::tensor`](crate::Group::tensor) makes it.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub(crate) buffer: wgpu::Buffer,
    pub(crate) element: Element,
    offset_bytes: u64,
    size_bytes: u64,
}

/// Slice of a buffer with an element type. [`Element::of`] makes it.
#[derive(Debug, Clone, Copy)]
pub struct ElementSlice<'a> {
    element: Element,
    slice: wgpu::BufferSlice<'a>,
}

impl Element {
    /// Marks a buffer slice as having elements of this type, for [`Group::tensor`](crate::Group::tensor) and
    /// [`Optimizer::rebind`](crate::Optimizer::rebind). A plain [`wgpu::BufferSlice`] has f32 elements.
    pub fn of(self, slice: wgpu::BufferSlice<'_>) -> ElementSlice<'_> {
        ElementSlice { element: self, slice }
    }
}

impl Sealed for wgpu::BufferSlice<'_> {}
impl Sealed for ElementSlice<'_> {}

impl TensorSlice for wgpu::BufferSlice<'_> {
    type Tensor = Tensor;

    fn tensor(self) -> Tensor {
        Element::F32.of(self).tensor()
    }
}

impl TensorSlice for ElementSlice<'_> {
    type Tensor = Tensor;

    fn tensor(self) -> Tensor {
        let ElementSlice { element, slice } = self;
        Tensor { buffer: slice.buffer().clone(), element, offset_bytes: slice.offset(), size_bytes: slice.size() }
    }
}

/// Size of the word that two 16-bit elements share.
const WORD_BYTES: u64 = 4;

impl Tensor {
    pub(crate) fn start(&self) -> u64 {
        self.offset_bytes / self.element.bytes()
    }

    pub(crate) fn elements(&self) -> u64 {
        self.size_bytes / self.element.bytes()
    }

    pub(crate) fn check(&self, tensor: &str, role: &'static str) -> Result<(), Error> {
        self.check_usage(tensor, role, wgpu::BufferUsages::STORAGE, "BufferUsages::STORAGE")
    }

    /// Returns an error if a slice is not exactly one f32.
    pub(crate) fn check_scalar(&self, name: &str) -> Result<(), Error> {
        let bytes = Element::F32.bytes();
        if self.element == Element::F32 && self.size_bytes == bytes {
            return Ok(());
        }
        Err(Error::from(BuildError::Limit {
            what: format!("the length in bytes of the slice \"{name}\""),
            value: self.size_bytes,
            limit: bytes,
            way_out: "give a slice of exactly one f32: buffer.slice(offset..offset + 4)",
        }))
    }

    /// Returns the part of the buffer that is bound for the slice's first element, and the element's index in that part. The two differ because
    /// a binding may only start at certain offsets.
    pub(crate) fn scalar_region(&self, limits: &wgpu::Limits) -> (Region, u32) {
        let alignment = binding_alignment(limits) / self.element.bytes();
        let start = self.start() / alignment * alignment;
        (Region { buffer: 0, element: self.element, start, end: self.start() + 1 }, (self.start() - start) as u32)
    }

    /// Checks a destination for a copy of a tensor's averages.
    pub(crate) fn check_destination(&self, tensor: &str, elements: u64) -> Result<(), Error> {
        self.check_usage(tensor, "average", wgpu::BufferUsages::COPY_DST, "BufferUsages::COPY_DST")?;
        if self.elements() != elements {
            return Err(Error::from(CallError::AveragesLength {
                tensor: tensor.to_owned(),
                expected: elements,
                actual: self.elements(),
            }));
        }
        Ok(())
    }

    fn check_usage(
        &self,
        tensor: &str,
        role: &'static str,
        usage: wgpu::BufferUsages,
        missing: &'static str,
    ) -> Result<(), Error> {
        if !self.offset_bytes.is_multiple_of(WORD_BYTES) || !self.size_bytes.is_multiple_of(self.element.bytes()) {
            return Err(Error::from(BuildError::Misaligned {
                tensor: tensor.to_owned(),
                role,
                offset_bytes: self.offset_bytes,
                size_bytes: self.size_bytes,
                element: self.element,
            }));
        }
        let end_bytes = self.offset_bytes + self.size_bytes;
        let buffer_bytes = self.buffer.size();
        if end_bytes.next_multiple_of(WORD_BYTES) > buffer_bytes {
            return Err(Error::from(BuildError::HalfWord { tensor: tensor.to_owned(), role, end_bytes, buffer_bytes }));
        }
        if !self.buffer.usage().contains(usage) {
            return Err(Error::from(BuildError::MissingUsage { tensor: tensor.to_owned(), role, missing }));
        }
        Ok(())
    }
}

/// Checks that parameters and gradients start where a binding can start.
pub(crate) fn check_alignment(name: &str, tensor: &[Tensor; 2], alignment_bytes: u64) -> Result<(), Error> {
    for (role, slice) in ["parameter", "gradient"].into_iter().zip(tensor) {
        if !slice.offset_bytes.is_multiple_of(alignment_bytes) {
            return Err(Error::from(CallError::BindingAlignment {
                tensor: name.to_owned(),
                role,
                offset_bytes: slice.offset_bytes,
                alignment_bytes,
            }));
        }
    }
    Ok(())
}

/// Checks parameters and gradients and returns their common length in elements.
pub(crate) fn checked(name: &str, [params, grads]: &[Tensor; 2]) -> Result<u64, Error> {
    params.check(name, "parameter")?;
    grads.check(name, "gradient")?;
    let (params, grads) = (params.elements(), grads.elements());
    if params != grads {
        return Err(Error::from(BuildError::LengthMismatch { tensor: name.to_owned(), params, grads }));
    }
    Ok(params)
}
