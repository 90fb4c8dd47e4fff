//! Saving and restoring the state of an optimizer on the device.

use std::ops::Range;
use std::path::Path;

use super::control::controls_at;
use super::{Kept, Optimizer};
use crate::checkpoint::{
    Checkpoint, Difference, Differences, Draft, Fitted, Notes, Parameters, Slot, Table, last_slot,
};
use crate::error::{BuildError, DeviceError, Error};
use crate::gpu::Tensor;
use crate::gpu::context::Gpu;
use crate::gpu::readback::{Readback, Source};
use crate::group::OptimizerBuilder;
use crate::layout::{GroupControls, GroupState, RawRecord, unscale};
use crate::plan::{MemoryKind, Plan};
use crate::record::{RecordCursor, Records};

/// Range of a buffer on the device, and its contents.
struct Piece<'a> {
    content: Content,
    buffer: &'a wgpu::Buffer,
    start: u64,
    bytes: u64,
}

#[derive(Clone, Copy)]
enum Content {
    Table(Table),
    /// Controls of one group.
    Controls(usize),
    /// Ring of the tensors' records, of which only the last are saved.
    TensorRing,
    /// Memory of a window.
    Memory(usize, MemoryKind),
    /// Parameters of a tensor.
    Parameters(usize),
}

impl Optimizer {
    /// Writes a checkpoint to a file, with the parameters in the caller's buffers if requested. The file is replaced
    /// atomically (see [`Checkpoint::save`]). Waits for the device. In the meantime the host holds up to three copies
    /// of the saved data.
    ///
    /// The saved state is the one after all steps submitted before the call. Submit no step until it returns.
    ///
    /// # Errors
    /// Returns [`ErrorKind::CheckpointFile`](crate::ErrorKind::CheckpointFile),
    /// [`ErrorKind::Build`](crate::ErrorKind::Build) if a parameter buffer lacks `COPY_SRC`,
    /// [`ErrorKind::Call`](crate::ErrorKind::Call) between two
    /// [`encode_swap_averages`](Optimizer::encode_swap_averages),
    /// [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused),
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost) or [`ErrorKind::Readback`](crate::ErrorKind::Readback).
    pub async fn save(&self, path: impl AsRef<Path>, parameters: Parameters) -> Result<(), Error> {
        let checkpoint = self.checkpoint(parameters, &Notes::new()).await?;
        checkpoint.save(path)
    }

    /// Restores the state from a file that [`Optimizer::save`] or [`CpuOptimizer::save`](crate::CpuOptimizer::save)
    /// wrote, like [`Optimizer::restore`]. Returns the checkpoint, which contains the number of the step.
    ///
    /// # Errors
    /// See [`Checkpoint::load`] and [`Optimizer::restore`]. After an error nothing has changed.
    pub fn load(&mut self, path: impl AsRef<Path>, parameters: Parameters) -> Result<Checkpoint, Error> {
        let checkpoint = Checkpoint::load(path)?;
        self.restore(&checkpoint, parameters)?;
        Ok(checkpoint)
    }

    /// Restores the state from a file like [`Optimizer::load`], and accepts the given differences. Returns them with
    /// the checkpoint.
    ///
    /// # Errors
    /// See [`Checkpoint::load`] and [`Optimizer::restore_with`]. After an error nothing has changed.
    pub fn load_with(
        &mut self,
        path: impl AsRef<Path>,
        parameters: Parameters,
        accepted: Differences,
    ) -> Result<(Checkpoint, Vec<Difference>), Error> {
        let checkpoint = Checkpoint::load(path)?;
        let differences = self.restore_with(&checkpoint, parameters, accepted)?;
        Ok((checkpoint, differences))
    }

    /// Makes a checkpoint in memory, with the caller's notes. Waits for the device.
    ///
    /// # Errors
    /// See [`Optimizer::save`].
    pub async fn checkpoint(&self, parameters: Parameters, notes: &Notes) -> Result<Checkpoint, Error> {
        self.gpu.check_alive()?;
        self.check_averages_in_place("a checkpoint")?;
        self.check_usage(parameters, wgpu::BufferUsages::COPY_SRC, "BufferUsages::COPY_SRC")?;
        let mut draft = Draft::new(&self.plan, parameters, notes)?;
        let mut pieces = self.pieces(parameters);
        for piece in &mut pieces {
            // The states, which come first, tell which records are the last.
            if let Content::Table(Table::TensorRecords) = piece.content {
                piece.content = Content::TensorRing;
                piece.bytes = piece.buffer.size();
            }
        }
        let batches = batches(&pieces, self.gpu.device().limits().max_buffer_size);

        let mut readbacks = self.gpu.scoped("room for a checkpoint", || {
            let sizes = batches.iter().map(|batch| bytes_of(batch));
            let readback = |bytes| Readback::new(self.gpu.device(), "a checkpoint", bytes);
            Ok::<_, Error>(sizes.map(readback).collect::<Vec<_>>())
        })?;
        // All copies are started before the first one is awaited.
        for (batch, readback) in batches.iter().zip(&mut readbacks) {
            let sources =
                batch.iter().map(|piece| Source { buffer: piece.buffer, start: piece.start, bytes: piece.bytes });
            readback.start(&self.gpu, &sources.collect::<Vec<_>>())?;
        }
        for (batch, mut readback) in batches.iter().zip(readbacks) {
            let (plan, ring_steps) = (&self.plan, self.ring_steps());
            readback
                .wait(&self.gpu, |bytes| {
                    for (piece, at) in placed(batch) {
                        let bytes = &bytes[at as usize..][..piece.bytes as usize];
                        take(plan, piece.content, bytes, ring_steps, &mut draft);
                    }
                })
                .await?;
        }
        draft.fill_averages(&self.plan);
        Ok(draft.finish())
    }

    /// Restores the state from a checkpoint. If requested, its parameters are written to the caller's buffers.
    /// Otherwise they are only checked, and the caller must provide the parameters of that step. The copies are
    /// submitted ahead of every later submit, and the call does not wait for them. Steps that were recorded before and
    /// are submitted later start from the restored state.
    ///
    /// Earlier records that were not drained are discarded. The 2 bytes after 16-bit parameters of odd length become 0.
    ///
    /// # Errors
    /// Returns [`ErrorKind::CheckpointDiffers`](crate::ErrorKind::CheckpointDiffers) with the group, setting or tensor
    /// that differs, or if the checkpoint does not contain the requested parameters. Returns
    /// [`ErrorKind::CheckpointDamaged`](crate::ErrorKind::CheckpointDamaged),
    /// [`ErrorKind::Build`](crate::ErrorKind::Build) if a parameter buffer lacks `COPY_DST`,
    /// [`ErrorKind::Call`](crate::ErrorKind::Call), [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused) or
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost). After an error nothing has changed.
    pub fn restore(&mut self, checkpoint: &Checkpoint, parameters: Parameters) -> Result<(), Error> {
        self.restore_with(checkpoint, parameters, Differences::none()).map(|_| ())
    }

    /// Restores the state from a checkpoint of an optimizer with a different configuration, if the differences are
    /// accepted. Returns the differences and their consequences, one per line. [`Differences`] describes what happens
    /// to each part of the state. Parameters of tensors that the checkpoint does not contain stay unchanged in the
    /// caller's buffers.
    ///
    /// # Errors
    /// See [`Optimizer::restore`]. The error names the first difference that is not accepted. After an error nothing
    /// has changed.
    pub fn restore_with(
        &mut self,
        checkpoint: &Checkpoint,
        parameters: Parameters,
        accepted: Differences,
    ) -> Result<Vec<Difference>, Error> {
        self.gpu.check_alive()?;
        self.check_averages_in_place("a checkpoint")?;
        let Fitted { checkpoint, new_tensors, differences } = checkpoint.fit(&self.plan, parameters, accepted)?;
        let checkpoint = &*checkpoint;
        let step = checkpoint.step();
        self.check_usage(parameters, wgpu::BufferUsages::COPY_DST, "BufferUsages::COPY_DST")?;
        let states = checkpoint.states();
        let mut pieces = self.pieces(parameters);
        pieces.retain(|piece| !matches!(piece.content, Content::Parameters(tensor) if new_tensors.contains(&tensor)));
        for piece in &mut pieces {
            if let Content::Table(Table::TensorRecords) = piece.content {
                piece.start = last_slot(&states[0], self.ring_steps()) as u64 * piece.bytes;
            }
        }
        let batches = batches(&pieces, self.gpu.device().limits().max_buffer_size);
        let rates: Vec<f32> = states.iter().map(|state| state.learning_rate).collect();
        let scale = states.first().map_or(0, |state| state.loss_scale_exponent);
        let scale = unscale(-scale);

        // Everything that can fail comes first.
        let (uploads, rates, scale, readback) = self.gpu.scoped("room for a checkpoint", || {
            let mut uploads = Vec::with_capacity(batches.len());
            for batch in &batches {
                let mut bytes = vec![0; bytes_of(batch) as usize];
                for (piece, at) in placed(batch) {
                    let bytes = &mut bytes[at as usize..][..piece.bytes as usize];
                    give(&self.plan, piece.content, checkpoint, bytes);
                }
                uploads.push(upload(&self.gpu, &bytes)?);
            }
            let rates = upload(&self.gpu, bytemuck::cast_slice(&rates))?;
            let scale = upload(&self.gpu, bytemuck::bytes_of(&scale))?;
            // A copy that is in flight would return old records.
            let rings = self.records.size() + self.tensor_records.size();
            let readback = Readback::new(self.gpu.device(), "records", rings);
            Ok::<_, Error>((uploads, rates, scale, readback))
        })?;
        let mut encoder = self.encoder();
        encoder.clear_buffer(&self.records, 0, None);
        encoder.clear_buffer(&self.tensor_records, 0, None);
        for (batch, upload) in batches.iter().zip(&uploads) {
            for (piece, at) in placed(batch) {
                encoder.copy_buffer_to_buffer(upload, at, piece.buffer, piece.start, piece.bytes);
            }
        }
        encoder.copy_buffer_to_buffer(&rates, 0, &self.learning_rates, 0, rates.size());
        encoder.copy_buffer_to_buffer(&scale, 0, &self.loss_scale, 0, scale.size());
        self.gpu.queue().submit([encoder.finish()]);
        for (group, controls) in self.plan.groups.iter_mut().zip(checkpoint.controls()) {
            group.controls = controls;
        }
        self.looks.go_on_from(&self.plan.groups, &states);
        self.go_on_from(step);
        self.readback = readback;
        self.cursor = RecordCursor::at(step);
        self.undelivered = Records::default();
        self.halted = None;
        Ok(differences)
    }

    /// Builds an optimizer on the same device that continues from this one's state, with groups added or removed or
    /// with settings that only `build` takes. This optimizer and the parameters stay unchanged. Returns the differences
    /// and their consequences like [`restore_with`](Optimizer::restore_with). Records are not carried over: drain them
    /// before.
    ///
    /// Waits for the device. In the meantime the host holds copies of the state. If an average is to start from the
    /// parameters ([`Differences::settings`]), their buffers need `COPY_SRC`.
    ///
    /// # Errors
    /// See [`OptimizerBuilder::build`], [`Optimizer::checkpoint`] and [`Optimizer::restore_with`].
    pub async fn rebuild(
        &self,
        builder: OptimizerBuilder<Tensor>,
        accepted: Differences,
    ) -> Result<(Self, Vec<Difference>), Error> {
        let mut rebuilt = builder.build(&self.gpu)?;
        let checkpoint = self.checkpoint(Parameters::Excluded, &Notes::new()).await?;
        let mut differences = rebuilt.restore_with(&checkpoint, Parameters::Excluded, accepted);
        if differences.as_ref().is_err_and(Error::needs_parameters) {
            let checkpoint = self.checkpoint(Parameters::Included, &Notes::new()).await?;
            differences = rebuilt.restore_with(&checkpoint, Parameters::Excluded, accepted);
        }
        Ok((rebuilt, differences?))
    }

    /// Returns the number of steps that the rings hold. The shaders derive it from the buffers' sizes.
    fn ring_steps(&self) -> usize {
        self.records.size() as usize / size_of::<RawRecord>() / self.plan.groups.len()
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        let descriptor = wgpu::CommandEncoderDescriptor { label: Some("a checkpoint") };
        self.gpu.device().create_command_encoder(&descriptor)
    }

    /// Returns an error if parameters cannot be copied.
    fn check_usage(
        &self,
        parameters: Parameters,
        usage: wgpu::BufferUsages,
        missing: &'static str,
    ) -> Result<(), Error> {
        if parameters == Parameters::Excluded {
            return Ok(());
        }
        for (tensor, place) in self.plan.tensors.iter().zip(&self.plan.places) {
            if !self.kept.buffers[place.params_buffer].usage().contains(usage) {
                return Err(Error::from(BuildError::MissingUsage {
                    tensor: tensor.name.clone(),
                    role: "parameter",
                    missing,
                }));
            }
        }
        Ok(())
    }

    /// Lists the buffer ranges that a checkpoint copies.
    fn pieces(&self, parameters: Parameters) -> Vec<Piece<'_>> {
        let Kept { buffers, memories, updates } = &self.kept;
        let mut pieces = Vec::new();
        for table in Table::all(&self.plan) {
            pieces.push(Piece {
                content: Content::Table(table),
                buffer: match table {
                    Table::States => &self.states,
                    Table::Updates => updates,
                    Table::TensorRecords => &self.tensor_records,
                    Table::Controls => {
                        pieces.extend((0..self.plan.groups.len()).map(|group| Piece {
                            content: Content::Controls(group),
                            buffer: &self.groups,
                            start: controls_at(group),
                            bytes: size_of::<GroupControls>() as u64,
                        }));
                        continue;
                    }
                },
                start: 0,
                bytes: (table.row_bytes() * table.rows(&self.plan)) as u64,
            });
        }
        for (index, (window, memory)) in self.plan.memory_windows().iter().zip(memories).enumerate() {
            for kind in window.kernel.memories() {
                let Some((buffer, start)) = memory.place_of(window, kind) else {
                    continue;
                };
                pieces.push(Piece {
                    content: Content::Memory(index, kind),
                    buffer,
                    start,
                    bytes: window.memory_bytes(kind),
                });
            }
        }
        if parameters == Parameters::Included {
            for (index, place) in self.plan.places.iter().enumerate() {
                let element = place.params.bytes();
                pieces.push(Piece {
                    content: Content::Parameters(index),
                    buffer: &buffers[place.params_buffer],
                    start: place.params_start * element,
                    // Copies consist of whole words.
                    bytes: (place.elements * element).next_multiple_of(4),
                });
            }
        }
        // An empty tensor may lie at the very end of its buffer, where a copy is not allowed.
        pieces.retain(|piece| piece.bytes > 0);
        pieces
    }
}

