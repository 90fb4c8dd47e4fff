//! Saving and restoring the state of the optimizer on the host.

use std::ops::Range;
use std::path::Path;

use super::{CpuOptimizer, Memory, RemainderMemory, TensorMemory, no_totals};
use crate::checkpoint::{
    Checkpoint, Difference, Differences, Draft, Fitted, Notes, Parameters, Slot, Table, last_slot,
};
use crate::cpu::Tensor;
use crate::cpu::values::{Values, ValuesMut};
use crate::error::Error;
use crate::group::OptimizerBuilder;
use crate::layout::{GroupControls, RawRecord, RawTensorRecord};
use crate::plan::MemoryKind;
use crate::record::RecordCursor;
use crate::regime::is_look_due;
use crate::shard::Stage;

/// A memory of a tensor as bytes, slot after slot. With `mut` the bytes can be written.
macro_rules! slots_of {
    ($tensor:expr, $kind:expr, $cast:ident $(, $mutable:tt)?) => {{
        let Memory {
            momentum,
            squares,
            largest_squares,
            factors: [rows, columns],
            momentum_codes,
            squares_codes,
            scales,
            counters,
            vector,
            streams: [one, two],
            remainders: RemainderMemory { long, short },
        } = &$($mutable)? $tensor.memory;
        match $kind {
            MemoryKind::Momentum => vec![bytemuck::$cast(momentum)],
            MemoryKind::SecondMoment => vec![bytemuck::$cast(squares)],
            MemoryKind::LargestSecondMoment => vec![bytemuck::$cast(largest_squares)],
            MemoryKind::RowSecondMoment => vec![bytemuck::$cast(rows)],
            MemoryKind::ColumnSecondMoment => vec![bytemuck::$cast(columns)],
            MemoryKind::MomentumCodes => vec![momentum_codes],
            MemoryKind::SecondMomentCodes => vec![squares_codes],
            MemoryKind::Scales => vec![bytemuck::$cast(scales)],
            MemoryKind::Counters => vec![counters],
            MemoryKind::LastGradient | MemoryKind::FirstParameters | MemoryKind::Displacement => {
                vec![bytemuck::$cast(vector)]
            }
            MemoryKind::Estimate => [vector, one].map(|slot| bytemuck::$cast(slot)).into(),
            MemoryKind::Streams => [vector, one, two].map(|slot| bytemuck::$cast(slot)).into(),
            MemoryKind::Averages | MemoryKind::BaseIterates => vec![bytemuck::$cast(&$($mutable)? $tensor.averages)],
            MemoryKind::Remainders => vec![bytemuck::$cast(long)],
            MemoryKind::RemainderCodes => vec![bytemuck::$cast(short)],
        }
    }};
}

impl TensorMemory {
    fn slots(&self, kind: MemoryKind) -> Vec<&[u8]> {
        slots_of!(self, kind, cast_slice)
    }

    fn slots_mut(&mut self, kind: MemoryKind) -> Vec<&mut [u8]> {
        slots_of!(self, kind, cast_slice_mut, mut)
    }
}

impl CpuOptimizer {
    /// Writes a checkpoint to a file, with the parameters if they are given: one slice per tensor, in the order of declaration. The
    /// file is replaced atomically (see [`Checkpoint::save`]).
    ///
    /// # Errors
    /// Returns [`ErrorKind::CheckpointFile`](crate::ErrorKind::CheckpointFile) if the file cannot be written. Returns
    /// [`ErrorKind::Call`](crate::ErrorKind::Call) if the slices are not the declared tensors, and between two
    /// [`swap_averages`](CpuOptimizer::swap_averages).
    pub fn save(&self, path: impl AsRef<Path>, params: Option<&[&dyn Values]>) -> Result<(), Error> {
        self.checkpoint(params, &Notes::new())?.save(path)
    }

    /// Restores the state from a file that [`CpuOptimizer::save`] or [`Optimizer::save`](crate::Optimizer::save) wrote, like
    /// [`CpuOptimizer::restore`]. Returns the checkpoint, which contains the number of the step.
    ///
    /// # Errors
    /// See [`Checkpoint::load`] and [`CpuOptimizer::restore`]. Nothing has changed then.
    pub fn load(
        &mut self,
        path: impl AsRef<Path>,
        params: Option<&mut [&mut dyn ValuesMut]>,
    ) -> Result<Checkpoint, Error> {
        let checkpoint = Checkpoint::load(path)?;
        self.restore(&checkpoint, params)?;
        Ok(checkpoint)
    }

