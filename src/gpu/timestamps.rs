//! Device clock: pairs of timestamps around compute passes.

use std::time::Duration;

use crate::error::Error;
use crate::gpu::context::Gpu;

/// Number of pairs of timestamps in one measurement.
const SPANS: usize = 128;

/// Query set with 128 pairs of timestamps, for timing steps or passes on the device.
#[derive(Debug)]
pub struct Timestamps {
    set: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    period_ns: f64,
    in_encoders: bool,
}

impl Timestamps {
    /// Creates the query set. Returns `None` if the device has no timestamps.
    pub fn new(gpu: &Gpu) -> Option<Self> {
        let device = gpu.device();
        if !device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return None;
        }
        Some(Timestamps {
            set: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * SPANS as u32,
            }),
            resolved: device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: (2 * SPANS * std::mem::size_of::<u64>()) as u64,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            }),
            period_ns: f64::from(gpu.queue().get_timestamp_period()),
            in_encoders: device.features().contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS),
        })
    }

    /// Returns the number of pairs.
    pub fn spans(&self) -> usize {
        SPANS
    }

    /// Returns true if the device supports [`Timestamps::begin`] and [`Timestamps::end`].
    pub fn in_encoders(&self) -> bool {
        self.in_encoders
    }

    /// Returns pair `span`, counted from 0, to be written at the start and end of a compute pass.
    pub fn around_pass(&self, span: usize) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.set,
            beginning_of_pass_write_index: Some(2 * span as u32),
            end_of_pass_write_index: Some(2 * span as u32 + 1),
        }
    }

    /// Begins pair `span` between commands.
    pub fn begin(&self, encoder: &mut wgpu::CommandEncoder, span: usize) {
        encoder.write_timestamp(&self.set, 2 * span as u32);
    }

    /// Ends pair `span` between commands.
    pub fn end(&self, encoder: &mut wgpu::CommandEncoder, span: usize) {
        encoder.write_timestamp(&self.set, 2 * span as u32 + 1);
    }

    /// Returns the durations of the first `spans` pairs, which must have been submitted. Returns `None` if a timestamp
    /// was not written or a pair runs backwards.
    ///
    /// # Errors
    /// Returns [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost) or
    /// [`ErrorKind::Readback`](crate::ErrorKind::Readback).
    pub fn read(&self, gpu: &Gpu, spans: usize) -> Result<Option<Vec<Duration>>, Error> {
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.resolve_query_set(&self.set, 0..2 * spans as u32, &self.resolved, 0);
        gpu.queue().submit([encoder.finish()]);
        let ticks: Vec<u64> = pollster::block_on(gpu.read_buffer("timestamps", &self.resolved))?;
        Ok(ticks[..2 * spans].chunks_exact(2).map(|pair| self.span(pair[0], pair[1])).collect())
    }

    /// Returns the device time if it is plausible, else `None`. It cannot exceed the wall-clock time except for a
    /// little jitter, because all timestamps lie within it. Work that fills the device also takes more than a few
    /// thousandths of the time that the host waited.
    pub fn plausible(device: Duration, wall: Duration) -> Option<Duration> {
        let share = device.as_secs_f64() / wall.as_secs_f64().max(1e-9);
        (0.003..=1.1).contains(&share).then_some(device)
    }

    fn span(&self, begin: u64, end: u64) -> Option<Duration> {
        let ticks = end.checked_sub(begin).filter(|_| begin > 0)?;
        let nanoseconds = ticks as f64 * self.period_ns;
        (nanoseconds.is_finite() && nanoseconds < 1e12).then(|| Duration::from_nanos(nanoseconds as u64))
    }
}
