//! Measuring: all jobs of one size are measured in turn, round after round, so that drift affects all alike. The
//! results are medians and spread.

use std::time::Duration;

use wgpu_optim::Error;

use super::workload::Spec;

/// Memory of one size on the host or on a device, and the jobs on it.
pub trait Bench {
    /// Job to be timed.
    type Job;

    /// Creates a step of an optimizer.
    ///
    /// # Errors
    /// Returns the error of the builder or the device.
    fn step(&mut self, spec: &Spec) -> Result<Self::Job, Error>;

    /// Creates a step in a submit of its own with a wait for it, if steps are submitted.
    ///
    /// # Errors
    /// Returns the error of the builder or the device.
    fn lone_step(&mut self, _spec: &Spec) -> Result<Option<Self::Job>, Error> {
        Ok(None)
    }

    /// Returns the ways to copy all elements, by name.
    ///
    /// # Errors
    /// Returns the error of the device.
    fn copies(&self) -> Result<Vec<(&'static str, Self::Job)>, Error>;

    /// Creates the triad a = b + s c over all elements.
    ///
    /// # Errors
    /// Returns the error of the device.
    fn triad(&self) -> Result<Self::Job, Error>;

    /// Measures the time of `calls` consecutive calls of a job.
    ///
    /// # Errors
    /// Returns [`ErrorKind::DeviceLost`](wgpu_optim::ErrorKind::DeviceLost) or
    /// [`ErrorKind::Readback`](wgpu_optim::ErrorKind::Readback).
    fn time(&mut self, job: &mut Self::Job, calls: usize) -> Result<Times, Error>;

    /// Measures the device time of each pass of a step, by its stem and in the order of the step. The result is empty
    /// if the job is not a step, without timestamps, or if they are implausible.
    ///
    /// # Errors
    /// See [`Bench::time`].
    fn time_passes(&self, _job: &Self::Job) -> Result<Vec<(&'static str, Duration)>, Error> {
        Ok(Vec::new())
    }

    /// Measures the host time of recording steps as a caller would, into an encoder that is never submitted. Returns
    /// `None` if nothing is recorded.
    ///
    /// # Errors
    /// Returns [`ErrorKind::DeviceLost`](wgpu_optim::ErrorKind::DeviceLost).
    fn time_recording(&self, _job: &Self::Job, _steps: usize) -> Result<Option<RecordingTimes>, Error> {
        Ok(None)
    }
}

/// Time of a number of calls.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Time from the first call to the end of the wait for the last.
    pub wall: Duration,
    /// Time by the device's timestamps, if it has them and they are plausible.
    pub device: Option<Duration>,
}

/// Host time of recording steps.
#[derive(Debug, Clone, Copy)]
pub struct RecordingTimes {
    /// Time of all calls of `Optimizer::encode_step`.
    pub encode: Duration,
    /// Time of `CommandEncoder::finish` for the encoder with these steps.
    pub finish: Duration,
}

/// Number of rounds. Each figure is the median over them.
pub const ROUNDS: usize = 7;
/// Amount of measuring.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Time that the calls of a job fill in each round.
    pub round: Duration,
    /// True to time the passes of steps as well.
    pub by_pass: bool,
}

/// Largest number of calls of a job in a round.
const MOST_CALLS: usize = 1 << 13;
/// Number of steps whose recording is timed in each round.
const RECORDED_STEPS: usize = 64;

/// Seconds of one call, over the rounds.
#[derive(Debug, Clone, Copy)]
pub struct Seconds {
    /// Fastest round.
    pub low: f64,
    /// Median of the rounds.
    pub median: f64,
    /// Slowest round.
    pub high: f64,
}

impl Seconds {
    fn of(mut rounds: Vec<f64>) -> Option<Self> {
        rounds.sort_by(f64::total_cmp);
        Some(Seconds { low: *rounds.first()?, median: *rounds.get(rounds.len() / 2)?, high: *rounds.last()? })
    }
}

/// Results of a job.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Time by the wall clock.
    pub wall: Seconds,
    /// Time by the device's timestamps, if they were plausible in every round.
    pub device: Option<Seconds>,
    /// Median device seconds of each pass of a step.
    pub passes: Vec<(&'static str, f64)>,
    /// Median host seconds of recording a step: `encode_step`, and the step's part of `finish`.
    pub recording: Option<(f64, f64)>,
}

/// Times of one job, round by round.
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
/// Returns [`ErrorKind::DeviceLost`](wgpu_optim::ErrorKind::DeviceLost) or
/// [`ErrorKind::Readback`](wgpu_optim::ErrorKind::Readback).
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

/// Warms up a job, and returns the number of calls that fill a round.
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

    /// Returns the medians, or `None` without rounds.
    fn medians(self) -> Option<Measured> {
        let median = |rounds| Seconds::of(rounds).map(|seconds| seconds.median);
        Some(Measured {
            wall: Seconds::of(self.wall)?,
            // A round without a device time makes the others unreliable.
            device: Seconds::of(self.device.clone()).filter(|_| self.device.len() == ROUNDS),
            passes: self.passes.into_iter().filter_map(|(pass, rounds)| Some((pass, median(rounds)?))).collect(),
            recording: median(self.encode).zip(median(self.finish)),
        })
    }
}