    /// Restores the state from a file like [`CpuOptimizer::load`], and accepts the given differences. Returns them with the checkpoint.
    ///
    /// # Errors
    /// See [`Checkpoint::load`] and [`CpuOptimizer::restore_with`]. Nothing has changed then.
    pub fn load_with(
        &mut self,
        path: impl AsRef<Path>,
        params: Option<&mut [&mut dyn ValuesMut]>,
        accepted: Differences,
    ) -> Result<(Checkpoint, Vec<Difference>), Error> {
        let checkpoint = Checkpoint::load(path)?;
        let differences = self.restore_with(&checkpoint, params, accepted)?;
        Ok((checkpoint, differences))
    }

    /// Makes a checkpoint in memory, with the caller's notes.
    ///
    /// # Errors
    /// See [`CpuOptimizer::save`].
    pub fn checkpoint(&self, params: Option<&[&dyn Values]>, notes: &Notes) -> Result<Checkpoint, Error> {
        let parameters = match params {
            Some(params) => {
                self.check_slices("parameter", params)?;
                Parameters::Included
            }
            None => Parameters::Excluded,
        };
        self.check_averages_in_place("a checkpoint")?;
        let mut draft = Draft::new(&self.plan, parameters, notes)?;
        for table in Table::all(&self.plan) {
            let slot = draft.bytes(Slot::Table(table));
            match table {
                Table::States => slot.copy_from_slice(bytemuck::cast_slice(&self.states)),
                Table::Updates => slot.copy_from_slice(bytemuck::cast_slice(&self.updates)),
                Table::Controls => {
                    let controls: Vec<GroupControls> = self.plan.groups.iter().map(|group| group.controls).collect();
                    slot.copy_from_slice(bytemuck::cast_slice(&controls));
                }
                Table::TensorRecords => {
                    let rows = &self.tensor_records[self.last_tensor_records()];
                    slot.copy_from_slice(bytemuck::cast_slice(rows));
                }
            }
        }
        for (index, tensor) in self.tensors.iter().enumerate() {
            for kind in self.kinds(index) {
                let mut rest = draft.bytes(Slot::Memory(index, kind));
                for slot in tensor.slots(kind) {
                    let (bytes, after) = rest.split_at_mut(slot.len());
                    bytes.copy_from_slice(slot);
                    rest = after;
                }
            }
        }
        for (index, params) in params.unwrap_or_default().iter().enumerate() {
            draft.bytes(Slot::Parameters(index)).copy_from_slice(params.values().as_bytes());
        }
        draft.fill_averages(&self.plan);
        Ok(draft.finish())
    }

    /// Restores the state from a checkpoint. If slices are given, they receive the parameters. Otherwise parameters in the checkpoint are only
    /// checked, and the caller must provide those of that step.
    ///
    /// Earlier records that were not drained are discarded, and the sums of the last step are empty until the next one.
    ///
    /// # Errors
    /// Returns [`ErrorKind::CheckpointDiffers`](crate::ErrorKind::CheckpointDiffers) with the group, setting or tensor that differs, or if the
    /// checkpoint does not contain the requested parameters. Returns [`ErrorKind::CheckpointDamaged`](crate::ErrorKind::CheckpointDamaged) for a
    /// damaged checkpoint. Returns [`ErrorKind::Call`](crate::ErrorKind::Call) if the slices are not the declared tensors, and between two
    /// [`swap_averages`](CpuOptimizer::swap_averages). After an error nothing has changed.
    pub fn restore(&mut self, checkpoint: &Checkpoint, params: Option<&mut [&mut dyn ValuesMut]>) -> Result<(), Error> {
        self.restore_with(checkpoint, params, Differences::none()).map(|_| ())
    }

