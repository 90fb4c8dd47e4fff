//! The optimizer at work on either path, on tensors that a [`Spec`] states.

use std::sync::atomic::{AtomicU32, Ordering};

use wgpu_optim::gpu::{PassName, Tensor};
use wgpu_optim::layout::{GroupState, ScopeSums};
use wgpu_optim::{
    CombinedSums, CpuOptimizer, Gpu, Optimizer, OptimizerBuilder, Record, Rule, ShardSums,
    StepMode, cpu, wgpu,
};

use super::case::{Outcome, Path};
use super::spec::{Place, Spec, lengths};
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

/// The CPU path at work.
pub struct HostRun {
    optimizer: CpuOptimizer,
    parameters: Vec<Vec<f32>>,
    groups: usize,
}

impl HostRun {
    pub fn new(specs: &[Spec], mode: StepMode) -> Result<Self, CliError> {
        Self::of_rank(specs, mode, None)
    }

    /// With what one of several ranks has; `rank` is its number, and how many there are.
    pub fn of_rank(
        specs: &[Spec],
        mode: StepMode,
        rank: Option<(u32, u32)>,
    ) -> Result<Self, CliError> {
        let mut builder: OptimizerBuilder<cpu::Tensor> =
            OptimizerBuilder::new(Rule::sgd()).step_mode(mode);
        if let Some((rank, ranks)) = rank {
            builder = builder.sharded(rank, ranks);
        }
        for spec in specs {
            let mut group = spec.group();
            for (index, tensor) in spec.tensors.iter().enumerate() {
                group = group.tensor(spec.tensor_name(index), tensor, tensor);
            }
            builder = builder.group(group);
        }
        let optimizer = builder.build_cpu()?;
        Ok(HostRun {
            groups: optimizer.groups().len(),
            optimizer,
            parameters: specs.iter().flat_map(|spec| spec.tensors.clone()).collect(),
        })
    }

