//! Tensor on the host. Only its length and element type are kept. The slices are passed to each step.

use crate::cpu::values::Values;
use crate::element::Element;
use crate::error::{BuildError, Error};
use crate::group::TensorSlice;
use crate::group::sealed::Sealed;

/// Length and element type of a slice of parameters or gradients on the host. [`Group::tensor`](crate::Group::tensor) makes it.
#[derive(Debug, Clone, Copy)]
pub struct Tensor {
    pub(crate) element: Element,
    pub(crate) elements: usize,
}

impl<T: Values + ?Sized> Sealed for &T {}

impl<T: Values + ?Sized> TensorSlice for &T {
    type Tensor = Tensor;

    fn tensor(self) -> Tensor {
        let values = self.values();
        Tensor { element: values.element(), elements: values.len() }
    }
}

/// Returns the common length of parameters and gradients.
pub(crate) fn checked(name: &str, [params, grads]: [Tensor; 2]) -> Result<u64, Error> {
    if params.elements != grads.elements {
        return Err(Error::from(BuildError::LengthMismatch {
            tensor: name.to_owned(),
            params: params.elements as u64,
            grads: grads.elements as u64,
        }));
    }
    Ok(params.elements as u64)
}
