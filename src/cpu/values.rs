//! Slices of any element type, as they are passed to a step on the host.

use half::{bf16, f16};

use crate::cpu::half::{Remainders, RemaindersMut, decode, decode_parameters, encode_parameters};
use crate::element::Element;
use crate::plan::Encoding;

/// Slice of f32, f16 or bf16 values that a step reads.
#[derive(Debug, Clone, Copy)]
pub enum Slice<'a> {
    /// Of f32.
    F32(&'a [f32]),
    /// Of f16.
    F16(&'a [f16]),
    /// Of bf16.
    Bf16(&'a [bf16]),
}

/// Slice of f32, f16 or bf16 values that a step changes.
#[derive(Debug)]
pub enum SliceMut<'a> {
    /// Of f32.
    F32(&'a mut [f32]),
    /// Of f16.
    F16(&'a mut [f16]),
    /// Of bf16.
    Bf16(&'a mut [bf16]),
}

/// A type that values are stored as.
pub(crate) trait Value: Copy + Send + Sync {
    fn slice(values: &[Self]) -> Slice<'_>;
    fn slice_mut(values: &mut [Self]) -> SliceMut<'_>;
}

macro_rules! stored_as {
    ($($kind:ident, $type:ty;)*) => {$(
        impl Value for $type {
            #[inline]
            fn slice(values: &[Self]) -> Slice<'_> {
                Slice::$kind(values)
            }

            #[inline]
            fn slice_mut(values: &mut [Self]) -> SliceMut<'_> {
                SliceMut::$kind(values)
            }
        }
    )*};
}

stored_as! {
    F32, f32;
    F16, f16;
    Bf16, bf16;
}

impl<'a, V: Value> From<&'a [V]> for Slice<'a> {
    fn from(values: &'a [V]) -> Self {
        V::slice(values)
    }
}

impl<'a, V: Value> From<&'a mut [V]> for SliceMut<'a> {
    fn from(values: &'a mut [V]) -> Self {
        V::slice_mut(values)
    }
}

macro_rules! each {
    ($self:expr, $kind:ident: $slice:ident => $value:expr) => {
        match $self {
            $kind::F32($slice) => $value,
            $kind::F16($slice) => $value,
            $kind::Bf16($slice) => $value,
        }
    };
}

impl<'a> Slice<'a> {
    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        each!(self, Slice: slice => slice.len())
    }

    /// Type of the stored values.
    pub(crate) fn element(&self) -> Element {
        match self {
            Slice::F32(_) => Element::F32,
            Slice::F16(_) => Element::F16,
            Slice::Bf16(_) => Element::Bf16,
        }
    }

    pub(crate) fn range(self, range: std::ops::Range<usize>) -> Self {
        each!(self, Slice: slice => (&slice[range]).into())
    }

    pub(crate) fn split_at(self, middle: usize) -> (Self, Self) {
        let end = self.len();
        (self.range(0..middle), self.range(middle..end))
    }

    #[cfg(feature = "checkpoint")]
    pub(crate) fn as_bytes(&self) -> &'a [u8] {
        each!(self, Slice: slice => bytemuck::cast_slice(slice))
    }

    /// Returns the values as f32. 16-bit values are decoded into the buffer.
    #[inline(always)]
    pub(crate) fn decode(self, buffer: &'a mut [f32]) -> &'a [f32] {
        let buffer = &mut buffer[..self.len()];
        match self {
            Slice::F32(slice) => return slice,
            Slice::F16(slice) => decode(slice, buffer),
            Slice::Bf16(slice) => decode(slice, buffer),
        }
        buffer
    }

    /// Decodes like [`Slice::decode`], for parameters with the remainders of their master weights.
    #[inline(always)]
    pub(crate) fn decode_parameters(self, remainders: Remainders, buffer: &'a mut [f32]) -> &'a [f32] {
        let buffer = &mut buffer[..self.len()];
        match self {
            Slice::F32(slice) => return slice,
            Slice::F16(slice) => decode_parameters(slice, remainders, buffer),
            Slice::Bf16(slice) => decode_parameters(slice, remainders, buffer),
        }
        buffer
    }
}

impl<'a> SliceMut<'a> {
    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Returns the values for reading.
    pub fn as_slice(&self) -> Slice<'_> {
        each!(self, SliceMut: slice => (&**slice).into())
    }

    pub(crate) fn split_at(self, middle: usize) -> (Self, Self) {
        each!(self, SliceMut: slice => {
            let (before, after) = slice.split_at_mut(middle);
            (before.into(), after.into())
        })
    }

    pub(crate) fn range_mut(&mut self, range: std::ops::Range<usize>) -> SliceMut<'_> {
        each!(self, SliceMut: slice => (&mut slice[range]).into())
    }

    pub(crate) fn reborrow(&mut self) -> SliceMut<'_> {
        each!(self, SliceMut: slice => (&mut **slice).into())
    }

    #[cfg(feature = "checkpoint")]
    pub(crate) fn as_bytes_mut(&mut self) -> &mut [u8] {
        each!(self, SliceMut: slice => bytemuck::cast_slice_mut(slice))
    }

    /// Stores new parameters. `in_range` tells whether all of them are known to be in the range of their type.
    #[inline(always)]
    pub(crate) fn encode_parameters(
        &mut self,
        in_range: bool,
        encoding: Encoding,
        values: &[f32],
        remainders: RemaindersMut,
        key: u32,
        first_element: u32,
    ) {
        match self {
            SliceMut::F32(slice) => slice.copy_from_slice(values),
            SliceMut::F16(slice) => {
                encode_parameters(in_range, encoding, values, slice, remainders, key, first_element);
            }
            SliceMut::Bf16(slice) => {
                encode_parameters(in_range, encoding, values, slice, remainders, key, first_element);
            }
        }
    }
}

