//! Averages of the parameters: swapping, copying and reading them.

use super::build::f32_bytes;
use super::*;
use crate::averaging::Averaging;
use crate::error::{CallError, Error};
use crate::gpu::buffers::{whole, zeroed};
use crate::gpu::context::Gpu;
use crate::gpu::pass::Pipeline;
use crate::group::TensorSlice;
use crate::plan::{MemoryKind, Stretch, TensorInfo};

/// Averages of one window's parameters.
#[derive(Debug, Clone)]
pub(super) struct WindowAverages {
    /// The window's index in the plan.
    pub(super) window: usize,
    pub(super) buffer: wgpu::Buffer,
    /// Exchanges the averages with the parameters.
    pub(super) exchange: Dispatch,
    /// Fills the averages with the parameters if no average has started. In schedule-free training it copies the
    /// averages to a third bind group.
    pub(super) settle: Dispatch,
    /// Dispatches of schedule-free training, if the window uses it.
    pub(super) schedule_free: Option<ScheduleFree>,
}

/// Dispatches for averages that are computed and not stored.
#[derive(Debug, Clone)]
pub(super) struct ScheduleFree {
    /// Restores the parameters after an exchange.
    pub(super) back: Dispatch,
    /// Pipeline of the copying dispatch, kept for binding its destination.
    pub(super) copy: Pipeline,
}

impl WindowAverages {
    /// Returns the dispatch of the next exchange.
    pub(super) fn exchange(&self, swapped: bool) -> &Dispatch {
        match &self.schedule_free {
            Some(schedule_free) if swapped => &schedule_free.back,
            _ => &self.exchange,
        }
    }

    /// Returns the dispatch that copies the averages of schedule-free training, in quads like the base iterates.
    pub(super) fn copy_to(&self, gpu: &Gpu, room: &wgpu::Buffer) -> Dispatch {
        let mut copy = self.settle.clone();
        if let Some(schedule_free) = &self.schedule_free {
            let buffers = [whole(&self.buffer), whole(room)];
            let group = copy.bind_groups.len();
            let bound = schedule_free.copy.bind(gpu.device(), group, &buffers);
            copy.bind_groups.push(bound);
        }
        copy
    }
}

impl Optimizer {
    /// Returns the dispatches of the next [`encode_swap_averages`](Optimizer::encode_swap_averages), in order.
    #[doc(hidden)]
    pub fn swap_dispatches(&self) -> impl Iterator<Item = &Dispatch> {
        let swapped = self.averages_are_swapped();
        let exchanges = self.averages.iter();
        exchanges.map(move |averages| averages.exchange(swapped))
    }

