//! A tensor on the device: two slices of the caller's buffers.

use crate::element::Element;
use crate::error::{BuildError, CallError, Error};
use crate::group::TensorPair;
use crate::group::sealed::Sealed;

/// Parameters and gradients of one tensor in the caller's buffers. [`Group::tensor`](crate::Group::tensor) makes it.
#[derive(Debug, Clone)]
pub struct Tensor {
    params: Span,
    grads: Span,
}

impl Tensor {
    /// The slice of the parameters.
    pub(crate) fn params(&self) -> Span {
        self.params.clone()
    }
}

/// A slice that owns its (reference-counted) buffer.
#[derive(Debug, Clone)]
pub(crate) struct Span {
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

impl From<wgpu::BufferSlice<'_>> for Span {
    fn from(slice: wgpu::BufferSlice<'_>) -> Self {
        Element::F32.of(slice).into()
    }
}

impl From<ElementSlice<'_>> for Span {
    fn from(ElementSlice { element, slice }: ElementSlice) -> Self {
        Span { buffer: slice.buffer().clone(), element, offset_bytes: slice.offset(), size_bytes: slice.size() }
    }
}

macro_rules! pairs {
    ($($params:ident, $grads:ident;)*) => {$(
        impl<'b> TensorPair<$grads<'b>> for $params<'_> {
            type Tensor = Tensor;

            fn join(self, gradients: $grads<'b>) -> Tensor {
                Tensor {
                    params: self.into(),
                    grads: gradients.into(),
                }
            }
        }
    )*};
}

use wgpu::BufferSlice;

impl Sealed for BufferSlice<'_> {}
impl Sealed for ElementSlice<'_> {}

pairs! {
    BufferSlice, BufferSlice;
    BufferSlice, ElementSlice;
    ElementSlice, BufferSlice;
    ElementSlice, ElementSlice;
}

/// Size of the word that two 16-bit elements share.
const WORD_BYTES: u64 = 4;

impl Span {
    pub(crate) fn start(&self) -> u64 {
        self.offset_bytes / self.element.bytes()
    }

    fn elements(&self) -> u64 {
        self.size_bytes / self.element.bytes()
    }

    pub(crate) fn check(&self, tensor: &str, role: &'static str) -> Result<(), Error> {
        self.check_usage(tensor, role, wgpu::BufferUsages::STORAGE, "BufferUsages::STORAGE")
    }

    /// Refuses a slice that is not one f32.
    pub(crate) fn check_scalar(&self, name: &str) -> Result<(), Error> {
        let bytes = Element::F32.bytes();
        if self.element == Element::F32 && self.size_bytes == bytes {
            return Ok(());
        }
        Err(Error::Build(BuildError::Limit {
            what: format!("the length in bytes of the slice \"{name}\""),
            value: self.size_bytes,
            limit: bytes,
            way_out: "give a slice of exactly one f32: buffer.slice(offset..offset + 4)",
        }))
    }

    /// Checks a place that a tensor's averages are to be copied to.
    pub(crate) fn check_destination(&self, tensor: &str, elements: u64) -> Result<(), Error> {
        self.check_usage(tensor, "average", wgpu::BufferUsages::COPY_DST, "BufferUsages::COPY_DST")?;
        if self.elements() != elements {
            return Err(Error::Call(CallError::AveragesLength {
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
            return Err(Error::Build(BuildError::Misaligned {
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
            return Err(Error::Build(BuildError::HalfWord {
                tensor: tensor.to_owned(),
                role,
                end_bytes,
                buffer_bytes,
            }));
        }
        if !self.buffer.usage().contains(usage) {
            return Err(Error::Build(BuildError::MissingUsage { tensor: tensor.to_owned(), role, missing }));
        }
        Ok(())
    }
}

impl Tensor {
    /// Checks that both slices start where a binding can.
    pub(crate) fn check_alignment(&self, name: &str, alignment_bytes: u64) -> Result<(), Error> {
        for (role, span) in [("parameter", &self.params), ("gradient", &self.grads)] {
            if !span.offset_bytes.is_multiple_of(alignment_bytes) {
                return Err(Error::Call(CallError::BindingAlignment {
                    tensor: name.to_owned(),
                    role,
                    offset_bytes: span.offset_bytes,
                    alignment_bytes,
                }));
            }
        }
        Ok(())
    }

    /// Checks both slices and gives them back with their common length in elements.
    pub(crate) fn checked(self, name: &str) -> Result<(Span, Span, u64), Error> {
        self.params.check(name, "parameter")?;
        self.grads.check(name, "gradient")?;
        let (params, grads) = (self.params.elements(), self.grads.elements());
        if params != grads {
            return Err(Error::Build(BuildError::LengthMismatch { tensor: name.to_owned(), params, grads }));
        }
        Ok((self.params, self.grads, params))
    }
}
