//! Settings that the caller changes between steps: the groups' controls, and tensors without gradients.

use super::CpuOptimizer;
use crate::controls::Controls;
use crate::cpu::values::{Values, ValuesMut};
use crate::error::Error;

impl CpuOptimizer {
    /// Changes the settings of a group that may change between steps, from the next step on. `group` is the name of a group, or of a group
    /// that [`per_tensor`](crate::Group::per_tensor) has divided. The change then applies to all its parts.
    ///
    /// ```
    /// use wgpu_optim::{Group, OptimizerBuilder, Rule};
    ///
    /// let (mut w, g) = (vec![1.0f32; 100], vec![0.5f32; 100]);
    /// let mut optimizer = OptimizerBuilder::new(Rule::sgd())
    ///     .group(Group::new("head").tensor("w", &w, &g))
    ///     .build_cpu()?;
    /// optimizer.control("head", |group| group.frozen = true)?;
    /// optimizer.step(&mut [&mut w], &[&g])?;
    /// assert_eq!(w, [1.0; 100]);
    /// optimizer.control("head", |group| {
    ///     group.frozen = false;
    ///     group.learning_rate_factor = 0.1;
    /// })?;
    /// optimizer.step(&mut [&mut w], &[&g])?;
    /// assert_ne!(w, [1.0; 100]);
    /// # Ok::<(), wgpu_optim::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) for a group that does not exist, or [`ErrorKind::Build`](crate::ErrorKind::Build)
    /// for a value outside its range. After an error nothing has changed.
    pub fn control(&mut self, group: &str, change: impl FnMut(&mut Controls)) -> Result<(), Error> {
        self.plan.control(Some(group), change, |_, _, _| ())
    }

    /// Changes the controls of every group, like [`CpuOptimizer::control`].
    ///
    /// # Errors
    /// See [`CpuOptimizer::control`].
    pub fn control_all(&mut self, change: impl FnMut(&mut Controls)) -> Result<(), Error> {
        self.plan.control(None, change, |_, _, _| ())
    }

    /// Returns the controls of a group.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) for a group that does not exist.
    pub fn controls(&self, group: &str) -> Result<Controls, Error> {
        self.plan.controls(group)
    }

    /// Takes a step like [`CpuOptimizer::step_with_loss`] in which some tensors have no gradients (`None` in PyTorch, masks in optax). `absent`
    /// are indices into [`tensors`](CpuOptimizer::tensors). The slices of these tensors in `grads` are not read and may be empty.
    /// [`Optimizer::encode_step_without`](crate::Optimizer::encode_step_without) describes the effect on these tensors. The loss is ignored
    /// unless a regime needs it.
    ///
    /// # Errors
    /// Returns the errors of [`CpuOptimizer::step`]. Returns [`ErrorKind::Call`](crate::ErrorKind::Call) for a tensor that does not exist, and
    /// with regime AutoSgd.
    pub fn step_without(
        &mut self,
        params: &mut [impl ValuesMut],
        grads: &[impl Values],
        loss: f32,
        absent: &[usize],
    ) -> Result<(), Error> {
        self.without(absent, |optimizer| optimizer.step_with_loss(params, grads, loss))
    }

    /// Takes a look like [`CpuOptimizer::look`] at a step that [`step_without`](CpuOptimizer::step_without) took, without the same tensors.
    ///
    /// # Errors
    /// See [`CpuOptimizer::look`] and [`CpuOptimizer::step_without`].
    pub fn look_without(
        &mut self,
        params: &[impl Values],
        grads: &[impl Values],
        absent: &[usize],
    ) -> Result<(), Error> {
        self.without(absent, |optimizer| optimizer.look(params, grads))
    }

    /// Calls a function while the given tensors are marked as having no gradients.
    fn without(&mut self, absent: &[usize], work: impl FnOnce(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        let mut marks = vec![false; self.tensors.len()];
        self.plan.mark_absent(absent, &mut marks)?;
        for (tensor, absent) in self.tensors.iter_mut().zip(&marks) {
            tensor.present = !absent;
        }
        for group in 0..self.plan.groups.len() {
            let present = !self.plan.is_absent(group, &marks);
            self.plan.groups[group].controls.present = present.into();
        }
        let done = work(self);
        for tensor in &mut self.tensors {
            tensor.present = true;
        }
        for group in &mut self.plan.groups {
            group.controls.present = 1;
        }
        done
    }
}
