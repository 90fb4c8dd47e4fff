//! Snapshot of an optimizer's parameters and memory, to which a watchdog can return.

use half::{bf16, f16};

use super::{CpuOptimizer, Memory};
use crate::controllers::watchdog::taken_back;
use crate::cpu::values::{Slice, SliceMut, Values, ValuesMut};
use crate::error::Error;
use crate::layout::{GroupState, Update};
use crate::plan::Plan;

/// Copy of a tensor's parameters.
#[derive(Debug)]
pub(crate) enum Copied {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Copied {
    fn of(slice: Slice) -> Self {
        match slice {
            Slice::F32(values) => Copied::F32(values.to_vec()),
            Slice::F16(values) => Copied::F16(values.to_vec()),
            Slice::Bf16(values) => Copied::Bf16(values.to_vec()),
        }
    }

    pub(crate) fn values(&self) -> Slice<'_> {
        match self {
            Copied::F32(values) => Slice::F32(values),
            Copied::F16(values) => Slice::F16(values),
            Copied::Bf16(values) => Slice::Bf16(values),
        }
    }

    fn copy_to(&self, slice: SliceMut) {
        match (self, slice) {
            (Copied::F32(kept), SliceMut::F32(values)) => values.copy_from_slice(kept),
            (Copied::F16(kept), SliceMut::F16(values)) => values.copy_from_slice(kept),
            (Copied::Bf16(kept), SliceMut::Bf16(values)) => values.copy_from_slice(kept),
            // `CpuOptimizer::check_controlled` has compared the types.
            _ => {}
        }
    }
}

/// Parameters, and the optimizer's memory of them.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) params: Vec<Copied>,
    memories: Vec<(Memory, Vec<f32>)>,
    states: Vec<GroupState>,
    updates: Vec<Update>,
}

impl Snapshot {
    /// Copies parameters alone.
    pub(crate) fn of_parameters(params: &[impl Values]) -> Self {
        Snapshot { params: params.iter().map(|params| Copied::of(params.values())).collect(), ..Default::default() }
    }
}

impl CpuOptimizer {
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Checks that these are the optimizer's parameters, and not their averages.
    pub(crate) fn check_controlled(&self, params: &[impl Values]) -> Result<(), Error> {
        self.check_averages_in_place("a controller's call")?;
        self.check_slices("parameter", params)
    }

    /// Checks that these are the optimizer's gradients.
    pub(crate) fn check_gradients(&self, grads: &[impl Values]) -> Result<(), Error> {
        self.check_slices("gradient", grads)
    }

    /// Copies parameters that [`CpuOptimizer::check_controlled`] has checked, and the optimizer's memory.
    pub(crate) fn snapshot(&self, params: &[impl Values]) -> Snapshot {
        Snapshot {
            memories: self.tensors.iter().map(|tensor| (tensor.memory.clone(), tensor.averages.clone())).collect(),
            states: self.states.clone(),
            updates: self.updates.clone(),
            ..Snapshot::of_parameters(params)
        }
    }

    /// Restores the parameters and memory of a snapshot. The count of steps, the records and the loss scale are not restored.
    pub(crate) fn take_back(&mut self, kept: &Snapshot, params: &mut [impl ValuesMut]) {
        for (kept, params) in kept.params.iter().zip(params) {
            kept.copy_to(params.values_mut());
        }
        for ((memory, averages), tensor) in kept.memories.iter().zip(&mut self.tensors) {
            tensor.memory.clone_from(memory);
            tensor.averages.clone_from(averages);
        }
        for (kept, state) in kept.states.iter().zip(&mut self.states) {
            *state = taken_back(kept, state);
        }
        self.updates.clone_from(&kept.updates);
    }
}
