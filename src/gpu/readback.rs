//! Bringing bytes back from the device. Never part of a step.

use std::time::Duration;

use futures_intrusive::channel::shared::{Receiver, channel};

use crate::error::Error;
use crate::gpu::context::{Gpu, one_line};

/// How long a readback may take before it is given up.
const TIMEOUT: Duration = Duration::from_secs(60);

type MapResult = Result<(), wgpu::BufferAsyncError>;

/// A staging buffer that copies of some device buffers are read through, one after the other in it, again and again.
pub(crate) struct Readback {
    what: &'static str,
    staging: wgpu::Buffer,
    in_flight: Option<(Receiver<MapResult>, wgpu::SubmissionIndex)>,
}

impl std::fmt::Debug for Readback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readback")
            .field("what", &self.what)
            .field("in_flight", &self.in_flight.is_some())
            .finish()
    }
}

impl Readback {
    pub(crate) fn new(
        device: &wgpu::Device,
        what: &'static str,
        sources: &[&wgpu::Buffer],
    ) -> Self {
        Readback {
            what,
            staging: device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(what),
                size: sources.iter().map(|source| source.size()).sum(),
                usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
                mapped_at_creation: false,
            }),
            in_flight: None,
        }
    }

    pub(crate) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Submits a copy of the sources and asks for it to be mapped. Does nothing while one is under way.
    pub(crate) fn start(&mut self, gpu: &Gpu, sources: &[&wgpu::Buffer]) -> Result<(), Error> {
        gpu.check_alive()?;
        if self.in_flight.is_some() {
            return Ok(());
        }
        let mut encoder = gpu
            .device()
            .create_command_encoder(&wgpu::CommandEncoderDescriptor {
                label: Some(self.what),
            });
        let mut at = 0;
        for source in sources {
            encoder.copy_buffer_to_buffer(source, 0, &self.staging, at, source.size());
            at += source.size();
        }
        let submission = gpu.queue().submit([encoder.finish()]);
        let (sender, receiver) = channel(1);
        self.staging
            .map_async(wgpu::MapMode::Read, .., move |result| {
                // The receiver is gone only if the whole optimizer is.
                let _ = sender.try_send(result);
            });
        self.in_flight = Some((receiver, submission));
        Ok(())
    }

    /// Hands the bytes to `read` if they have arrived, without waiting.
    pub(crate) fn try_finish<T>(
        &mut self,
        gpu: &Gpu,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, Error> {
        let Some((receiver, _)) = &self.in_flight else {
            return Ok(None);
        };
        gpu.device()
            .poll(wgpu::PollType::Poll)
            .map_err(|error| self.failed(&error.to_string()))?;
        match receiver.try_receive() {
            Ok(result) => self.finish(result, read).map(Some),
            Err(_) => {
                gpu.check_alive()?;
                Ok(None)
            }
        }
    }

    /// Waits for the bytes and hands them to `read`.
    pub(crate) async fn wait<T>(
        &mut self,
        gpu: &Gpu,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, Error> {
        let Some((receiver, submission)) = &self.in_flight else {
            return Err(self.failed("no copy was started"));
        };
        gpu.device()
            .poll(wgpu::PollType::Wait {
                submission_index: Some(submission.clone()),
                timeout: Some(TIMEOUT),
            })
            .map_err(|error| self.failed(&error.to_string()))?;
        // A lost device may have dropped the request without an answer.
        gpu.check_alive()?;
        match receiver.receive().await {
            Some(result) => self.finish(result, read),
            None => {
                self.in_flight = None;
                Err(self.failed("the device dropped the request"))
            }
        }
    }

    fn finish<T>(&mut self, result: MapResult, read: impl FnOnce(&[u8]) -> T) -> Result<T, Error> {
        self.in_flight = None;
        result.map_err(|error| self.failed(&error.to_string()))?;
        let value = match self.staging.get_mapped_range(..) {
            Ok(view) => Ok(read(&view)),
            Err(error) => Err(self.failed(&error.to_string())),
        };
        self.staging.unmap();
        value
    }

    fn failed(&self, message: &str) -> Error {
        Error::Readback {
            what: self.what,
            message: one_line(message),
        }
    }
}

impl Gpu {
    /// Reads a buffer back, as many whole `T`s as it holds. Waits for the device; not for use in a training loop.
    ///
    /// # Errors
    /// [`Error::Readback`], also where the buffer lacks `COPY_SRC`, or [`Error::DeviceLost`].
    pub async fn read_buffer<T: bytemuck::Pod>(
        &self,
        what: &'static str,
        buffer: &wgpu::Buffer,
    ) -> Result<Vec<T>, Error> {
        let refused = |message: &str| {
            Err(Error::Readback {
                what,
                message: message.to_owned(),
            })
        };
        if !buffer.usage().contains(wgpu::BufferUsages::COPY_SRC) {
            return refused("the buffer was created without BufferUsages::COPY_SRC: add it");
        }
        if !buffer.size().is_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT) {
            return refused("the buffer's size is not a multiple of 4 bytes: make it one");
        }
        let mut readback = self.scoped("a buffer to read through", || {
            Ok::<_, Error>(Readback::new(self.device(), what, &[buffer]))
        })?;
        readback.start(self, &[buffer])?;
        readback
            .wait(self, |bytes| {
                bytes
                    .chunks_exact(std::mem::size_of::<T>().max(1))
                    .map(bytemuck::pod_read_unaligned)
                    .collect()
            })
            .await
    }
}
