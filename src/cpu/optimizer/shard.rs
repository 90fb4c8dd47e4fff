//! A step of several ranks, on the host: see [`ShardSums`].

use super::CpuOptimizer;
use crate::cpu::values::{Values, ValuesMut};
use crate::error::{CallError, Error};
use crate::shard::{CombinedSums, ShardSums, Stage};

impl CpuOptimizer {
    /// Measures this rank's part of a step (passes 1 and 2). `params` and `grads` are the slices of its tensors, in the order of declaration
    /// over all groups. It changes nothing and may be repeated. Send the result to every rank (see [`ShardSums`]).
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) for an optimizer that was built without
    /// [`sharded`](crate::OptimizerBuilder::sharded), and otherwise the errors of a [`step`](CpuOptimizer::step).
    pub fn measure(&mut self, params: &[impl Values], grads: &[impl Values]) -> Result<ShardSums, Error> {
        self.check_needs_no_loss()?;
        self.measure_with_loss(params, grads, 0.0)
    }

    /// Measures like [`CpuOptimizer::measure`], with the loss: either of this rank's data, in which case the mean over the ranks is used, or
    /// the same value on all ranks.
    ///
    /// # Errors
    /// See [`CpuOptimizer::measure`].
    pub fn measure_with_loss(
        &mut self,
        params: &[impl Values],
        grads: &[impl Values],
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
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) before [`CpuOptimizer::measure`], without
    /// [`sharded`](crate::OptimizerBuilder::sharded), and for sums of another optimizer or another step. Otherwise returns the errors of a
    /// [`step`](CpuOptimizer::step). After these errors nothing has changed, except after [`ErrorKind::Halted`](crate::ErrorKind::Halted), as
    /// for a step.
    pub fn apply(
        &mut self,
        params: &mut [impl ValuesMut],
        grads: &[impl Values],
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
            return Err(Error::from(CallError::OutOfTurn {
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

    /// Returns an error for a step that leaves out the other ranks.
    pub(super) fn check_alone(&self, call: &'static str) -> Result<(), Error> {
        match self.plan.shard {
            None => Ok(()),
            Some(_) => Err(Error::from(CallError::OutOfTurn {
                call,
                way_out: "other ranks have other parameters: call measure, combine what all ranks have measured, and call apply",
            })),
        }
    }

    /// Returns the number of steps attempted.
    fn steps(&self) -> u64 {
        self.states.first().map_or(0, |state| u64::from(state.steps_high) << 32 | u64::from(state.steps_low))
    }
}

fn not_sharded(call: &'static str) -> Error {
    Error::from(CallError::OutOfTurn {
        call,
        way_out: "the optimizer has all the parameters: call step, or build it with OptimizerBuilder::sharded",
    })
}
