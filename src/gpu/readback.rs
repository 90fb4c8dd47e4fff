//! Readback, which copies bytes from the device to the host. It is never part of a step.

use std::time::Instant;

use futures_intrusive::channel::TryReceiveError;
use futures_intrusive::channel::shared::{Receiver, channel};

use crate::error::{DeviceError, Error};
use crate::gpu::context::{Gpu, one_line};

/// False in browsers, which have no usable clock and no way to wait, so that time-outs are not supported.
const HAS_CLOCK: bool = cfg!(not(target_arch = "wasm32"));

/// Shortest and longest time between two polls of the device.
#[cfg(not(target_arch = "wasm32"))]
const POLLS: [std::time::Duration; 2] = [std::time::Duration::from_micros(20), std::time::Duration::from_millis(1)];

type MapResult = Result<(), wgpu::BufferAsyncError>;

/// Staging buffer for repeated copies of some device buffers, which are stored one after the other.
pub(crate) struct Readback {
    what: &'static str,
    staging: wgpu::Buffer,
    in_flight: Option<InFlight>,
}

/// Copy in flight.
struct InFlight {
    receiver: Receiver<MapResult>,
    started: Option<Instant>,
}

impl std::fmt::Debug for Readback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readback").field("what", &self.what).field("in_flight", &self.in_flight.is_some()).finish()
    }
}

/// Range of a buffer on the device. Start and length are multiples of 4.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) start: u64,
    pub(crate) bytes: u64,
}

impl<'a> Source<'a> {
    pub(crate) fn whole(buffer: &'a wgpu::Buffer) -> Self {
        Source { buffer, start: 0, bytes: buffer.size() }
    }
}

impl Readback {
    pub(crate) fn new(device: &wgpu::Device, what: &'static str, bytes: u64) -> Self {
        Readback {
            what,
            staging: device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(what),
                size: bytes,
                usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
                mapped_at_creation: false,
            }),
            in_flight: None,
        }
    }

    pub(crate) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Submits a copy of the sources and asks for it to be mapped. Does nothing while a copy is in flight.
    pub(crate) fn start(&mut self, gpu: &Gpu, sources: &[Source]) -> Result<(), Error> {
        gpu.check_alive()?;
        if self.in_flight.is_some() {
            return Ok(());
        }
        let (sender, receiver) = channel(1);
        let ((), problem) = gpu.catching(|| {
            let mut encoder =
                gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(self.what) });
            let mut at = 0;
            for source in sources {
                let Source { buffer, start, bytes } = *source;
                encoder.copy_buffer_to_buffer(buffer, start, &self.staging, at, bytes);
                at += bytes;
            }
            gpu.queue().submit([encoder.finish()]);
            self.staging.map_async(wgpu::MapMode::Read, .., move |result| {
                // The receiver is dropped only with the whole optimizer.
                let _ = sender.try_send(result);
            });
        });
        if let Some(problem) = problem {
            return Err(self.failed(gpu, &problem));
        }
        self.in_flight = Some(InFlight { receiver, started: HAS_CLOCK.then(Instant::now) });
        Ok(())
    }

    /// Passes the bytes to `read` if they have arrived, without waiting.
    pub(crate) fn try_finish<T>(&mut self, gpu: &Gpu, read: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, Error> {
        let Some(copy) = &self.in_flight else {
            return Ok(None);
        };
        gpu.device().poll(wgpu::PollType::Poll).map_err(|error| self.failed(gpu, &error.to_string()))?;
        match copy.receiver.try_receive() {
            Ok(result) => return self.finish(gpu, result, read).map(Some),
            Err(TryReceiveError::Closed) => return Err(self.dropped(gpu)),
            Err(TryReceiveError::Empty) => {}
        }
        gpu.check_alive()?;
        match copy.started {
            Some(started) if started.elapsed() > gpu.readback_timeout() => Err(self.late(gpu)),
            _ => Ok(None),
        }
    }

    /// Waits for the bytes and passes them to `read`. After a time-out, or if the future is dropped, the copy is still
    /// in flight and can be awaited again.
    ///
    /// No thread is blocked: natively the future polls the device, and a timer wakes it for the next poll. The time
    /// between two polls is an eighth of the time waited so far.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) async fn wait<T>(&mut self, gpu: &Gpu, read: impl FnOnce(&[u8]) -> T) -> Result<T, Error> {
        let started = Instant::now();
        loop {
            let Some(copy) = &self.in_flight else {
                return Err(self.failed(gpu, "no copy was started"));
            };
            gpu.device().poll(wgpu::PollType::Poll).map_err(|error| self.failed(gpu, &error.to_string()))?;
            match copy.receiver.try_receive() {
                Ok(result) => return self.finish(gpu, result, read),
                Err(TryReceiveError::Closed) => return Err(self.dropped(gpu)),
                Err(TryReceiveError::Empty) => {}
            }
            gpu.check_alive()?;
            let (waited, timeout) = (started.elapsed(), gpu.readback_timeout());
            if waited >= timeout {
                return Err(self.late(gpu));
            }
            let [shortest, longest] = POLLS;
            let pause = (waited / 8).clamp(shortest, longest).min(timeout - waited);
            futures_timer::Delay::new(pause).await;
        }
    }

    /// Waits for the bytes, which the browser delivers.
    #[cfg(target_arch = "wasm32")]
    pub(crate) async fn wait<T>(&mut self, gpu: &Gpu, read: impl FnOnce(&[u8]) -> T) -> Result<T, Error> {
        let Some(copy) = &self.in_flight else {
            return Err(self.failed(gpu, "no copy was started"));
        };
        match copy.receiver.receive().await {
            Some(result) => self.finish(gpu, result, read),
            None => Err(self.dropped(gpu)),
        }
    }

    fn finish<T>(&mut self, gpu: &Gpu, result: MapResult, read: impl FnOnce(&[u8]) -> T) -> Result<T, Error> {
        self.in_flight = None;
        result.map_err(|error| self.failed(gpu, &error.to_string()))?;
        let value = match self.staging.get_mapped_range(..) {
            Ok(view) => Ok(read(&view)),
            Err(error) => Err(self.failed(gpu, &error.to_string())),
        };
        // Unmapping the buffer of a device that was destroyed in the meantime would be a validation error.
        gpu.catching(|| self.staging.unmap());
        value
    }

    /// Returns the cause of a failure, which is a lost device if the device is lost.
    fn failed(&self, gpu: &Gpu, message: &str) -> Error {
        gpu.probe();
        gpu.check_alive()
            .err()
            .unwrap_or_else(|| Error::from(DeviceError::Readback { what: self.what, message: one_line(message) }))
    }

    /// Handles a request that ended without an answer. Another request may be made.
    fn dropped(&mut self, gpu: &Gpu) -> Error {
        self.in_flight = None;
        self.failed(gpu, "the device dropped the request")
    }

    fn late(&self, gpu: &Gpu) -> Error {
        Error::from(DeviceError::Readback {
            what: self.what,
            message: format!(
                "time-out: it did not arrive within {:?}; nothing is lost, and another call may return it; Gpu::with_readback_timeout sets a longer limit",
                gpu.readback_timeout()
            ),
        })
    }
}