/// Returns the state of the first group, which must have been copied already.
fn first_state(draft: &mut Draft) -> GroupState {
    let states = draft.bytes(Slot::Table(Table::States));
    bytemuck::pod_read_unaligned(&states[..size_of::<GroupState>()])
}

/// Splits the pieces into batches that each fit into a buffer.
fn batches<'p, 'a>(pieces: &'p [Piece<'a>], most_bytes: u64) -> Vec<&'p [Piece<'a>]> {
    let mut batches = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, piece) in pieces.iter().enumerate() {
        if bytes + piece.bytes > most_bytes && index > start {
            batches.push(&pieces[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += piece.bytes;
    }
    batches.push(&pieces[start..]);
    batches
}

fn bytes_of(batch: &[Piece]) -> u64 {
    batch.iter().map(|piece| piece.bytes).sum()
}

/// Returns the pieces of a batch with their offsets in the batch's buffer. The length of every piece is a multiple of 4
/// bytes, as copies require.
fn placed<'p, 'a>(batch: &'p [Piece<'a>]) -> impl Iterator<Item = (&'p Piece<'a>, u64)> {
    batch.iter().scan(0, |end, piece| {
        let start = *end;
        *end += piece.bytes;
        Some((piece, start))
    })
}

/// Creates a buffer with these bytes to copy from.
fn upload(gpu: &Gpu, bytes: &[u8]) -> Result<wgpu::Buffer, Error> {
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("a checkpoint"),
        size: bytes.len() as u64,
        usage: wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: true,
    });
    buffer
        .get_mapped_range_mut(..)
        .map_err(|error| {
            Error::from(DeviceError::Failed { what: "room for a checkpoint".to_owned(), message: error.to_string() })
        })?
        .copy_from_slice(bytes);
    buffer.unmap();
    Ok(buffer)
}

