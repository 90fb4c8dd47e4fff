//! Variance reduction by a control variate, on the host. The device's kernel is
//! `shaders/controllers/variance_reduction.wgsl`.

use super::element_pairs::{check_elements, slices, slices_mut};
use crate::cpu::optimizer::CpuOptimizer;
use crate::cpu::values::{Values, ValuesMut};
use crate::error::Error;
use crate::plan::Plan;

/// Variance reduction on the host: replaces the gradient of a batch by `g - g̃ + μ`, whose mean over batches is the
/// same and whose variance vanishes as the parameters approach the snapshot (SVRG, Johnson & Zhang 2013). g̃ is the
/// gradient of the same batch at the snapshot, and μ is the full gradient at the snapshot, which
/// [`CpuVarianceReduction::keep`] stores.
///
/// Per epoch: copy the parameters, compute the full gradient there, and keep it. Per step: compute the gradient of the
/// batch at the parameters and at the copy, combine, and step with the result. A step costs two gradients.
///
/// With the combined gradient of the last step kept instead, and the last parameters as the snapshot, the same calls
/// are SARAH (Nguyen et al., arXiv:1703.00102).
///
/// It keeps 4 bytes per parameter. The optimizer only sees the combined gradient. If one of the three parts is not
/// finite, neither is the result, and the optimizer skips the step as its [`NonFinitePolicy`](crate::NonFinitePolicy)
/// says.
///
/// ```
/// use wgpu_optim::{CpuVarianceReduction, Group, OptimizerBuilder, Regime, Rule};
///
/// // Two batches whose losses are ½ ‖w - c‖² with different centres.
/// let gradient = |w: &[f32], batch: f32| w.iter().map(|w| w - batch).collect::<Vec<f32>>();
/// let mut w = vec![5.0f32; 10];
/// let full = vec![0.0f32; 10];
/// let mut optimizer = OptimizerBuilder::new(Rule::sgd())
///     .regime(Regime::fixed(0.5))
///     .group(Group::new("all").tensor("w", &w, &full))
///     .build_cpu()?;
/// let mut reduction = CpuVarianceReduction::new(&optimizer)?;
/// let snapshot = w.clone();
/// reduction.keep(&[gradient(&snapshot, 0.5)])?; // the mean of the batches 0 and 1
/// for step in 0..30 {
///     let batch = (step % 2) as f32;
///     let mut g = gradient(&w, batch);
///     reduction.combine(&mut [&mut g], &[gradient(&snapshot, batch)])?;
///     optimizer.step(&mut [&mut w], &[&g])?;
/// }
/// assert!(w.iter().all(|w| (w - 0.5).abs() < 1e-6));
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct CpuVarianceReduction {
    plan: Plan,
    /// μ of each tensor.
    mean: Vec<Vec<f32>>,
}

impl CpuVarianceReduction {
    /// Creates a variance reduction for the tensors of an optimizer, with μ = 0.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) for an optimizer with 16-bit parameters or gradients.
    pub fn new(optimizer: &CpuOptimizer) -> Result<Self, Error> {
        let plan = &optimizer.plan;
        check_elements(plan, "variance reduction")?;
        let mean = plan.tensors.iter().map(|tensor| vec![0.0; tensor.elements as usize]).collect();
        Ok(CpuVarianceReduction { plan: plan.clone(), mean })
    }

    /// Keeps gradients as μ, one slice for each of the optimizer's tensors.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) for slices that are not those of the optimizer's tensors.
    pub fn keep(&mut self, gradients: &[impl Values]) -> Result<(), Error> {
        for (mean, gradient) in self.mean.iter_mut().zip(slices(&self.plan, "gradient", gradients)?) {
            mean.copy_from_slice(gradient);
        }
        Ok(())
    }

    /// Replaces the gradients g of a batch by `g - g̃ + μ`.
    ///
    /// # Errors
    /// See [`CpuVarianceReduction::keep`].
    pub fn combine(&self, gradients: &mut [impl ValuesMut], at_snapshot: &[impl Values]) -> Result<(), Error> {
        let at_snapshot = slices(&self.plan, "snapshot gradient", at_snapshot)?;
        let gradients = slices_mut(&self.plan, "gradient", gradients)?;
        for ((gradient, at_snapshot), mean) in gradients.into_iter().zip(at_snapshot).zip(&self.mean) {
            for ((g, at_snapshot), mean) in gradient.iter_mut().zip(at_snapshot).zip(mean) {
                *g = (*g - at_snapshot) + mean;
            }
        }
        Ok(())
    }
}