/// Parameters or gradients on the host that a call reads: slices, vectors and arrays of `f32`, [`half::f16`] or [`half::bf16`], and references to
/// them and boxes of them.
///
/// The elements of one list have one type, as in `&[Vec<f32>]`. A list of `&dyn Values` mixes them:
///
/// ```
/// use wgpu_optim::cpu::{Values, ValuesMut};
/// use wgpu_optim::half::bf16;
/// use wgpu_optim::{Group, OptimizerBuilder, Rule};
///
/// let (mut w, w_grad) = (vec![bf16::ONE; 100], vec![bf16::from_f32(0.5); 100]);
/// let (mut b, b_grad) = ([0.0f32; 10], [0.25f32; 10]);
/// let mut optimizer = OptimizerBuilder::new(Rule::sgd())
///     .group(Group::new("all").tensor("w", &w, &w_grad).tensor("b", &b, &b_grad))
///     .build_cpu()?;
/// let params: &mut [&mut dyn ValuesMut] = &mut [&mut w, &mut b];
/// let grads: &[&dyn Values] = &[&w_grad, &b_grad];
/// optimizer.step(params, grads)?;
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
///
/// The trait is sealed: no other type can implement it.
pub trait Values: sealed::AsSlice {}

/// [`Values`] that a call changes: the same types, or mutable references to them.
pub trait ValuesMut: Values + sealed::AsSliceMut {}

impl<T: sealed::AsSlice + ?Sized> Values for T {}

impl<T: sealed::AsSliceMut + ?Sized> ValuesMut for T {}

pub(crate) mod sealed {
    use super::{Slice, SliceMut};

    pub trait AsSlice: Send + Sync {
        fn values(&self) -> Slice<'_>;
    }

    pub trait AsSliceMut: AsSlice {
        fn values_mut(&mut self) -> SliceMut<'_>;
    }
}

use sealed::{AsSlice, AsSliceMut};

impl<V: Value> AsSlice for [V] {
    fn values(&self) -> Slice<'_> {
        V::slice(self)
    }
}

impl<V: Value> AsSliceMut for [V] {
    fn values_mut(&mut self) -> SliceMut<'_> {
        V::slice_mut(self)
    }
}

impl<V: Value, const N: usize> AsSlice for [V; N] {
    fn values(&self) -> Slice<'_> {
        V::slice(self)
    }
}

impl<V: Value, const N: usize> AsSliceMut for [V; N] {
    fn values_mut(&mut self) -> SliceMut<'_> {
        V::slice_mut(self)
    }
}

impl<V: Value> AsSlice for Vec<V> {
    fn values(&self) -> Slice<'_> {
        V::slice(self)
    }
}

impl<V: Value> AsSliceMut for Vec<V> {
    fn values_mut(&mut self) -> SliceMut<'_> {
        V::slice_mut(self)
    }
}

impl AsSlice for Slice<'_> {
    fn values(&self) -> Slice<'_> {
        *self
    }
}

impl AsSlice for SliceMut<'_> {
    fn values(&self) -> Slice<'_> {
        self.as_slice()
    }
}

impl AsSliceMut for SliceMut<'_> {
    fn values_mut(&mut self) -> SliceMut<'_> {
        self.reborrow()
    }
}

impl<T: AsSlice + ?Sized> AsSlice for &T {
    fn values(&self) -> Slice<'_> {
        (**self).values()
    }
}

impl<T: AsSlice + ?Sized> AsSlice for Box<T> {
    fn values(&self) -> Slice<'_> {
        (**self).values()
    }
}

impl<T: AsSliceMut + ?Sized> AsSliceMut for Box<T> {
    fn values_mut(&mut self) -> SliceMut<'_> {
        (**self).values_mut()
    }
}

impl<T: AsSlice + ?Sized> AsSlice for &mut T {
    fn values(&self) -> Slice<'_> {
        (**self).values()
    }
}

impl<T: AsSliceMut + ?Sized> AsSliceMut for &mut T {
    fn values_mut(&mut self) -> SliceMut<'_> {
        (**self).values_mut()
    }
}