/// Returns the byte range of a group's controls in their table.
fn controls_in_table(group: usize) -> Range<usize> {
    let bytes = size_of::<GroupControls>();
    group * bytes..(group + 1) * bytes
}

/// Copies data from the device to its place in the checkpoint.
fn take(plan: &Plan, content: Content, bytes: &[u8], ring_steps: usize, draft: &mut Draft) {
    match content {
        Content::TensorRing => {
            let slot = last_slot(&first_state(draft), ring_steps);
            let rows = draft.bytes(Slot::Table(Table::TensorRecords));
            rows.copy_from_slice(&bytes[slot * rows.len()..][..rows.len()]);
        }
        Content::Table(table) => draft.bytes(Slot::Table(table)).copy_from_slice(bytes),
        Content::Controls(group) => {
            draft.bytes(Slot::Table(Table::Controls))[controls_in_table(group)].copy_from_slice(bytes);
        }
        Content::Parameters(tensor) => {
            let own = draft.bytes(Slot::Parameters(tensor));
            own.copy_from_slice(&bytes[..own.len()]);
        }
        Content::Memory(window, kind) => for_each_part(plan, window, kind, |tensor, there, here| {
            draft.bytes(Slot::Memory(tensor, kind))[there].copy_from_slice(&bytes[here]);
        }),
    }
}

