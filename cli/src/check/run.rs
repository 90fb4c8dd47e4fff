//! Runs of the package `wgpu-optim-conformance` for `check`: failures are errors, a step returns its records, and
//! values that are read from a device can be falsified.

use std::sync::atomic::{AtomicU32, Ordering};

use wgpu_optim::internals::PassName;
use wgpu_optim::internals::layout::ScopeSums;
use wgpu_optim::{CombinedSums, Record, ShardSums, wgpu};
use wgpu_optim_conformance::run::{CpuRun, GUARD, GpuRun, Run};

use super::case::{Outcome, Path, ulp};
use crate::CliError;

/// Fault in values that are read from the device, seeded to test that a family detects it: all numbers of one kind are
/// nearer to zero than they should be.
#[derive(Debug)]
pub struct Fault {
    pub kind: Quantity,
    /// Distance in units of the last place of each number.
    pub ulps: f64,
    /// True if the distance grows by the same amount with each reading, so that a comparison of the device with itself
    /// detects it too.
    pub grows: bool,
    reads: AtomicU32,
}

/// Quantity that can be falsified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Quantity {
    /// Alignments of a record, in units of the last place of 1.
    Alignments,
    /// Norms of a record.
    Norms,
    /// Parameters, and averages while they are swapped in.
    Parameters,
    /// Inner products and sums of magnitudes of passes 1 and 2.
    Products,
    /// Learning rates of a record.
    Rates,
    /// Sums of squares of passes 1 and 2.
    Squares,
}

impl Fault {
    pub fn new(kind: Quantity, ulps: f64, grows: bool) -> Self {
        Fault { kind, ulps, grows, reads: AtomicU32::new(0) }
    }

    /// Falsifies the numbers of one reading.
    fn plant<'x>(&self, numbers: impl IntoIterator<Item = &'x mut f32>) {
        let reads = self.reads.fetch_add(1, Ordering::Relaxed) + 1;
        let ulps = if self.grows { self.ulps * f64::from(reads) } else { self.ulps };
        // Zeros are not changed, because the device may have flushed them.
        for number in numbers.into_iter().filter(|number| **number != 0.0) {
            let exact = f64::from(*number);
            let unit = if self.kind == Quantity::Alignments { ulp(1.0) } else { ulp(exact) };
            *number = (exact - exact.signum() * ulps * unit) as f32;
        }
    }
}

/// Run on the CPU path or on a device.
pub struct PathRun<'a, R> {
    pub run: R,
    fault: Option<&'a Fault>,
}

pub type HostRun = PathRun<'static, CpuRun>;
pub type DeviceRun<'a> = PathRun<'a, GpuRun>;

impl<'a, R: Run> PathRun<'a, R> {
    pub fn new(run: R, fault: Option<&'a Fault>) -> Self {
        PathRun { run, fault }
    }

    /// Takes one step with gradients tensor by tensor.
    pub fn step(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<Vec<Record>, CliError> {
        self.run.set_loss(loss);
        self.run.try_step(gradients)?;
        self.records_of_step()
    }

    /// Takes a look at the last step.
    pub fn look(&mut self, gradients: &[Vec<f32>]) -> Result<(), CliError> {
        Ok(self.run.try_look(gradients)?)
    }

    /// Measures a rank's part of a step.
    pub fn measure(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<ShardSums, CliError> {
        self.run.set_loss(loss);
        Ok(self.run.try_measure(gradients)?)
    }

    /// Applies the step that was measured.
    pub fn apply(&mut self, gradients: &[Vec<f32>], combined: &CombinedSums) -> Result<Vec<Record>, CliError> {
        self.run.try_apply(gradients, combined)?;
        self.records_of_step()
    }

    /// Returns the records of one step, one per group.
    fn records_of_step(&mut self) -> Result<Vec<Record>, CliError> {
        let (mut records, groups) = (self.run.try_records()?.records, self.run.groups().len());
        if records.len() != groups {
            let message = format!("one step of {groups} groups left {} records", records.len());
            return Err(CliError::Failed(message));
        }
        if let Some(fault) = self.fault {
            fault.plant(records.iter_mut().flat_map(|record| match fault.kind {
                Quantity::Alignments => vec![&mut record.slow_alignment, &mut record.fast_alignment],
                Quantity::Norms => vec![&mut record.norm],
                Quantity::Rates => vec![&mut record.learning_rate],
                _ => Vec::new(),
            }));
        }
        Ok(records)
    }

    /// Returns the parameters, tensor by tensor.
    pub fn parameters(&self) -> Result<Vec<Vec<f32>>, CliError> {
        let mut parameters = self.run.try_params()?;
        if let Some(fault) = self.fault.filter(|fault| fault.kind == Quantity::Parameters) {
            fault.plant(parameters.iter_mut().flatten());
        }
        Ok(parameters)
    }

    /// Returns the sums of the last step, scope by scope.
    pub fn sums(&self) -> Result<Vec<ScopeSums>, CliError> {
        let mut sums = self.run.try_sums()?;
        if let Some(fault) = self.fault {
            fault.plant(sums.iter_mut().flat_map(|sums| match fault.kind {
                Quantity::Products => {
                    vec![&mut sums.slow_dot, &mut sums.fast_dot, &mut sums.absolute, &mut sums.direction_square]
                }
                Quantity::Squares => vec![&mut sums.square.sum, &mut sums.raw_square.sum],
                _ => Vec::new(),
            }));
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

    pub fn submit(&self, encoders: impl IntoIterator<Item = wgpu::CommandEncoder>) {
        self.run.gpu.queue().submit(encoders.into_iter().map(wgpu::CommandEncoder::finish));
    }

    /// Runs the selected passes of the next step.
    pub fn run_passes(&self, wanted: impl Fn(PassName) -> bool) {
        let mut encoder = self.run.encoder();
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            let dispatches = self.run.optimizer.dispatches().iter().filter(|dispatch| wanted(dispatch.pass));
            dispatches.for_each(|dispatch| dispatch.encode(&mut pass));
        }
        self.submit([encoder]);
    }

    /// Checks that the bytes between the tensors are unchanged.
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