    /// Restores the state from a checkpoint of an optimizer with a different configuration, if the differences are accepted. Returns the
    /// differences and their consequences, one per line. [`Differences`] describes what happens to each part of the state. Slices of tensors
    /// that the checkpoint does not contain keep their values.
    ///
    /// # Errors
    /// See [`CpuOptimizer::restore`]. The error names the first difference that is not accepted. After an error nothing has changed.
    pub fn restore_with(
        &mut self,
        checkpoint: &Checkpoint,
        params: Option<&mut [&mut dyn ValuesMut]>,
        accepted: Differences,
    ) -> Result<Vec<Difference>, Error> {
        let parameters = match &params {
            Some(params) => {
                self.check_slices("parameter", params)?;
                Parameters::Included
            }
            None => Parameters::Excluded,
        };
        self.check_averages_in_place("a checkpoint")?;
        let Fitted { checkpoint, new_tensors, differences } = checkpoint.fit(&self.plan, parameters, accepted)?;

        for table in Table::all(&self.plan) {
            let slot = checkpoint.bytes(Slot::Table(table));
            match table {
                Table::States => bytemuck::cast_slice_mut(&mut self.states).copy_from_slice(slot),
                Table::Updates => bytemuck::cast_slice_mut(&mut self.updates).copy_from_slice(slot),
                Table::Controls => {
                    for (group, controls) in self.plan.groups.iter_mut().zip(checkpoint.controls()) {
                        group.controls = controls;
                    }
                }
                Table::TensorRecords => {
                    self.tensor_records.fill(RawTensorRecord::default());
                    let rows = self.last_tensor_records();
                    let rows = &mut self.tensor_records[rows];
                    bytemuck::cast_slice_mut(rows).copy_from_slice(slot);
                }
            }
        }
        for index in 0..self.tensors.len() {
            for kind in self.kinds(index) {
                let mut rest = checkpoint.bytes(Slot::Memory(index, kind));
                for slot in self.tensors[index].slots_mut(kind) {
                    let (bytes, after) = rest.split_at(slot.len());
                    slot.copy_from_slice(bytes);
                    rest = after;
                }
            }
        }
        for (index, params) in params.unwrap_or_default().iter_mut().enumerate() {
            if !new_tensors.contains(&index) {
                let mut params = params.values_mut();
                params.as_bytes_mut().copy_from_slice(checkpoint.bytes(Slot::Parameters(index)));
            }
        }
        for (rate, state) in self.learning_rates.iter_mut().zip(&self.states) {
            *rate = state.learning_rate;
        }
        let mut groups = self.plan.groups.iter().zip(&self.states);
        self.is_look_due = groups.any(|(group, state)| is_look_due(group, state));
        self.sums.fill(no_totals());
        self.records.fill(RawRecord::default());
        self.cursor = RecordCursor::at(checkpoint.step());
        self.stage = Stage::Idle;
        Ok(differences)
    }

    /// Builds an optimizer that continues from this one's state, with groups added or removed or with settings that only `build` takes. This
    /// optimizer and the parameters stay unchanged. Returns the differences and their consequences like
    /// [`restore_with`](CpuOptimizer::restore_with). Records are not carried over: drain them before.
    ///
    /// The parameters are needed if an average is to start from them (see [`Differences::settings`]).
    ///
    /// # Errors
    /// See [`OptimizerBuilder::build_cpu`], [`CpuOptimizer::checkpoint`] and [`CpuOptimizer::restore_with`].
    pub fn rebuild(
        &self,
        builder: OptimizerBuilder<Tensor>,
        params: Option<&[&dyn Values]>,
        accepted: Differences,
    ) -> Result<(Self, Vec<Difference>), Error> {
        let mut rebuilt = builder.build_cpu()?;
        let differences = rebuilt.restore_with(&self.checkpoint(params, &Notes::new())?, None, accepted)?;
        Ok((rebuilt, differences))
    }

    /// Returns the range of the last tensor records in their ring.
    fn last_tensor_records(&self) -> Range<usize> {
        let ring_steps = self.records.len() / self.states.len();
        let tensors = self.tensor_records.len() / ring_steps;
        let start = last_slot(&self.states[0], ring_steps) * tensors;
        start..start + tensors
    }

    /// Returns the memories of a tensor.
    fn kinds(&self, tensor: usize) -> impl Iterator<Item = MemoryKind> + use<> {
        self.plan.kernel_of(tensor).memories()
    }
}