impl Gpu {
    /// Blocks the thread until everything that was submitted up to `submission` is done, without a time limit. `what`
    /// is the name in the error message.
    ///
    /// # Errors
    /// Returns [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost), or
    /// [`ErrorKind::Readback`](crate::ErrorKind::Readback) if the driver refuses to wait.
    #[doc(hidden)]
    pub fn finish(&self, what: &'static str, submission: &wgpu::SubmissionIndex) -> Result<(), Error> {
        let done = loop {
            let wait = wgpu::PollType::Wait { submission_index: Some(submission.clone()), timeout: None };
            match self.device().poll(wait) {
                // A wait on wgpu's OpenGL backend ends after four seconds.
                Err(wgpu::PollError::Timeout) => {}
                done => break done,
            }
        };
        self.check_alive()?;
        done.map_err(|error| DeviceError::Readback { what, message: one_line(&error.to_string()) })?;
        Ok(())
    }

    /// Reads a buffer back, as many whole `T`s as it holds. The future waits for the device, so do not use it in a
    /// training loop.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Readback`](crate::ErrorKind::Readback), also if the buffer lacks `COPY_SRC`, or
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub async fn read_buffer<T: bytemuck::Pod>(
        &self,
        what: &'static str,
        buffer: &wgpu::Buffer,
    ) -> Result<Vec<T>, Error> {
        if size_of::<T>() == 0 {
            return Ok(Vec::new());
        }
        let refused = |message: &str| Err(Error::from(DeviceError::Readback { what, message: message.to_owned() }));
        if !buffer.usage().contains(wgpu::BufferUsages::COPY_SRC) {
            return refused("the buffer was created without BufferUsages::COPY_SRC: add it");
        }
        if !buffer.size().is_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT) {
            return refused("the buffer's size is not a multiple of 4 bytes: make it one");
        }
        let mut readback = self
            .scoped("a buffer to read through", || Ok::<_, Error>(Readback::new(self.device(), what, buffer.size())))?;
        readback.start(self, &[Source::whole(buffer)])?;
        readback
            .wait(self, |bytes| bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect())
            .await
    }
}
