//! The runs of the package `wgpu-optim-conformance`, as `check` wants them: what fails is an error, a step's records come with it, and
//! what comes back from a device can be falsified.

use std::sync::atomic::{AtomicU32, Ordering};

use wgpu_optim::internals::PassName;
use wgpu_optim::internals::layout::{GroupState, ScopeSums};
use wgpu_optim::{CombinedSums, Error, Record, ShardSums, wgpu};
use wgpu_optim_conformance::run::{CpuRun, GUARD, GpuRun, Run};

use super::case::{Outcome, Path};
use crate::CliError;

/// A fault in what comes back from the device, seeded to see that every family would tell: from the third step on, element 17 of
/// every tensor that has one is off, and off by more each time it is read; so are the sums of such a tensor's norm.
#[derive(Debug, Default)]
pub struct Fault {
    reads: AtomicU32,
}

impl Fault {
    /// The element that is off, and the first step after which it is.
    const ELEMENT: usize = 17;
    const STEP: usize = 3;

    fn size(&self) -> f32 {
        let reads = self.reads.fetch_add(1, Ordering::Relaxed);
        // As large as the largest tensors' ordinary values, so that it shows beside those of any size below.
        0.01 * (reads + 1) as f32
    }
}

/// A path whose answers may fail to arrive.
pub trait Readable: Run {
    fn try_params(&self) -> Result<Vec<Vec<f32>>, Error>;
    fn try_sums(&self) -> Result<Vec<ScopeSums>, Error>;
}

impl Readable for CpuRun {
    fn try_params(&self) -> Result<Vec<Vec<f32>>, Error> {
        Ok(self.params())
    }
    fn try_sums(&self) -> Result<Vec<ScopeSums>, Error> {
        Ok(self.sums())
    }
}

impl Readable for GpuRun {
    fn try_params(&self) -> Result<Vec<Vec<f32>>, Error> {
        self.read_params()
    }
    fn try_sums(&self) -> Result<Vec<ScopeSums>, Error> {
        self.read_sums()
    }
}

/// The CPU path or a device at work.
pub struct PathRun<'a, R> {
    pub run: R,
    fault: Option<&'a Fault>,
    lengths: Vec<usize>,
    /// Steps done. Who records steps by other means than [`PathRun::step`] adds them.
    pub steps: usize,
}

pub type HostRun = PathRun<'static, CpuRun>;
pub type DeviceRun<'a> = PathRun<'a, GpuRun>;

impl<'a, R: Readable> PathRun<'a, R> {
    pub fn new(run: R, fault: Option<&'a Fault>, lengths: Vec<usize>) -> Self {
        PathRun { run, fault, lengths, steps: 0 }
    }

    /// One step; gradients tensor by tensor.
    pub fn step(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<Vec<Record>, CliError> {
        self.run.set_loss(loss);
        self.run.try_step(gradients)?;
        self.records_of_step()
    }

    /// A rank's part of a step.
    pub fn measure(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<ShardSums, CliError> {
        self.run.set_loss(loss);
        Ok(self.run.try_measure(gradients)?)
    }

    /// The step that was measured.
    pub fn apply(&mut self, gradients: &[Vec<f32>], combined: &CombinedSums) -> Result<Vec<Record>, CliError> {
        self.run.try_apply(gradients, combined)?;
        self.records_of_step()
    }

    /// The records of one step: one per group.
    fn records_of_step(&mut self) -> Result<Vec<Record>, CliError> {
        self.steps += 1;
        let (records, groups) = (self.run.try_records()?.records, self.run.groups().len());
        if records.len() == groups {
            return Ok(records);
        }
        Err(CliError::Failed(format!("one step of {groups} groups left {} records", records.len())))
    }

    /// The size of the fault, where one is seeded and it is time.
    fn fault(&self) -> Option<f32> {
        self.fault.filter(|_| self.steps >= Fault::STEP).map(Fault::size)
    }

    /// The parameters, tensor by tensor.
    pub fn parameters(&self) -> Result<Vec<Vec<f32>>, CliError> {
        let mut parameters = self.run.try_params()?;
        if let Some(size) = self.fault() {
            let elements = parameters.iter_mut().flat_map(|p| p.get_mut(Fault::ELEMENT));
            elements.for_each(|w| *w += w.abs().max(1.0) * size);
        }
        Ok(parameters)
    }

    /// The sums of the last step, scope by scope.
    pub fn sums(&self) -> Result<Vec<ScopeSums>, CliError> {
        let mut sums = self.run.try_sums()?;
        if let Some(size) = self.fault() {
            for (sums, _) in sums.iter_mut().zip(&self.lengths).filter(|(_, length)| **length > Fault::ELEMENT) {
                sums.square.sum *= 1.0 + size;
            }
        }
        Ok(sums)
    }
}

impl DeviceRun<'_> {
    /// Writes the loss and the gradients of the next step.
    pub fn write(&mut self, gradients: &[Vec<f32>], loss: f32) {
        self.run.set_loss(loss);
        self.run.write_grads(gradients);
    }

    pub fn states(&self) -> Result<Vec<GroupState>, CliError> {
        let mut states = pollster::block_on(self.run.optimizer.read_states())?;
        states.truncate(self.run.optimizer.groups().len());
        Ok(states)
    }

    pub fn submit(&self, encoders: impl IntoIterator<Item = wgpu::CommandEncoder>) {
        self.run.gpu.queue().submit(encoders.into_iter().map(wgpu::CommandEncoder::finish));
    }

    /// Runs those passes of the next step that are wanted.
    pub fn run_passes(&self, wanted: impl Fn(PassName) -> bool) {
        let mut encoder = self.run.encoder();
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            let dispatches = self.run.optimizer.dispatches().iter().filter(|dispatch| wanted(dispatch.pass));
            dispatches.for_each(|dispatch| dispatch.encode(&mut pass));
        }
        self.submit([encoder]);
    }

    /// What lies between the tensors is, bit for bit, what was put there.
    pub fn compare_surroundings(&self, outcome: &mut Outcome) -> Result<(), CliError> {
        for (buffer, words) in self.run.read_surroundings()?.iter().enumerate() {
            for (word, &found) in words.iter().enumerate() {
                let what = || format!("word {word} of buffer {buffer}, between tensors");
                outcome.same_bits(Path::Device, what, f32::from_bits(found), f32::from_bits(GUARD));
            }
        }
        Ok(())
    }
}