    /// One step; gradients tensor by tensor.
    pub fn step(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<Vec<Record>, CliError> {
        let mut parameters: Vec<&mut [f32]> =
            self.parameters.iter_mut().map(Vec::as_mut_slice).collect();
        if self.optimizer.step_mode() == StepMode::Lagged {
            let mut gradients = gradients.to_vec();
            let mut gradients: Vec<&mut [f32]> =
                gradients.iter_mut().map(Vec::as_mut_slice).collect();
            self.optimizer
                .step_lagged(&mut parameters, &mut gradients)?;
            self.parameters = parameters.iter().map(|tensor| tensor.to_vec()).collect();
        } else {
            let gradients: Vec<&[f32]> = gradients.iter().map(Vec::as_slice).collect();
            self.optimizer
                .step_with_loss(&mut parameters, &gradients, loss)?;
        }
        one_each(self.optimizer.drain_records().records, self.groups)
    }

    /// A rank's part of a step.
    pub fn measure(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<ShardSums, CliError> {
        let parameters = &self.parameters;
        let measured = self
            .optimizer
            .measure_with_loss(parameters, gradients, loss);
        Ok(measured?)
    }

    /// The step that was measured.
    pub fn apply(
        &mut self,
        gradients: &[Vec<f32>],
        combined: &CombinedSums,
    ) -> Result<Vec<Record>, CliError> {
        let mut parameters: Vec<&mut [f32]> =
            self.parameters.iter_mut().map(Vec::as_mut_slice).collect();
        let gradients: Vec<&[f32]> = gradients.iter().map(Vec::as_slice).collect();
        self.optimizer
            .apply(&mut parameters, &gradients, combined)?;
        one_each(self.optimizer.drain_records().records, self.groups)
    }

    pub fn parameters(&self) -> &[Vec<f32>] {
        &self.parameters
    }

    /// Exchanges parameters and averages.
    pub fn swap_averages(&mut self) -> Result<(), CliError> {
        let mut parameters: Vec<&mut [f32]> =
            self.parameters.iter_mut().map(Vec::as_mut_slice).collect();
        Ok(self.optimizer.swap_averages(&mut parameters)?)
    }

    pub fn states(&self) -> &[GroupState] {
        self.optimizer.states()
    }

    pub fn sums(&self) -> &[ScopeSums] {
        self.optimizer.sums()
    }
}

/// The device at work. What lies between the tensors in their buffers is a NaN, so that a kernel that reads it skips the step.
pub struct DeviceRun<'a> {
    gpu: Gpu,
    fault: Option<&'a Fault>,
    pub optimizer: Optimizer,
    buffers: Vec<wgpu::Buffer>,
    loss: wgpu::Buffer,
    places: Vec<Place>,
    lengths: Vec<usize>,
    steps: usize,
}

/// What surrounds the tensors.
const GUARD: u32 = 0x7fc0_beef;
const GUARD_ELEMENTS: usize = 9;

/// Where in its buffer the loss is: not where a binding may start.
const LOSS_OFFSET: u64 = 36;

/// Steps that the record ring holds: they are drained after each.
const RECORD_STEPS: u32 = 16;

impl<'a> DeviceRun<'a> {
    pub fn new(
        gpu: &Gpu,
        fault: Option<&'a Fault>,
        specs: &[Spec],
        places: Vec<Place>,
        mode: StepMode,
        rank: Option<(u32, u32)>,
    ) -> Result<Self, CliError> {
        let lengths: Vec<usize> = lengths(specs).collect();
        let spans = || {
            places
                .iter()
                .zip(&lengths)
                .flat_map(|(place, &len)| [(place.params, len), (place.grads, len)])
        };
        let count = spans().map(|((buffer, _), _)| buffer + 1).max();
        let mut contents: Vec<Vec<f32>> = (0..count.unwrap_or(0))
            .map(|buffer| {
                let end = spans()
                    .filter(|((b, _), _)| *b == buffer)
                    .map(|((_, start), len)| start + len)
                    .max()
                    .unwrap_or(0);
                vec![f32::from_bits(GUARD); (end + GUARD_ELEMENTS).next_multiple_of(4)]
            })
            .collect();
        let tensors = specs.iter().flat_map(|spec| &spec.tensors);
        for (place, tensor) in places.iter().zip(tensors) {
            let (buffer, start) = place.params;
            contents[buffer][start..][..tensor.len()].copy_from_slice(tensor);
        }
        let loss = filled(gpu, "loss", &[0.0; 16]);
        let buffers: Vec<wgpu::Buffer> = contents
            .iter()
            .map(|contents| filled(gpu, "parameters and gradients", contents))
            .collect();
        let mut builder: OptimizerBuilder<Tensor> = OptimizerBuilder::new(Rule::sgd())
            .step_mode(mode)
            .record_steps(RECORD_STEPS)
            .loss(loss.slice(LOSS_OFFSET..LOSS_OFFSET + 4));
        if let Some((rank, ranks)) = rank {
            builder = builder.sharded(rank, ranks);
        }
        let mut next = places.iter();
        for spec in specs {
            let mut group = spec.group();
            for ((index, tensor), place) in spec.tensors.iter().enumerate().zip(&mut next) {
                let slice = |(buffer, start): (usize, usize)| {
                    let start = 4 * start as u64;
                    buffers[buffer].slice(start..start + 4 * tensor.len() as u64)
                };
                let name = spec.tensor_name(index);
                group = group.tensor(name, slice(place.params), slice(place.grads));
            }
            builder = builder.group(group);
        }
        Ok(DeviceRun {
            gpu: gpu.clone(),
            fault,
            optimizer: builder.build(gpu)?,
            buffers,
            loss,
            places,
            lengths,
            steps: 0,
        })
    }

    /// Where the tensors lie now: a lagged step exchanges parameters and gradients.
    fn places(&self) -> Vec<Place> {
        let swapped = self.optimizer.roles_are_swapped();
        let now = |place: &Place| match swapped {
            false => *place,
            true => Place {
                params: place.grads,
                grads: place.params,
            },
        };
        self.places.iter().map(now).collect()
    }

    /// Writes the loss and the gradients of the next step.
    pub fn write(&self, gradients: &[Vec<f32>], loss: f32) {
        let queue = self.gpu.queue();
        queue.write_buffer(&self.loss, LOSS_OFFSET, bytemuck::bytes_of(&loss));
        for (place, gradient) in self.places().iter().zip(gradients) {
            let (buffer, start) = place.grads;
            queue.write_buffer(
                &self.buffers[buffer],
                4 * start as u64,
                bytemuck::cast_slice(gradient),
            );
        }
    }

