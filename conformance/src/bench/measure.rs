//! Measuring: every job of one size in turn, round after round, so that drift hits all alike; medians and spread.

use std::time::Duration;

use wgpu_optim::Error;

use super::workload::Spec;

/// Memory of one size on the host or on a device, and what can be done to it.
pub trait Bench {
    /// One thing to be timed.
    type Job;

    /// A step of an optimizer.
    ///
    /// # Errors
    /// What the builder or the device refuses.
    fn step(&mut self, spec: &Spec) -> Result<Self::Job, Error>;

    /// A step in a submit of its own and the wait for it, where steps are submitted.
    ///
    /// # Errors
    /// What the builder or the device refuses.
    fn lone_step(&mut self, _spec: &Spec) -> Result<Option<Self::Job>, Error> {
        Ok(None)
    }

    /// The ways to copy all elements, by name.
    ///
    /// # Errors
    /// What the device refuses.
    fn copies(&self) -> Result<Vec<(&'static str, Self::Job)>, Error>;

    /// The triad a = b + s c over all elements.
    ///
    /// # Errors
    /// What the device refuses.
    fn triad(&self) -> Result<Self::Job, Error>;

    /// Time of so many calls of a job, one after the other.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceLost`](wgpu_optim::ErrorKind::DeviceLost) or [`ErrorKind::Readback`](wgpu_optim::ErrorKind::Readback).
    fn time(&mut self, job: &mut Self::Job, calls: usize) -> Result<Times, Error>;

    /// Device time of each pass of a step, by its stem and in the order of the step. Empty where the job is no step, without
    /// timestamps, or where they make no sense.
    ///
    /// # Errors
    /// As [`Bench::time`].
    fn time_passes(&self, _job: &Self::Job) -> Result<Vec<(&'static str, Duration)>, Error> {
        Ok(Vec::new())
    }

    /// Host time of recording so many steps as a caller would, into an encoder that is never submitted; `None` where nothing is
    /// recorded.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceLost`](wgpu_optim::ErrorKind::DeviceLost).
    fn time_recording(&self, _job: &Self::Job, _steps: usize) -> Result<Option<RecordingTimes>, Error> {
        Ok(None)
    }
}

/// How long so many calls took.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// From the first call to the end of the wait for the last.
    pub wall: Duration,
    /// By the device's timestamps, where it has them and they make sense.
    pub device: Option<Duration>,
}

/// What it costs the host to record steps.
#[derive(Debug, Clone, Copy)]
pub struct RecordingTimes {
    /// All calls of `Optimizer::encode_step`.
    pub encode: Duration,
    /// `CommandEncoder::finish` of the encoder that they went into.
    pub finish: Duration,
}

/// Each figure is the median of this many rounds.
pub const ROUNDS: usize = 7;
/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// In each round a job is called as often as fills this time.
    pub round: Duration,
    /// Whether the passes of steps are timed as well.
    pub by_pass: bool,
}

/// A job is not called more often than this in a round.
const MOST_CALLS: usize = 1 << 13;
/// Steps whose recording is timed in each round.
const RECORDED_STEPS: usize = 64;

/// Seconds of one call, over the rounds.
#[derive(Debug, Clone, Copy)]
pub struct Seconds {
    /// The fastest round.
    pub low: f64,
    /// The median.
    pub median: f64,
    /// The slowest round.
    pub high: f64,
}

impl Seconds {
    fn of(mut rounds: Vec<f64>) -> Option<Self> {
        rounds.sort_by(f64::total_cmp);
        Some(Seconds { low: *rounds.first()?, median: *rounds.get(rounds.len() / 2)?, high: *rounds.last()? })
    }
}

/// What a job came to.
#[derive(Debug, Clone)]
pub struct Measured {
    /// By the wall clock.
    pub wall: Seconds,
    /// By the device's timestamps, where they made sense in every round.
    pub device: Option<Seconds>,
    /// Median device seconds of each pass of a step.
    pub passes: Vec<(&'static str, f64)>,
    /// Median host seconds of recording a step: `encode_step`, and the step's share of `finish`.
    pub recording: Option<(f64, f64)>,
}

/// The rounds of one job.
#[derive(Debug, Default)]
struct Log {
    calls: usize,
    wall: Vec<f64>,
    device: Vec<f64>,
    passes: Vec<(&'static str, Vec<f64>)>,
    encode: Vec<f64>,
    finish: Vec<f64>,
}

/// Measures jobs in alternation. `done` is called after each round.
///
/// # Errors
/// [`ErrorKind::DeviceLost`](wgpu_optim::ErrorKind::DeviceLost) or [`ErrorKind::Readback`](wgpu_optim::ErrorKind::Readback).
pub fn measure<B: Bench>(
    bench: &mut B,
    jobs: &mut [B::Job],
    effort: Effort,
    mut done: impl FnMut(),
) -> Result<Vec<Measured>, Error> {
    let mut logs = Vec::with_capacity(jobs.len());
    for job in jobs.iter_mut() {
        logs.push(Log { calls: calls_per_round(bench, job, effort.round)?, ..Log::default() });
    }
    for _ in 0..ROUNDS {
        for (job, log) in jobs.iter_mut().zip(&mut logs) {
            log.round(bench, job, effort.by_pass)?;
        }
        done();
    }
    Ok(logs.into_iter().filter_map(Log::medians).collect())
}

/// Warms up, and finds how many calls fill a round.
fn calls_per_round<B: Bench>(bench: &mut B, job: &mut B::Job, round: Duration) -> Result<usize, Error> {
    bench.time(job, 1)?;
    let mut calls = 1;
    loop {
        let time = bench.time(job, calls)?.wall;
        if time >= round / 8 || calls >= MOST_CALLS {
            let scale = round.as_secs_f64() / time.as_secs_f64().max(1e-9);
            return Ok(((calls as f64 * scale) as usize).clamp(1, MOST_CALLS));
        }
        calls *= 8;
    }
}

impl Log {
    fn round<B: Bench>(&mut self, bench: &mut B, job: &mut B::Job, by_pass: bool) -> Result<(), Error> {
        let times = bench.time(job, self.calls)?;
        let per_call = |time: Duration| time.as_secs_f64() / self.calls as f64;
        self.wall.push(per_call(times.wall));
        self.device.extend(times.device.map(per_call));
        if let Some(times) = bench.time_recording(job, RECORDED_STEPS)? {
            let per_step = |time: Duration| time.as_secs_f64() / RECORDED_STEPS as f64;
            self.encode.push(per_step(times.encode));
            self.finish.push(per_step(times.finish));
        }
        if by_pass {
            for (index, (pass, time)) in bench.time_passes(job)?.into_iter().enumerate() {
                if self.passes.len() <= index {
                    self.passes.push((pass, Vec::new()));
                }
                self.passes[index].1.push(time.as_secs_f64());
            }
        }
        Ok(())
    }

    /// `None` of no rounds.
    fn medians(self) -> Option<Measured> {
        let median = |rounds| Seconds::of(rounds).map(|seconds| seconds.median);
        Some(Measured {
            wall: Seconds::of(self.wall)?,
            // One round without makes the rest suspect.
            device: Seconds::of(self.device.clone()).filter(|_| self.device.len() == ROUNDS),
            passes: self.passes.into_iter().filter_map(|(pass, rounds)| Some((pass, median(rounds)?))).collect(),
            recording: median(self.encode).zip(median(self.finish)),
        })
    }
}
