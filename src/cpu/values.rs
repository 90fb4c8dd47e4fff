//! Slices of whatever elements, as a step on the host is handed them.

use half::{bf16, f16};

use crate::cpu::half::{decode, decode_parameters, encode_parameters};
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

macro_rules! from {
    ($($kind:ident, $type:ty;)*) => {$(
        impl<'a> From<&'a [$type]> for Slice<'a> {
            fn from(slice: &'a [$type]) -> Self {
                Slice::$kind(slice)
            }
        }

        impl<'a> From<&'a Vec<$type>> for Slice<'a> {
            fn from(values: &'a Vec<$type>) -> Self {
                Slice::$kind(values)
            }
        }

        impl<'a> From<&'a mut [$type]> for SliceMut<'a> {
            fn from(slice: &'a mut [$type]) -> Self {
                SliceMut::$kind(slice)
            }
        }

        impl<'a> From<&'a mut Vec<$type>> for SliceMut<'a> {
            fn from(values: &'a mut Vec<$type>) -> Self {
                SliceMut::$kind(values)
            }
        }
    )*};
}

from! {
    F32, f32;
    F16, f16;
    Bf16, bf16;
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
    /// How many values.
    pub fn len(&self) -> usize {
        each!(self, Slice: slice => slice.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What they are stored as.
    pub fn element(&self) -> Element {
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

    /// The values as f32; those of 16 bits go through the buffer.
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
    pub(crate) fn decode_parameters(self, remainders: &[i16], buffer: &'a mut [f32]) -> &'a [f32] {
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
    /// How many values.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What they are stored as.
    pub fn element(&self) -> Element {
        self.as_slice().element()
    }

    /// The values, to read.
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

    /// Stores new parameters.
    #[inline(always)]
    pub(crate) fn encode_parameters(
        &mut self,
        encoding: Encoding,
        values: &[f32],
        remainders: &mut [i16],
        key: u32,
        first_element: u32,
    ) {
        match self {
            SliceMut::F32(slice) => slice.copy_from_slice(values),
            SliceMut::F16(slice) => {
                encode_parameters(encoding, values, slice, remainders, key, first_element);
            }
            SliceMut::Bf16(slice) => {
                encode_parameters(encoding, values, slice, remainders, key, first_element);
            }
        }
    }
}

/// Values that can be read: slices of f32, and slices of any element type.
pub(crate) trait Values {
    fn values(&self) -> Slice<'_>;
}

impl<T: AsRef<[f32]>> Values for T {
    fn values(&self) -> Slice<'_> {
        Slice::F32(self.as_ref())
    }
}

impl Values for Slice<'_> {
    fn values(&self) -> Slice<'_> {
        *self
    }
}

impl Values for SliceMut<'_> {
    fn values(&self) -> Slice<'_> {
        self.as_slice()
    }
}

/// Values that can be changed.
pub(crate) trait ValuesMut: Values {
    fn values_mut(&mut self) -> SliceMut<'_>;
}

impl ValuesMut for &mut [f32] {
    fn values_mut(&mut self) -> SliceMut<'_> {
        SliceMut::F32(self)
    }
}

impl ValuesMut for SliceMut<'_> {
    fn values_mut(&mut self) -> SliceMut<'_> {
        self.reborrow()
    }
}