    pub fn encoder(&self) -> wgpu::CommandEncoder {
        self.gpu
            .device()
            .create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    pub fn submit(&self, encoders: impl IntoIterator<Item = wgpu::CommandEncoder>) {
        let commands = encoders.into_iter().map(wgpu::CommandEncoder::finish);
        self.gpu.queue().submit(commands);
    }

    /// Writes, records and submits one step.
    pub fn step(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<Vec<Record>, CliError> {
        self.write(gradients, loss);
        let mut encoder = self.encoder();
        self.optimizer.encode_step(&mut encoder)?;
        self.submit([encoder]);
        self.count(1);
        one_each(self.records()?, self.optimizer.groups().len())
    }

    /// Writes, records, submits and reads back a rank's part of a step.
    pub fn measure(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<ShardSums, CliError> {
        self.write(gradients, loss);
        let mut encoder = self.encoder();
        self.optimizer.encode_measure(&mut encoder)?;
        self.submit([encoder]);
        Ok(pollster::block_on(self.optimizer.read_shard_sums())?)
    }

    /// Records and submits the step that was measured.
    pub fn apply(&mut self, combined: &CombinedSums) -> Result<Vec<Record>, CliError> {
        let mut encoder = self.encoder();
        self.optimizer.encode_apply(&mut encoder, combined)?;
        self.submit([encoder]);
        self.count(1);
        one_each(self.records()?, self.optimizer.groups().len())
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
            for dispatch in self.optimizer.dispatches() {
                if wanted(dispatch.pass) {
                    dispatch.encode(&mut pass);
                }
            }
        }
        self.submit([encoder]);
    }

    /// Exchanges parameters and averages.
    pub fn swap_averages(&self) -> Result<(), CliError> {
        let mut encoder = self.encoder();
        self.optimizer.encode_swap_averages(&mut encoder)?;
        self.submit([encoder]);
        Ok(())
    }

    /// The records of the steps since the last call.
    pub fn records(&mut self) -> Result<Vec<Record>, CliError> {
        Ok(pollster::block_on(self.optimizer.drain_records())?.records)
    }

    /// The parameters, tensor by tensor.
    pub fn parameters(&self) -> Result<Vec<Vec<f32>>, CliError> {
        let mut parameters = self.true_parameters()?;
        if let (Some(fault), true) = (self.fault, self.steps >= Fault::STEP) {
            let elements = parameters
                .iter_mut()
                .flat_map(|p| p.get_mut(Fault::ELEMENT));
            let size = fault.size();
            elements.for_each(|w| *w += w.abs().max(1.0) * size);
        }
        Ok(parameters)
    }

    /// The same without a seeded fault: what the device goes on with.
    pub fn true_parameters(&self) -> Result<Vec<Vec<f32>>, CliError> {
        let contents = self.contents()?;
        let tensors = self.places().into_iter().zip(&self.lengths);
        Ok(tensors
            .map(|(place, &len)| contents[place.params.0][place.params.1..][..len].to_vec())
            .collect())
    }

    fn contents(&self) -> Result<Vec<Vec<f32>>, CliError> {
        self.buffers
            .iter()
            .map(|buffer| Ok(pollster::block_on(self.gpu.read_buffer("tensors", buffer))?))
            .collect()
    }

    /// The bits of every learning rate.
    pub fn rates(&self) -> Result<Vec<f32>, CliError> {
        let mut rates: Vec<f32> = pollster::block_on(
            self.gpu
                .read_buffer("learning rates", self.optimizer.learning_rates()),
        )?;
        // The buffer is padded to 16 bytes.
        rates.truncate(self.optimizer.groups().len());
        Ok(rates)
    }

    pub fn states(&self) -> Result<Vec<GroupState>, CliError> {
        let mut states = pollster::block_on(self.optimizer.read_states())?;
        states.truncate(self.optimizer.groups().len());
        Ok(states)
    }

    pub fn sums(&self) -> Result<Vec<ScopeSums>, CliError> {
        let mut sums = pollster::block_on(self.optimizer.read_sums())?;
        if let (Some(fault), true) = (self.fault, self.steps >= Fault::STEP) {
            let size = fault.size();
            for (sums, _) in sums
                .iter_mut()
                .zip(&self.lengths)
                .filter(|(_, len)| **len > Fault::ELEMENT)
            {
                sums.square.sum *= 1.0 + size;
            }
        }
        Ok(sums)
    }

    /// What lies between the tensors is, bit for bit, what was put there.
    pub fn compare_surroundings(&self, outcome: &mut Outcome) -> Result<(), CliError> {
        let mut contents = self.contents()?;
        for (place, &len) in self.places.iter().zip(&self.lengths) {
            for (buffer, start) in [place.params, place.grads] {
                contents[buffer][start..][..len].fill(f32::from_bits(GUARD));
            }
        }
        for (buffer, contents) in contents.iter().enumerate() {
            for (element, &found) in contents.iter().enumerate() {
                outcome.same_bits(
                    Path::Device,
                    || format!("element {element} of buffer {buffer}, between tensors"),
                    found,
                    f32::from_bits(GUARD),
                );
            }
        }
        Ok(())
    }
}

fn filled(gpu: &Gpu, label: &str, contents: &[f32]) -> wgpu::Buffer {
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: 4 * contents.len() as u64,
        usage: wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    gpu.queue()
        .write_buffer(&buffer, 0, bytemuck::cast_slice(contents));
    buffer
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
