//! Values in any element type, for cases that are specified in f32.

use half::{bf16, f16};
use wgpu_optim::Element;
use wgpu_optim::cpu::{Values, ValuesMut};

/// Values in the element type in which they are stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored {
    /// 32 bits.
    F32(Vec<f32>),
    /// 16 bits, IEEE half precision.
    F16(Vec<f16>),
    /// 16 bits, brain floating point.
    Bf16(Vec<bf16>),
}

macro_rules! each {
    ($self:expr, $values:ident => $value:expr) => {
        match $self {
            Stored::F32($values) => $value,
            Stored::F16($values) => $value,
            Stored::Bf16($values) => $value,
        }
    };
}

impl Stored {
    /// Rounds these values to an element type.
    pub fn new(element: Element, values: &[f32]) -> Self {
        let values = values.iter().copied();
        match element {
            Element::F32 => Stored::F32(values.collect()),
            Element::F16 => Stored::F16(values.map(f16::from_f32).collect()),
            Element::Bf16 => Stored::Bf16(values.map(bf16::from_f32).collect()),
            other => panic!("{other:?} is not known here"),
        }
    }

    /// Reads values from bytes. Bytes after the last whole element are ignored.
    pub fn from_bytes(element: Element, bytes: &[u8]) -> Self {
        match element {
            Element::F32 => Stored::F32(bytemuck::pod_collect_to_vec(bytes)),
            Element::F16 => Stored::F16(bytemuck::pod_collect_to_vec(bytes)),
            Element::Bf16 => Stored::Bf16(bytemuck::pod_collect_to_vec(bytes)),
            other => panic!("{other:?} is not known here"),
        }
    }

    /// Converts to f32 exactly.
    pub fn values(&self) -> Vec<f32> {
        match self {
            Stored::F32(values) => values.clone(),
            Stored::F16(values) => values.iter().map(|value| value.to_f32()).collect(),
            Stored::Bf16(values) => values.iter().map(|value| value.to_f32()).collect(),
        }
    }

    /// Returns the values as the CPU path reads them.
    pub fn slice(&self) -> &dyn Values {
        each!(self, values => values)
    }

    /// Returns the values as the CPU path writes them.
    pub fn slice_mut(&mut self) -> &mut dyn ValuesMut {
        each!(self, values => values)
    }

    /// Returns the values if they are stored in f32.
    pub fn floats(&self) -> Option<&[f32]> {
        match self {
            Stored::F32(values) => Some(values),
            _ => None,
        }
    }

    /// Returns the bytes in memory.
    pub fn bytes(&self) -> &[u8] {
        each!(self, values => bytemuck::cast_slice(values))
    }
}

/// Rounds values to an element type.
pub fn rounded(element: Element, values: &[f32]) -> Vec<f32> {
    Stored::new(element, values).values()
}

/// Returns half a unit in the last place of an element of this size.
pub fn half_ulp(element: Element, size: f64) -> f64 {
    let (bits, least) = match element {
        Element::F32 => (24, f64::from(f32::MIN_POSITIVE)),
        Element::F16 => (11, f64::from(f16::MIN_POSITIVE.to_f32())),
        Element::Bf16 => (8, f64::from(f32::MIN_POSITIVE)),
        other => panic!("{other:?} is not known here"),
    };
    let exponent = (size.abs().max(least).to_bits() >> 52) as i32 - 1023;
    f64::from(exponent - bits).exp2()
}
