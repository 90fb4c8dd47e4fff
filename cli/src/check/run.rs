//! The runs of the package `wgpu-optim-conformance`, as `check` wants them: what fails is an error, a step's records come with it, and what comes back from
//! a device can be falsified.

use std::sync::atomic::{AtomicU32, Ordering};

use wgpu_optim::gpu::PassName;
use wgpu_optim::layout::{GroupState, ScopeSums};
use wgpu_optim::{CombinedSums, Gpu, Optimizer, Record, ShardSums, wgpu};
use wgpu_optim_conformance::run::{CpuRun, GUARD, GpuRun, Run, Setup};
use wgpu_optim_conformance::spec::{Place, Spec, lengths};

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
    pub const ELEMENT: usize = 17;
    pub const STEP: usize = 3;

    fn size(&self) -> f32 {
        let reads = self.reads.fetch_add(1, Ordering::Relaxed);
        // As large as the largest tensors' ordinary values, so that it shows beside those of any size below.
        0.01 * (reads + 1) as f32
    }
}

/// What the builder is told beside its groups.
#[derive(Debug, Clone, Copy, Default)]
pub struct Told {
    pub setup: Setup,
    /// Whether the device clears the gradients.
    pub clears: bool,
}

/// The CPU path at work.
pub struct HostRun {
    run: CpuRun,
    groups: usize,
}

impl HostRun {
    pub fn new(specs: &[Spec], told: Told) -> Result<Self, CliError> {
        let run = CpuRun::try_with(specs, told.setup)?;
        Ok(HostRun { groups: run.optimizer.groups().len(), run })
    }

    /// One step; gradients tensor by tensor.
    pub fn step(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<Vec<Record>, CliError> {
        self.run.set_loss(loss);
        self.run.try_step(gradients)?;
        one_each(self.run.try_records()?.records, self.groups)
    }

    /// A rank's part of a step.
    pub fn measure(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<ShardSums, CliError> {
        self.run.set_loss(loss);
        Ok(self.run.try_measure(gradients)?)
    }

    /// The step that was measured.
    pub fn apply(&mut self, gradients: &[Vec<f32>], combined: &CombinedSums) -> Result<Vec<Record>, CliError> {
        self.run.try_apply(gradients, combined)?;
        one_each(self.run.try_records()?.records, self.groups)
    }

    pub fn parameters(&self) -> Vec<Vec<f32>> {
        self.run.params()
    }

    /// Exchanges parameters and averages.
    pub fn swap_averages(&mut self) -> Result<(), CliError> {
        Ok(self.run.try_swap_averages()?)
    }

    pub fn states(&self) -> &[GroupState] {
        self.run.optimizer.states()
    }

    pub fn sums(&self) -> &[ScopeSums] {
        self.run.optimizer.sums()
    }
}

/// The device at work.
pub struct DeviceRun<'a> {
    run: GpuRun,
    fault: Option<&'a Fault>,
    /// The length of every tensor.
    lengths: Vec<usize>,
    steps: usize,
}

/// Steps that the record ring holds: they are drained after each.
const RECORD_STEPS: u32 = 16;

impl<'a> DeviceRun<'a> {
    pub fn new(
        gpu: &Gpu,
        fault: Option<&'a Fault>,
        specs: &[Spec],
        places: Vec<Place>,
        told: Told,
    ) -> Result<Self, CliError> {
        let run = GpuRun::try_with_room(gpu, specs, places, &[], |builder| {
            told.setup.tell(builder).clear_gradients(told.clears).record_steps(RECORD_STEPS)
        })?;
        Ok(DeviceRun { run, fault, lengths: lengths(specs).collect(), steps: 0 })
    }

    /// The optimizer, for steps that are recorded by other means than [`DeviceRun::step`].
    pub fn optimizer(&self) -> &Optimizer {
        &self.run.optimizer
    }

    /// Writes the loss and the gradients of the next step.
    pub fn write(&mut self, gradients: &[Vec<f32>], loss: f32) {
        self.run.set_loss(loss);
        self.run.write_grads(gradients);
    }

    pub fn encoder(&self) -> wgpu::CommandEncoder {
        self.run.encoder()
    }

    pub fn submit(&self, encoders: impl IntoIterator<Item = wgpu::CommandEncoder>) {
        let commands = encoders.into_iter().map(wgpu::CommandEncoder::finish);
        self.run.gpu.queue().submit(commands);
    }

