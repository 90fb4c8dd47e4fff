//! A tensor on the host: only its lengths are kept, the slices are handed to each step.

use crate::error::Error;
use crate::group::TensorPair;

/// The lengths of a tensor's parameter and gradient slices; made by [`Group::tensor`](crate::Group::tensor).
#[derive(Debug, Clone, Copy)]
pub struct Tensor {
    params: usize,
    grads: usize,
}

impl<'b> TensorPair<&'b [f32]> for &[f32] {
    type Tensor = Tensor;

    fn join(self, gradients: &'b [f32]) -> Tensor {
        Tensor {
            params: self.len(),
            grads: gradients.len(),
        }
    }
}

impl<'b> TensorPair<&'b Vec<f32>> for &Vec<f32> {
    type Tensor = Tensor;

    fn join(self, gradients: &'b Vec<f32>) -> Tensor {
        self.as_slice().join(gradients.as_slice())
    }
}

impl Tensor {
    /// The common length of both slices.
    pub(crate) fn checked(self, name: &str) -> Result<u64, Error> {
        if self.params != self.grads {
            return Err(Error::LengthMismatch {
                tensor: name.to_owned(),
                params: self.params as u64,
                grads: self.grads as u64,
            });
        }
        Ok(self.params as u64)
    }
}