    /// Records the exchange of parameters and averages in the caller's buffers, in a compute pass of its own. Commands
    /// that follow find the averages in place of the parameters and evaluate them. A second call restores the
    /// parameters. Both are then bit-identical to what they were, except that those of
    /// [schedule-free](crate::Averaging::ScheduleFree) groups may differ by one unit in the last place. Groups without
    /// an [`Averaging`](crate::Averaging), and groups whose average has not started, keep their parameters throughout.
    ///
    /// Submit all recorded commands in the order in which they were recorded.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) if no group keeps an average, or
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn encode_swap_averages(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("wgpu-optim averages"),
            timestamp_writes: None,
        });
        self.encode_swap_averages_in(&mut pass)
    }

    /// Records the exchange of parameters and averages into the caller's compute pass, like
    /// [`encode_swap_averages`](Optimizer::encode_swap_averages).
    ///
    /// # Errors
    /// See [`encode_swap_averages`](Optimizer::encode_swap_averages).
    pub fn encode_swap_averages_in(&mut self, pass: &mut wgpu::ComputePass) -> Result<(), Error> {
        self.gpu.check_alive()?;
        if !self.plan.configs.iter().any(|config| config.averaging.is_on()) {
            return Err(Error::from(CallError::NoAverages { owner: "the optimizer".to_owned() }));
        }
        for dispatch in self.swap_dispatches() {
            dispatch.encode(pass);
        }
        self.averages_are_swapped = !self.averages_are_swapped;
        Ok(())
    }

    /// Returns true if, after all recorded commands, parameters and averages are exchanged. No step can be recorded in
    /// this state.
    pub fn averages_are_swapped(&self) -> bool {
        self.averages_are_swapped
    }

    /// Records a copy of a tensor's averages, in the tensor's own order, into a slice of the same length that the
    /// caller owns. If the average has not started, the parameters are copied. For a
    /// [schedule-free](crate::Averaging::ScheduleFree) group it needs 4 more bytes per element on the device until the
    /// copy has been made. `tensor` is an index into [`tensors`](Optimizer::tensors).
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) if there is no such tensor, if its group keeps no average,
    /// if the averages are swapped in, or if the slice does not have the tensor's length. Returns
    /// [`ErrorKind::Build`](crate::ErrorKind::Build) if the slice is misaligned or lacks `COPY_DST`, or
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn encode_copy_averages(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        tensor: usize,
        destination: wgpu::BufferSlice,
    ) -> Result<(), Error> {
        self.gpu.check_alive()?;
        let tensor = self.averaged_tensor(tensor)?;
        self.check_averages_in_place("a copy of the averages")?;
        let destination = destination.tensor();
        destination.check_destination(&tensor.name, tensor.elements)?;
        let windows = self.averages.iter().filter_map(|averages| {
            let window = &self.plan.windows[averages.window];
            let stretches = window.stretches_of(MemoryKind::Averages, tensor);
            (!stretches.is_empty()).then_some((averages, window, stretches))
        });
        let parts: Vec<(Dispatch, wgpu::Buffer, Vec<Stretch>)> =
            if self.plan.configs[tensor.group].averaging == Averaging::ScheduleFree {
                // These averages are not stored, so that they need memory until the copy is made.
                self.gpu.scoped("room for a copy of the averages", || {
                    let parts = windows.map(|(averages, window, stretches)| {
                        let bytes = window.memory_bytes(MemoryKind::BaseIterates);
                        let room = zeroed::<u8>(&self.gpu, "a copy of the averages", bytes);
                        (averages.copy_to(&self.gpu, &room), room, stretches)
                    });
                    Ok::<_, Error>(parts.collect())
                })?
            } else {
                let parts = windows.map(|(averages, _, stretches)| {
                    let settle = averages.settle.clone();
                    (settle, averages.buffer.clone(), stretches)
                });
                parts.collect()
            };
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some("wgpu-optim averages"),
                timestamp_writes: None,
            });
            for (settle, ..) in &parts {
                settle.encode(&mut pass);
            }
        }
        let element = u64::from(f32_bytes());
        for (_, buffer, stretches) in &parts {
            for stretch in stretches {
                encoder.copy_buffer_to_buffer(
                    buffer,
                    stretch.in_memory * element,
                    &destination.buffer,
                    (destination.start() + stretch.in_tensor) * element,
                    stretch.elements * element,
                );
            }
        }
        Ok(())
    }

    /// Reads a tensor's averages to the host, mainly for tests. Waits for the device.
    /// [`encode_copy_averages`](Optimizer::encode_copy_averages) copies them without waiting.
    ///
    /// # Errors
    /// Returns the errors of [`encode_copy_averages`](Optimizer::encode_copy_averages),
    /// [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused) or
    /// [`ErrorKind::Readback`](crate::ErrorKind::Readback).
    pub async fn read_averages(&self, tensor: usize) -> Result<Vec<f32>, Error> {
        let elements = self.averaged_tensor(tensor)?.elements;
        let bytes = elements * u64::from(f32_bytes());
        let buffer = self.gpu.scoped("a copy of the averages", || {
            Ok::<_, Error>(zeroed::<f32>(&self.gpu, "a copy of the averages", elements))
        })?;
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        self.encode_copy_averages(&mut encoder, tensor, buffer.slice(..bytes))?;
        self.gpu.queue().submit([encoder.finish()]);
        let mut averages = self.gpu.read_buffer("averages", &buffer).await?;
        // The buffer is padded to 16 bytes.
        averages.truncate(elements as usize);
        Ok(averages)
    }

    /// Returns the tensor, or an error if it has no averages.
    pub(super) fn averaged_tensor(&self, index: usize) -> Result<&TensorInfo, Error> {
        let tensors = &self.plan.tensors;
        let tensor =
            tensors.get(index).ok_or(Error::from(CallError::UnknownTensor { index, tensors: tensors.len() }))?;
        if self.plan.configs[tensor.group].averaging.is_on() {
            Ok(tensor)
        } else {
            Err(Error::from(CallError::NoAverages { owner: format!("tensor \"{}\"", tensor.name) }))
        }
    }

    pub(in crate::gpu) fn check_averages_in_place(&self, what: &'static str) -> Result<(), Error> {
        if self.averages_are_swapped() { Err(Error::from(CallError::AveragesSwapped { what })) } else { Ok(()) }
    }
}
