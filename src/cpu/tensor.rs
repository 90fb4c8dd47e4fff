//! A tensor on the host: only its lengths are kept, the slices are handed to each step.

use half::{bf16, f16};

use crate::cpu::values::Slice;
use crate::element::Element;
use crate::error::{BuildError, Error};
use crate::group::TensorPair;
use crate::group::sealed::Sealed;

/// The lengths of a tensor's parameter and gradient slices, and what their elements are; made by [`Group::tensor`](crate::Group::tensor).
#[derive(Debug, Clone, Copy)]
pub struct Tensor {
    params: (Element, usize),
    grads: (Element, usize),
}

/// A type that elements are stored as on the host: `f32`, [`half::f16`] or [`half::bf16`].
pub trait Value: sealed::Sealed {
    /// The element type.
    const ELEMENT: Element;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

impl Value for f32 {
    const ELEMENT: Element = Element::F32;
}

impl Value for f16 {
    const ELEMENT: Element = Element::F16;
}

impl Value for bf16 {
    const ELEMENT: Element = Element::Bf16;
}

impl<P: Value> Sealed for &[P] {}
impl<P: Value> Sealed for &Vec<P> {}
impl Sealed for Slice<'_> {}

impl<'b, P: Value, G: Value> TensorPair<&'b [G]> for &[P] {
    type Tensor = Tensor;

    fn join(self, gradients: &'b [G]) -> Tensor {
        Tensor { params: (P::ELEMENT, self.len()), grads: (G::ELEMENT, gradients.len()) }
    }
}

impl<'b, P: Value, G: Value> TensorPair<&'b Vec<G>> for &Vec<P> {
    type Tensor = Tensor;

    fn join(self, gradients: &'b Vec<G>) -> Tensor {
        self.as_slice().join(gradients.as_slice())
    }
}

impl<'b> TensorPair<Slice<'b>> for Slice<'_> {
    type Tensor = Tensor;

    fn join(self, gradients: Slice<'b>) -> Tensor {
        Tensor { params: (self.element(), self.len()), grads: (gradients.element(), gradients.len()) }
    }
}

impl Tensor {
    /// Element types of parameters and gradients.
    pub(crate) fn elements(&self) -> (Element, Element) {
        (self.params.0, self.grads.0)
    }

    /// The common length of both slices.
    pub(crate) fn checked(self, name: &str) -> Result<u64, Error> {
        if self.params.1 != self.grads.1 {
            return Err(Error::Build(BuildError::LengthMismatch {
                tensor: name.to_owned(),
                params: self.params.1 as u64,
                grads: self.grads.1 as u64,
            }));
        }
        Ok(self.params.1 as u64)
    }
}
