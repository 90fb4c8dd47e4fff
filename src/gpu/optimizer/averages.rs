//! Averages of the parameters: exchanged with the parameters, copied and read.

use super::build::f32_bytes;
use super::*;
use crate::averaging::Averaging;
use crate::error::{CallError, Error};
use crate::gpu::buffers::{whole, zeroed};
use crate::gpu::context::Gpu;
use crate::gpu::pass::Pipeline;
use crate::group::TensorSlice;
use crate::plan::{MemoryKind, Stretch, TensorInfo};

/// The averages of one window's parameters.
#[derive(Debug)]
pub(super) struct WindowAverages {
    /// The window's index in the plan.
    pub(super) window: usize,
    pub(super) buffer: wgpu::Buffer,
    /// Exchanges them with the parameters.
    pub(super) exchange: Dispatch,
    /// Fills them with the parameters where no average has started. In schedule-free training, copies the averages to a third bind group.
    pub(super) settle: Dispatch,
    /// In schedule-free training.
    pub(super) schedule_free: Option<ScheduleFree>,
}

/// What exchanges and copies averages that are nowhere kept as such.
#[derive(Debug)]
pub(super) struct ScheduleFree {
    /// Brings the parameters back after an exchange.
    pub(super) back: Dispatch,
    /// That of the dispatch that copies, to bind where to.
    pub(super) copy: Pipeline,
}

impl WindowAverages {
    /// The next exchange.
    pub(super) fn exchange(&self, swapped: bool) -> &Dispatch {
        match &self.schedule_free {
            Some(schedule_free) if swapped => &schedule_free.back,
            _ => &self.exchange,
        }
    }

    /// What copies the averages of schedule-free training, in quads as the base.
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

    /// Records the exchange of parameters and averages in the caller's buffers, in a compute pass of its own: what comes after it
    /// finds the averages where the parameters were, and evaluates them. A second call brings the parameters back; both are then
    /// what they were, bit for bit; those of [schedule-free](crate::Averaging::ScheduleFree) groups within one unit in the last place,
    /// see there. Groups without an [`Averaging`](crate::Averaging), and groups whose average has not started yet,
    /// keep their parameters throughout.
    ///
    /// Everything that is recorded counts: submit it all, in the order in which it was recorded.
    ///
    /// # Errors
    /// [`ErrorKind::Call`](crate::ErrorKind::Call) where no group keeps one, [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
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
    /// As [`encode_swap_averages`](Optimizer::encode_swap_averages).
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

    /// Whether, after all that was recorded so far, the averages lie where the parameters belong, and the other way round. No step can
    /// be recorded then.
    pub fn averages_are_swapped(&self) -> bool {
        self.averages_are_swapped
    }

    /// Records a copy of a tensor's averages, in the tensor's own order, into a slice of its length that the caller owns. Where the
    /// average has not started yet, it is a copy of the parameters. Of a [schedule-free](crate::Averaging::ScheduleFree) group it takes
    /// 4 more bytes on the device for each of the tensor's elements until the copy has been made. `tensor` is an index into [`tensors`](Optimizer::tensors).
    ///
    /// # Errors
    /// [`ErrorKind::Call`](crate::ErrorKind::Call) where there is no such tensor, where its group keeps no average, while the averages are in
    /// the caller's own buffers, and where the slice is not of the tensor's length; [`ErrorKind::Build`](crate::ErrorKind::Build) for a slice
    /// that is misaligned or lacks `COPY_DST`; [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
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
                // These averages are nowhere kept: they need room until the copy is made.
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

    /// A tensor's averages, for tests and for the curious: see [`encode_copy_averages`](Optimizer::encode_copy_averages). Waits for
    /// the device.
    ///
    /// # Errors
    /// As [`encode_copy_averages`](Optimizer::encode_copy_averages); [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused) or [`ErrorKind::Readback`](crate::ErrorKind::Readback).
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

    /// The tensor, where it has averages.
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

    pub(super) fn check_averages_in_place(&self, what: &'static str) -> Result<(), Error> {
        if self.averages_are_swapped() { Err(Error::from(CallError::AveragesSwapped { what })) } else { Ok(()) }
    }
}