/// Copies data from the checkpoint to its place on the device. Bytes that belong to no element are not changed.
fn give(plan: &Plan, content: Content, checkpoint: &Checkpoint, bytes: &mut [u8]) {
    match content {
        // The ring is only read.
        Content::TensorRing => {}
        Content::Table(table) => bytes.copy_from_slice(checkpoint.bytes(Slot::Table(table))),
        Content::Controls(group) => {
            bytes.copy_from_slice(&checkpoint.bytes(Slot::Table(Table::Controls))[controls_in_table(group)]);
        }
        Content::Parameters(tensor) => {
            let own = checkpoint.bytes(Slot::Parameters(tensor));
            bytes[..own.len()].copy_from_slice(own);
        }
        Content::Memory(window, kind) => for_each_part(plan, window, kind, |tensor, there, here| {
            bytes[here].copy_from_slice(&checkpoint.bytes(Slot::Memory(tensor, kind))[there]);
        }),
    }
}

/// Calls a function for the part of every tensor in a window, with the tensor, the part's bytes in the tensor's own
/// order, and its bytes in the window's memory, where each block begins at a quad.
fn for_each_part(
    plan: &Plan,
    window: usize,
    kind: MemoryKind,
    mut each: impl FnMut(usize, Range<usize>, Range<usize>),
) {
    let window = &plan.memory_windows()[window];
    let slot_bytes = window.memory_bytes(kind) as usize / kind.slots() as usize;
    for (index, tensor) in plan.tensors.iter().enumerate() {
        for stretch in window.stretches_of(kind, tensor) {
            // A value that several parameters share belongs to the first of them.
            let [here, there, bytes] = [stretch.in_memory, stretch.in_tensor, stretch.elements]
                .map(|elements| kind.slot_bytes(elements) as usize);
            for slot in 0..kind.slots() as usize {
                let there = there + slot * kind.slot_bytes(tensor.elements) as usize;
                let here = here + slot * slot_bytes;
                each(index, there..there + bytes, here..here + bytes);
            }
        }
    }
}
