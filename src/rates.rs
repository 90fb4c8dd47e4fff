//! Learning rates of rows and columns within a tensor.

use std::sync::Arc;

use crate::error::{BuildError, Error, require};
use crate::plan::{RateAxis, Shape};

/// Factors of the learning rate for the rows or the columns of a group's tensors, set by
/// [`Group::rate_factors`](crate::Group::rate_factors).
///
/// The first dimension of a tensor's [`shape`](crate::Group::shaped_tensor) is its number of rows, and the product of
/// the others its number of columns. A row or column with the factor f takes the steps of a group whose rate is f times
/// as large: `w ← (1 - f η λ) w - f η u`, where λ is decoupled weight decay. The rate in the records is η, and the
/// regime does not see the factors.
///
/// ```
/// use wgpu_optim::{Group, OptimizerBuilder, RateFactors, Rule};
///
/// // Gaussians with a position, a scale and an opacity each: 7 columns.
/// let (splats, gradients) = (vec![0.5f32; 1000 * 7], vec![0.1f32; 1000 * 7]);
/// let factors = [[1.0; 3], [0.3; 3]].concat().into_iter().chain([3.0]);
/// let optimizer = OptimizerBuilder::new(Rule::adamw())
///     .group(
///         Group::new("splats")
///             .rate_factors(RateFactors::Columns(factors.collect()))
///             .shaped_tensor("splats", &[1000, 7], &splats, &gradients),
///     )
///     .build_cpu()?;
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "checkpoint", derive(serde::Serialize))]
#[non_exhaustive]
pub enum RateFactors {
    /// A factor for each column.
    #[cfg_attr(feature = "checkpoint", serde(serialize_with = "crate::schedule::serialize_factors"))]
    Columns(Arc<[f32]>),
    /// A factor for each row.
    #[cfg_attr(feature = "checkpoint", serde(serialize_with = "crate::schedule::serialize_factors"))]
    Rows(Arc<[f32]>),
}

impl RateFactors {
    /// Returns the factors.
    pub(crate) fn factors(&self) -> &Arc<[f32]> {
        match self {
            RateFactors::Columns(factors) | RateFactors::Rows(factors) => factors,
        }
    }

    /// Returns the axis that the factors belong to.
    pub(crate) fn axis(&self) -> RateAxis {
        match self {
            RateFactors::Columns(_) => RateAxis::Columns,
            RateFactors::Rows(_) => RateAxis::Rows,
        }
    }

    /// Returns an error, in the name of the group, if a factor is outside its range.
    pub(crate) fn validate(&self, group: &str) -> Result<(), Error> {
        let in_range = |factor: &&f32| !(0.0..=1e8).contains(*factor);
        match self.factors().iter().find(in_range) {
            None => Ok(()),
            Some(factor) => {
                require(false, || format!("group \"{group}\""), "rate_factors", factor, "from 0 to 1e8 each")
            }
        }
    }

    /// Returns an error if a tensor has another number of rows or columns.
    pub(crate) fn check(&self, tensor: &str, shape: &[usize]) -> Result<(), Error> {
        let factors = self.factors().len();
        let (what, length) = match (self, Shape::of(shape)) {
            (RateFactors::Columns(_), shape) => ("column", shape.map(|shape| shape.columns)),
            (RateFactors::Rows(_), shape) => ("row", shape.map(|shape| shape.rows)),
        };
        if length == Some(factors) {
            return Ok(());
        }
        Err(Error::from(BuildError::RateFactors { tensor: tensor.to_owned(), what, shape: shape.to_vec(), factors }))
    }
}
