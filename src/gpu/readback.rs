//! Readback: copies bytes from the device to the host. It is never part of a step.

use std::time::Instant;

use futures_intrusive::channel::TryReceiveError;
use futures_intrusive::channel::shared::{Receiver, channel};

use crate::error::{DeviceError, Error};
use crate::gpu::context::{Gpu, one_line};

/// False in browsers, where there is no clock to use and no way to wait, so that time-outs are not supported.
const HAS_CLOCK: bool = cfg!(not(target_arch = "wasm32"));

/// Shortest and longest time between two polls of the device.
#[cfg(not(target_arch = "wasm32"))]
const POLLS: [std::time::Duration; 2] = [std::time::Duration::from_micros(20), std::time::Duration::from_millis(1)];

type MapResult = Result<(), wgpu::BufferAsyncError>;

/// A staging buffer that copies of some device buffers are read through, one after the other in it, again and again.
pub(crate) struct Readback {
    what: &'static str,
    staging: wgpu::Buffer,
    in_flight: Option<InFlight>,
}

/// A copy that is under way.
struct InFlight {
    receiver: Receiver<MapResult>,
    started: Option<Instant>,
}

impl std::fmt::Debug for Readback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readback").field("what", &self.what).field("in_flight", &self.in_flight.is_some()).finish()
    }
}

/// A stretch of a buffer on the device; start and length are multiples of 4.
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

    /// Submits a copy of the sources and asks for it to be mapped. Does nothing while one is under way.
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
                // The receiver is gone only if the whole optimizer is.
                let _ = sender.try_send(result);
            });
        });
        if let Some(problem) = problem {
            return Err(self.failed(gpu, &problem));
        }
        self.in_flight = Some(InFlight { receiver, started: HAS_CLOCK.then(Instant::now) });
        Ok(())
    }

    /// Hands the bytes to `read` if they have arrived, without waiting.
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

    /// Waits for the bytes and hands them to `read`. After a time-out, or where the future is dropped, the copy is still under way, and may be
    /// waited for again.
    ///
    /// No thread is held up: natively the future polls the device, and a timer wakes it for the next time. The time between two polls grows
    /// with the time waited, of which it is an eighth.
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

    /// Waits for the bytes, which the browser brings.
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
        // Of a device that has been destroyed meanwhile there is nothing to unmap, which wgpu would call a mistake.
        gpu.catching(|| self.staging.unmap());
        value
    }

    /// Why it failed: a device that is gone, if that is what it is.
    fn failed(&self, gpu: &Gpu, message: &str) -> Error {
        gpu.probe();
        gpu.check_alive()
            .err()
            .unwrap_or_else(|| Error::from(DeviceError::Readback { what: self.what, message: one_line(message) }))
    }

    /// The request has gone without an answer; another one may be made.
    fn dropped(&mut self, gpu: &Gpu) -> Error {
        self.in_flight = None;
        self.failed(gpu, "the device dropped the request")
    }

    fn late(&self, gpu: &Gpu) -> Error {
        Error::from(DeviceError::Readback {
            what: self.what,
            message: format!(
                "time-out: it did not come within {:?}, nothing is lost and another call may bring it; Gpu::with_readback_timeout allows for more",
                gpu.readback_timeout()
            ),
        })
    }
}

impl Gpu {
    /// Blocks the thread until everything that was submitted up to `submission` is done, however long it takes. `what` is waited for, in
    /// the message.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost), or [`ErrorKind::Readback`](crate::ErrorKind::Readback) where the driver refuses to wait.
    #[doc(hidden)]
    pub fn finish(&self, what: &'static str, submission: &wgpu::SubmissionIndex) -> Result<(), Error> {
        let done = loop {
            let wait = wgpu::PollType::Wait { submission_index: Some(submission.clone()), timeout: None };
            match self.device().poll(wait) {
                // One wait of wgpu's OpenGL ends after four seconds.
                Err(wgpu::PollError::Timeout) => {}
                done => break done,
            }
        };
        self.check_alive()?;
        done.map_err(|error| DeviceError::Readback { what, message: one_line(&error.to_string()) })?;
        Ok(())
    }

    /// Reads a buffer back, as many whole `T`s as it holds. The future waits for the device; not for use in a training loop.
    ///
    /// # Errors
    /// [`ErrorKind::Readback`](crate::ErrorKind::Readback), also where the buffer lacks `COPY_SRC`, or [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
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
