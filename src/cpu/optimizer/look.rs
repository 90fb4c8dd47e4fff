//! Looks: a second gradient of the same batch, after the step.

use super::CpuOptimizer;
use crate::cpu::values::Values;
use crate::error::{CallError, Error};
use crate::layout::NO_ELEMENT;
use crate::regime;

impl CpuOptimizer {
    /// Takes a look, for regimes that measure the curvature of a step ([`Regime::needs_looks`](crate::Regime::needs_looks),
    /// [`Curvature`](crate::Curvature)). `grads` must be the gradients of the last step's batch at the parameters after that step.
    /// [`Optimizer::encode_look`](crate::Optimizer::encode_look) describes the effect of a look, and when it has none.
    ///
    /// ```
    /// use wgpu_optim::{CurvatureForm, Group, OptimizerBuilder, Regime, Rule};
    ///
    /// let gradient = |w: &[f32; 2], noise: f32| w.map(|w| 4.0 * w + noise);
    /// let mut w = [1.0, -2.0];
    /// let mut optimizer = OptimizerBuilder::new(Rule::sgd())
    ///     .regime(Regime::curvature(CurvatureForm::Short))
    ///     .group(Group::new("all").tensor("w", &w, &w))
    ///     .build_cpu()?;
    /// for batch in 0..12 {
    ///     let noise = [0.3, -0.1, -0.2][batch % 3];
    ///     let g = gradient(&w, noise);
    ///     optimizer.step(&mut [&mut w], &[&g])?;
    ///     let g = gradient(&w, noise);
    ///     optimizer.look(&[&w], &[&g])?;
    /// }
    /// // One over the curvature, whatever the noise.
    /// assert!((optimizer.learning_rates()[0] - 0.25).abs() < 1e-4);
    /// # Ok::<(), wgpu_optim::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) if no group has such a regime, if there was no step since the last look, if the
    /// slices are not the declared tensors, for an optimizer over several ranks ([`sharded`](crate::OptimizerBuilder::sharded)), and between
    /// two [`swap_averages`](CpuOptimizer::swap_averages). Nothing has changed then.
    pub fn look(&mut self, params: &[impl Values], grads: &[impl Values]) -> Result<(), Error> {
        self.check_averages_in_place("a look")?;
        self.check_alone("look")?;
        if !self.plan.configs.iter().any(|config| config.regime.needs_looks()) {
            return Err(Error::from(CallError::NoLooks { call: "look" }));
        }
        if !self.is_look_due {
            return Err(Error::from(CallError::LookOutOfTurn { call: "look" }));
        }
        self.check_slices("parameter", params)?;
        self.check_slices("gradient", grads)?;
        self.is_look_due = false;
        self.reduce(params, grads, |tensor| tensor.look_kernel.as_ref());
        self.finish();
        let finite = self.sums.iter().all(|sums| sums.first_nonfinite == NO_ELEMENT);
        // A look has no effect after a step that was skipped or left the group out.
        let groups = self.plan.groups.iter().zip(&mut self.states).zip(&self.updates);
        for ((group, state), _) in groups.filter(|(_, update)| update.skip == 0) {
            (regime::Kernel::of(group).look)(group, &self.sums[group.scope as usize], finite, state);
        }
        Ok(())
    }
}
