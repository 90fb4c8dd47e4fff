//! A step of several ranks, on the host: see [`ShardSums`].

use super::CpuOptimizer;
use crate::cpu::values::{Slice, SliceMut, Values, ValuesMut};
use crate::error::{CallError, Error};
use crate::shard::{CombinedSums, ShardSums, Stage};

impl CpuOptimizer {
    /// Measures this rank's part of a step, passes 1 and 2: `params` and `grads` are its tensors' slices, in the order of declaration over
    /// all groups. It changes nothing and may be repeated. Send the result to every rank, see [`ShardSums`].
    ///
    /// # Errors
    /// [`CallError::ShardedStep`](crate::CallError::ShardedStep) for an optimizer that was built without [`sharded`](crate::OptimizerBuilder::sharded);
    /// [`CallError::StepTensors`](crate::CallError::StepTensors), [`CallError::StepLength`](crate::CallError::StepLength), [`BuildError::MissingLoss`](crate::BuildError::MissingLoss) or [`CallError::AveragesSwapped`](crate::CallError::AveragesSwapped) as for a
    /// [`step`](CpuOptimizer::step).
    pub fn measure(
        &mut self,
        params: &[impl AsRef<[f32]> + Sync],
        grads: &[impl AsRef<[f32]> + Sync],
    ) -> Result<ShardSums, Error> {
        self.check_needs_no_loss()?;
        self.measure_with_loss(params, grads, 0.0)
    }

    /// Measures like [`CpuOptimizer::measure`], with the loss: either of this rank's data, in which case the mean over the ranks is used, or
    /// the same value on all ranks.
    ///
    /// # Errors
    /// As [`CpuOptimizer::measure`].
    pub fn measure_with_loss(
        &mut self,
        params: &[impl AsRef<[f32]> + Sync],
        grads: &[impl AsRef<[f32]> + Sync],
        loss: f32,
    ) -> Result<ShardSums, Error> {
        self.measure_of(params, grads, loss)
    }

    /// Measures like [`CpuOptimizer::measure`], over slices of any element type.
    ///
    /// # Errors
    /// As [`CpuOptimizer::measure`]; [`CallError::StepElement`](crate::CallError::StepElement) where the elements are not those that were declared.
    pub fn measure_values(&mut self, params: &[Slice], grads: &[Slice]) -> Result<ShardSums, Error> {
        self.check_needs_no_loss()?;
        self.measure_of(params, grads, 0.0)
    }

    /// Measures like [`CpuOptimizer::measure_with_loss`], over slices of any element type.
    ///
    /// # Errors
    /// As [`CpuOptimizer::measure_values`].
    pub fn measure_values_with_loss(
        &mut self,
        params: &[Slice],
        grads: &[Slice],
        loss: f32,
    ) -> Result<ShardSums, Error> {
        self.measure_of(params, grads, loss)
    }

    fn measure_of(
        &mut self,
        params: &[impl Values + Sync],
        grads: &[impl Values + Sync],
        loss: f32,
    ) -> Result<ShardSums, Error> {
        if self.plan.shard.is_none() {
            return Err(not_sharded("measure"));
        }
        self.check_averages_in_place("a step")?;
        self.check_slices("parameter", params)?;
        self.check_slices("gradient", grads)?;
        self.measure_here(params, grads, loss);
        self.stage = Stage::Read;
        let step = self.steps();
        let shard = self.plan.shard.as_ref();
        shard.map(|shard| ShardSums::new(shard, step, &self.sums)).ok_or_else(|| not_sharded("measure"))
    }

    /// Takes the measured step with the combined sums of all ranks (passes 3 and 4). `params` and `grads` must be those that were passed to
    /// [`CpuOptimizer::measure`].
    ///
    /// # Errors
    /// [`CallError::ShardedStep`](crate::CallError::ShardedStep) before [`CpuOptimizer::measure`], or without [`sharded`](crate::OptimizerBuilder::sharded);
    /// [`CallError::ShardSums`](crate::CallError::ShardSums) for sums of another optimizer or another step; [`CallError::StepTensors`](crate::CallError::StepTensors), [`CallError::StepLength`](crate::CallError::StepLength) or
    /// [`CallError::AveragesSwapped`](crate::CallError::AveragesSwapped); nothing has changed then. [`Error::Halted`] as for a [`step`](CpuOptimizer::step).
    pub fn apply(&mut self, params: &mut [&mut [f32]], grads: &[&[f32]], combined: &CombinedSums) -> Result<(), Error> {
        self.apply_of(params, grads, combined)
    }

    /// Takes the step like [`CpuOptimizer::apply`], over slices of any element type.
    ///
    /// # Errors
    /// As [`CpuOptimizer::apply`]; [`CallError::StepElement`](crate::CallError::StepElement) where the elements are not those that were declared.
    pub fn apply_values(
        &mut self,
        params: &mut [SliceMut],
        grads: &[Slice],
        combined: &CombinedSums,
    ) -> Result<(), Error> {
        self.apply_of(params, grads, combined)
    }

    fn apply_of(
        &mut self,
        params: &mut [impl ValuesMut + Send],
        grads: &[impl Values + Sync],
        combined: &CombinedSums,
    ) -> Result<(), Error> {
        let (step, stage) = (self.steps(), self.stage);
        self.check_averages_in_place("a step")?;
        self.check_slices("parameter", params)?;
        self.check_slices("gradient", grads)?;
        let Some(shard) = &mut self.plan.shard else {
            return Err(not_sharded("apply"));
        };
        if stage != Stage::Read {
            return Err(Error::Call(CallError::ShardedStep {
                call: "apply",
                way_out: "call measure first, and combine what all ranks have measured",
            }));
        }
        combined.check(shard, step)?;
        combined.teach(&mut self.plan.groups, shard);
        self.sums.copy_from_slice(combined.sums());
        self.stage = Stage::Idle;
        self.set_rates();
        self.update(params, grads);
        self.check_halted()
    }

    /// Refuses a step that does without the other ranks.
    pub(super) fn check_alone(&self, call: &'static str) -> Result<(), Error> {
        match self.plan.shard {
            None => Ok(()),
            Some(_) => Err(Error::Call(CallError::ShardedStep {
                call,
                way_out: "other ranks have other parameters: call measure, combine what all ranks have measured, and call apply",
            })),
        }
    }

    /// Steps attempted.
    fn steps(&self) -> u64 {
        self.states.first().map_or(0, |state| u64::from(state.steps_high) << 32 | u64::from(state.steps_low))
    }
}

fn not_sharded(call: &'static str) -> Error {
    Error::Call(CallError::ShardedStep {
        call,
        way_out: "the optimizer has all the parameters: call step, or build it with OptimizerBuilder::sharded",
    })
}
