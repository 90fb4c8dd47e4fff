//! Averages of the parameters: exchanged with the parameters and copied.

use super::*;
use crate::averaging::Averaging;
use crate::cpu::schedule_free::{average_of, between};
use crate::cpu::values::{Slice, SliceMut, Values, ValuesMut};
use crate::error::{CallError, Error};
use crate::plan::Encoding;

impl CpuOptimizer {
    /// Exchanges parameters and averages. `params` are the tensors' values, as in a step. A second call restores the parameters. Both are then
    /// bit-identical to what they were, except that [schedule-free](crate::Averaging::ScheduleFree) groups may differ as described there. Groups
    /// without an [`Averaging`](crate::Averaging), and groups whose average has not started, keep their parameters throughout. For 16-bit
    /// parameters the master weights are exchanged, with the accuracy of [`Rounding::Masters`](crate::Rounding::Masters).
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) if no group keeps an average, or if the slices are not the declared tensors. Nothing
    /// has changed then.
    pub fn swap_averages(&mut self, params: &mut [impl ValuesMut]) -> Result<(), Error> {
        if !self.plan.configs.iter().any(|config| config.averaging.is_on()) {
            return Err(Error::from(CallError::NoAverages { owner: "the optimizer".to_owned() }));
        }
        self.check_slices("parameter", params)?;
        for (index, params) in params.iter_mut().enumerate() {
            if !self.has_average(index) {
                continue;
            }
            let schedule_free = self.is_schedule_free(index);
            let tensor = &mut self.tensors[index];
            let exchanged: fn(f32, f32) -> f32 = match self.averages_are_swapped {
                false => average_of,
                true => between,
            };
            match params.values_mut() {
                SliceMut::F32(params) if schedule_free => {
                    for (w, &z) in params.iter_mut().zip(&tensor.averages) {
                        *w = exchanged(*w, z);
                    }
                }
                SliceMut::F32(params) => params.swap_with_slice(&mut tensor.averages),
                mut params => {
                    let mut masters = vec![0.0; tensor.elements];
                    let remainders = &mut tensor.memory.remainders;
                    let stored = params.as_slice();
                    stored.decode_parameters(remainders.as_ref(), &mut masters);
                    if schedule_free {
                        for (w, &z) in masters.iter_mut().zip(&tensor.averages) {
                            *w = exchanged(*w, z);
                        }
                        params.encode_parameters(false, Encoding::Masters, &masters, remainders.as_mut(), 0, 0);
                        continue;
                    }
                    // 16-bit parameters with averages always have master weights, which need no random bits.
                    let averages = &tensor.averages;
                    params.encode_parameters(false, Encoding::Masters, averages, remainders.as_mut(), 0, 0);
                    tensor.averages = masters;
                }
            }
        }
        self.averages_are_swapped = !self.averages_are_swapped;
        Ok(())
    }

    /// Returns true while the averages are in the caller's slices and the parameters are kept here. No step can be taken then.
    pub fn averages_are_swapped(&self) -> bool {
        self.averages_are_swapped
    }

    /// Returns a tensor's averages. `tensor` is an index into [`tensors`](CpuOptimizer::tensors). Returns `None` if the group keeps no average, if
    /// the average has not started, and while the averages are in the caller's slices. Also returns `None` for
    /// [schedule-free](crate::Averaging::ScheduleFree) groups, whose average is not stored. [`copy_averages`](CpuOptimizer::copy_averages) returns
    /// every average.
    #[doc(hidden)]
    pub fn averages(&self, tensor: usize) -> Option<&[f32]> {
        let here = !self.averages_are_swapped && tensor < self.tensors.len() && self.has_average(tensor);
        let kept = here && !self.is_schedule_free(tensor);
        kept.then(|| self.tensors[tensor].averages.as_slice())
    }

    /// Copies a tensor's averages into a slice of its length. `params` are its parameters after the last step. If the average has not started,
    /// the parameters are copied. `tensor` is an index into [`tensors`](CpuOptimizer::tensors).
    ///
    /// ```
    /// use wgpu_optim::{Group, OptimizerBuilder, Rule};
    ///
    /// let (mut w, g) = (vec![1.0f32; 100], vec![0.5f32; 100]);
    /// let mut optimizer = OptimizerBuilder::new(Rule::sgd())
    ///     .schedule_free()
    ///     .group(Group::new("all").tensor("w", &w, &g))
    ///     .build_cpu()?;
    /// optimizer.step(&mut [&mut w], &[&g])?;
    /// let mut evaluated = vec![0.0; 100];
    /// optimizer.copy_averages(0, &w, &mut evaluated)?;
    /// # Ok::<(), wgpu_optim::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) if there is no such tensor, if its group keeps no average, if the averages are in the
    /// caller's own slices, or if `params` or the destination does not have the tensor's length.
    pub fn copy_averages(&self, tensor: usize, params: impl Values, destination: &mut [f32]) -> Result<(), Error> {
        let tensors = self.tensors.len();
        let info =
            self.plan.tensors.get(tensor).ok_or(Error::from(CallError::UnknownTensor { index: tensor, tensors }))?;
        if !self.plan.configs[info.group].averaging.is_on() {
            return Err(Error::from(CallError::NoAverages { owner: format!("tensor \"{}\"", info.name) }));
        }
        self.check_averages_in_place("a copy of the averages")?;
        let params = params.values();
        self.check_slice("parameter", tensor, params)?;
        if destination.len() != params.len() {
            return Err(Error::from(CallError::AveragesLength {
                tensor: info.name.clone(),
                expected: params.len() as u64,
                actual: destination.len() as u64,
            }));
        }
        let memory = &self.tensors[tensor];
        let started = self.has_average(tensor);
        if started && !self.is_schedule_free(tensor) {
            destination.copy_from_slice(&memory.averages);
            return Ok(());
        }
        match params {
            Slice::F32(params) => destination.copy_from_slice(params),
            halves => {
                halves.decode_parameters(memory.memory.remainders.as_ref(), destination);
            }
        }
        if started {
            for (w, &z) in destination.iter_mut().zip(&memory.averages) {
                *w = average_of(*w, z);
            }
        }
        Ok(())
    }

    /// Returns true if z of schedule-free training is kept in the place of a tensor's average.
    pub(super) fn is_schedule_free(&self, tensor: usize) -> bool {
        let group = self.plan.tensors[tensor].group;
        self.plan.configs[group].averaging == Averaging::ScheduleFree
    }

    /// Returns true if a tensor's average has started.
    pub(super) fn has_average(&self, tensor: usize) -> bool {
        self.updates[self.plan.tensors[tensor].group].average_weight > 0.0
    }

    pub(super) fn check_averages_in_place(&self, what: &'static str) -> Result<(), Error> {
        if self.averages_are_swapped {
            return Err(Error::from(CallError::AveragesSwapped { what }));
        }
        Ok(())
    }
}