    /// Writes, records and submits one step.
    pub fn step(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<Vec<Record>, CliError> {
        self.run.set_loss(loss);
        self.run.try_step(gradients)?;
        self.count(1);
        one_each(self.records()?, self.run.optimizer.groups().len())
    }

    /// Writes, records, submits and reads back a rank's part of a step.
    pub fn measure(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<ShardSums, CliError> {
        self.run.set_loss(loss);
        Ok(self.run.try_measure(gradients)?)
    }

    /// Records and submits the step that was measured.
    pub fn apply(&mut self, combined: &CombinedSums) -> Result<Vec<Record>, CliError> {
        self.run.try_apply(&[], combined)?;
        self.count(1);
        one_each(self.records()?, self.run.optimizer.groups().len())
    }

    /// Tells of steps that were recorded by other means than [`DeviceRun::step`].
    pub fn count(&mut self, steps: usize) {
        self.steps += steps;
    }

    /// Runs those passes of the next step that are wanted.
    pub fn run_passes(&self, wanted: impl Fn(PassName) -> bool) {
        let mut encoder = self.encoder();
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for dispatch in self.run.optimizer.dispatches() {
                if wanted(dispatch.pass) {
                    dispatch.encode(&mut pass);
                }
            }
        }
        self.submit([encoder]);
    }

    /// Exchanges parameters and averages.
    pub fn swap_averages(&mut self) -> Result<(), CliError> {
        Ok(self.run.try_swap_averages()?)
    }

    /// The records of the steps since the last call.
    pub fn records(&mut self) -> Result<Vec<Record>, CliError> {
        Ok(self.run.try_records()?.records)
    }

    /// The parameters, tensor by tensor.
    pub fn parameters(&self) -> Result<Vec<Vec<f32>>, CliError> {
        let mut parameters = self.true_parameters()?;
        if let (Some(fault), true) = (self.fault, self.steps >= Fault::STEP) {
            let elements = parameters.iter_mut().flat_map(|p| p.get_mut(Fault::ELEMENT));
            let size = fault.size();
            elements.for_each(|w| *w += w.abs().max(1.0) * size);
        }
        Ok(parameters)
    }

    /// The same without a seeded fault: what the device goes on with.
    pub fn true_parameters(&self) -> Result<Vec<Vec<f32>>, CliError> {
        Ok(self.run.read_params()?)
    }

    /// What is where the gradients of the next step belong.
    pub fn gradients(&self) -> Result<Vec<Vec<f32>>, CliError> {
        Ok(self.run.read_grads()?)
    }

    /// The bits of every learning rate.
    pub fn rates(&self) -> Result<Vec<f32>, CliError> {
        Ok(self.run.read_rates()?)
    }

    pub fn states(&self) -> Result<Vec<GroupState>, CliError> {
        let mut states = pollster::block_on(self.run.optimizer.read_states())?;
        states.truncate(self.run.optimizer.groups().len());
        Ok(states)
    }

    pub fn sums(&self) -> Result<Vec<ScopeSums>, CliError> {
        let mut sums = self.run.read_sums()?;
        if let (Some(fault), true) = (self.fault, self.steps >= Fault::STEP) {
            let size = fault.size();
            for (sums, _) in sums.iter_mut().zip(&self.lengths).filter(|(_, length)| **length > Fault::ELEMENT) {
                sums.square.sum *= 1.0 + size;
            }
        }
        Ok(sums)
    }

    /// What lies between the tensors is, bit for bit, what was put there.
    pub fn compare_surroundings(&self, outcome: &mut Outcome) -> Result<(), CliError> {
        for (buffer, words) in self.run.read_surroundings()?.iter().enumerate() {
            for (word, &found) in words.iter().enumerate() {
                outcome.same_bits(
                    Path::Device,
                    || format!("word {word} of buffer {buffer}, between tensors"),
                    f32::from_bits(found),
                    f32::from_bits(GUARD),
                );
            }
        }
        Ok(())
    }
}

/// The records of one step: one per group.
fn one_each(records: Vec<Record>, groups: usize) -> Result<Vec<Record>, CliError> {
    if records.len() == groups {
        return Ok(records);
    }
    Err(wgpu_optim::Error::Readback {
        what: "records",
        message: format!("one step of {groups} groups left {} records", records.len()),
    }
    .into())
}
