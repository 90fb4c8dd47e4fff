//! Variance reduction on the device: `shaders/controllers/variance_reduction.wgsl`.

use super::element_pairs::{Pairs, Switched};
use crate::controllers::element_pairs::check_elements;
use crate::error::Error;
use crate::gpu::optimizer::Optimizer;

const KERNEL: Switched = Switched {
    module: "controllers/variance_reduction",
    stem: "variance_reduction",
    switch: "KEEP",
    memory: "the mean gradient of a variance reduction",
};

/// Variance reduction on the device: replaces the gradient of a batch by `g - g̃ + μ` before the optimizer's step.
/// [`CpuVarianceReduction`](crate::CpuVarianceReduction) describes its purpose, and SARAH with the same calls.
///
/// It keeps μ, 4 bytes per parameter. [`encode_keep`](VarianceReduction::encode_keep) moves 8 bytes per parameter and
/// [`encode_combine`](VarianceReduction::encode_combine) 16. The caller has a second gradient buffer, for g̃, and a
/// copy of the parameters at the snapshot.
///
/// ```no_run
/// use wgpu_optim::{Optimizer, VarianceReduction, wgpu};
///
/// fn epoch(
///     optimizer: &Optimizer,
///     [gradients, at_snapshot]: [&wgpu::Buffer; 2],
///     encoder: &mut wgpu::CommandEncoder,
///     mut compute_gradients: impl FnMut(&mut wgpu::CommandEncoder, &str),
/// ) -> Result<(), wgpu_optim::Error> {
///     let reduction = VarianceReduction::new(optimizer, &[[gradients.slice(..), at_snapshot.slice(..)]])?;
///     compute_gradients(encoder, "of all rows at the snapshot");
///     reduction.encode_keep(encoder)?;
///     for _ in 0..100 {
///         compute_gradients(encoder, "of a batch at the parameters, and at the snapshot into the second buffer");
///         reduction.encode_combine(encoder)?;
///         optimizer.encode_step(encoder)?;
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct VarianceReduction(Pairs);

impl VarianceReduction {
    /// Creates it with μ = 0. `slices` has a pair for each of the optimizer's [`tensors`](Optimizer::tensors): the
    /// gradients that the optimizer was built with, which are changed in place, and those of the same batch at the
    /// snapshot. All are f32.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) for 16-bit elements, or a slice that is misaligned,
    /// overlaps the other or lacks `BufferUsages::STORAGE`; [`ErrorKind::Call`](crate::ErrorKind::Call) for slices that
    /// do not have the lengths of the tensors; [`ErrorKind::Limit`](crate::ErrorKind::Limit) for a tensor that no
    /// binding can hold; [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused) or
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn new(optimizer: &Optimizer, slices: &[[wgpu::BufferSlice; 2]]) -> Result<Self, Error> {
        check_elements(&optimizer.plan, "variance reduction")?;
        Ok(VarianceReduction(Pairs::new(optimizer, &KERNEL, slices, ["gradient", "snapshot gradient"], &[])?))
    }

    /// Records a copy of the gradients in their buffers to μ. They must be the full gradient at the snapshot.
    ///
    /// # Errors
    /// Returns [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn encode_keep(&self, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        self.0.encode(encoder, "wgpu-optim mean gradient", true)
    }

    /// Records `g ← g - g̃ + μ`.
    ///
    /// # Errors
    /// Returns [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn encode_combine(&self, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        self.0.encode(encoder, "wgpu-optim variance reduction", false)
    }
}
