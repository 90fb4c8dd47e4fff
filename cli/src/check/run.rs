//! The optimizer at work on either path, on tensors that a [`Spec`] states.

use std::sync::atomic::{AtomicU32, Ordering};

use wgpu_optim::gpu::{PassName, Tensor};
use wgpu_optim::layout::{GroupState, ScopeSums};
use wgpu_optim::{
    CombinedSums, CpuOptimizer, Element, Gpu, Optimizer, OptimizerBuilder, Record, Rule, ShardSums,
    cpu, wgpu,
};

use super::case::{Outcome, Path};
use crate::CliError;
use wgpu_optim_conformance::spec::{Place, Spec};
use wgpu_optim_conformance::stored::Stored;

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
#[derive(Debug, Clone, Copy)]
pub struct Told {
    /// The rank, and how many there are.
    pub rank: Option<(u32, u32)>,
    pub micro_batches: u32,
    /// Whether the device clears the gradients.
    pub clears: bool,
}

impl Told {
    fn tell<T>(self, builder: OptimizerBuilder<T>) -> OptimizerBuilder<T> {
        let builder = builder.micro_batches(self.micro_batches);
        match self.rank {
            Some((rank, ranks)) => builder.sharded(rank, ranks),
            None => builder,
        }
    }
}

impl Default for Told {
    fn default() -> Self {
        Told {
            rank: None,
            micro_batches: 1,
            clears: false,
        }
    }
}

/// The CPU path at work.
pub struct HostRun {
    optimizer: CpuOptimizer,
    parameters: Vec<Stored>,
    /// What the gradients are stored as.
    grads: Vec<Element>,
    groups: usize,
}

impl HostRun {
    pub fn new(specs: &[Spec], told: Told) -> Result<Self, CliError> {
        let mut builder: OptimizerBuilder<cpu::Tensor> =
            told.tell(OptimizerBuilder::new(Rule::sgd()));
        let mut parameters = Vec::new();
        for spec in specs {
            let mut group = spec.group();
            for (index, tensor) in spec.tensors.iter().enumerate() {
                let params = Stored::new(spec.params, tensor);
                let grads = Stored::new(spec.grads, tensor);
                group = group.tensor(spec.tensor_name(index), params.slice(), grads.slice());
                parameters.push(params);
            }
            builder = builder.group(group);
        }
        let optimizer = builder.build_cpu()?;
        Ok(HostRun {
            groups: optimizer.groups().len(),
            optimizer,
            parameters,
            grads: specs
                .iter()
                .flat_map(|spec| spec.tensors.iter().map(|_| spec.grads))
                .collect(),
        })
    }

    /// One step; gradients tensor by tensor.
    pub fn step(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<Vec<Record>, CliError> {
        let gradients = self.stored(gradients);
        let gradients: Vec<cpu::Slice> = gradients.iter().map(Stored::slice).collect();
        let mut parameters: Vec<cpu::SliceMut> =
            self.parameters.iter_mut().map(Stored::slice_mut).collect();
        self.optimizer
            .step_values_with_loss(&mut parameters, &gradients, loss)?;
        one_each(self.optimizer.drain_records().records, self.groups)
    }

    /// A rank's part of a step.
    pub fn measure(&mut self, gradients: &[Vec<f32>], loss: f32) -> Result<ShardSums, CliError> {
        let gradients = self.stored(gradients);
        let gradients: Vec<cpu::Slice> = gradients.iter().map(Stored::slice).collect();
        let parameters: Vec<cpu::Slice> = self.parameters.iter().map(Stored::slice).collect();
        let optimizer = &mut self.optimizer;
        Ok(optimizer.measure_values_with_loss(&parameters, &gradients, loss)?)
    }

    /// The step that was measured.
    pub fn apply(
        &mut self,
        gradients: &[Vec<f32>],
        combined: &CombinedSums,
    ) -> Result<Vec<Record>, CliError> {
        let gradients = self.stored(gradients);
        let gradients: Vec<cpu::Slice> = gradients.iter().map(Stored::slice).collect();
        let mut parameters: Vec<cpu::SliceMut> =
            self.parameters.iter_mut().map(Stored::slice_mut).collect();
        self.optimizer
            .apply_values(&mut parameters, &gradients, combined)?;
        one_each(self.optimizer.drain_records().records, self.groups)
    }

    /// The gradients as they are stored.
    fn stored(&self, gradients: &[Vec<f32>]) -> Vec<Stored> {
        let pairs = self.grads.iter().zip(gradients);
        pairs
            .map(|(&element, gradient)| Stored::new(element, gradient))
            .collect()
    }

    pub fn parameters(&self) -> Vec<Vec<f32>> {
        self.parameters.iter().map(Stored::values).collect()
    }

    /// Exchanges parameters and averages.
    pub fn swap_averages(&mut self) -> Result<(), CliError> {
        let mut parameters: Vec<cpu::SliceMut> =
            self.parameters.iter_mut().map(Stored::slice_mut).collect();
        Ok(self.optimizer.swap_averages_values(&mut parameters)?)
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
    tensors: Vec<Kind>,
    steps: usize,
}

/// A tensor's length, and what its parameters and gradients are stored as.
#[derive(Debug, Clone, Copy)]
struct Kind {
    len: usize,
    params: Element,
    grads: Element,
}

/// The bytes of a tensor's parameters or gradients in their buffer.
fn bytes_of(start: usize, len: usize, element: Element) -> std::ops::Range<usize> {
    let bytes = element.bytes() as usize;
    start * bytes..(start + len) * bytes
}

/// What surrounds the tensors: a NaN in every element.
const GUARD: u32 = 0x7fc1_7fc1;
const GUARD_BYTES: usize = 36;

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
        told: Told,
    ) -> Result<Self, CliError> {
        let tensors: Vec<Kind> = specs
            .iter()
            .flat_map(|spec| {
                spec.tensors.iter().map(|tensor| Kind {
                    len: tensor.len(),
                    params: spec.params,
                    grads: spec.grads,
                })
            })
            .collect();
        let spans = || {
            places.iter().zip(&tensors).flat_map(|(place, tensor)| {
                let range =
                    |(buffer, start), element| (buffer, bytes_of(start, tensor.len, element));
                [
                    range(place.params, tensor.params),
                    range(place.grads, tensor.grads),
                ]
            })
        };
        let count = spans().map(|(buffer, _)| buffer + 1).max();
        let mut contents: Vec<Vec<u8>> = (0..count.unwrap_or(0))
            .map(|buffer| {
                let own = spans().filter(|(b, _)| *b == buffer);
                let end = own.map(|(_, range)| range.end).max().unwrap_or(0);
                let words = (end + GUARD_BYTES).next_multiple_of(16) / 4;
                bytemuck::cast_slice(&vec![GUARD; words]).to_vec()
            })
            .collect();
        let values = specs.iter().flat_map(|spec| &spec.tensors);
        for ((place, tensor), values) in places.iter().zip(&tensors).zip(values) {
            let (buffer, start) = place.params;
            let range = bytes_of(start, tensor.len, tensor.params);
            contents[buffer][range].copy_from_slice(Stored::new(tensor.params, values).bytes());
        }
        let loss = filled(gpu, "loss", &[0; 64]);
        let buffers: Vec<wgpu::Buffer> = contents
            .iter()
            .map(|contents| filled(gpu, "parameters and gradients", contents))
            .collect();
        let mut builder: OptimizerBuilder<Tensor> = told
            .tell(OptimizerBuilder::new(Rule::sgd()))
            .clear_gradients(told.clears)
            .record_steps(RECORD_STEPS)
            .loss(loss.slice(LOSS_OFFSET..LOSS_OFFSET + 4));
        let mut next = places.iter();
        for spec in specs {
            let mut group = spec.group();
            for ((index, tensor), place) in spec.tensors.iter().enumerate().zip(&mut next) {
                let slice = |(buffer, start): (usize, usize), element: Element| {
                    let range = bytes_of(start, tensor.len(), element);
                    let buffer: &wgpu::Buffer = &buffers[buffer];
                    element.of(buffer.slice(range.start as u64..range.end as u64))
                };
                let name = spec.tensor_name(index);
                let params = slice(place.params, spec.params);
                group = group.tensor(name, params, slice(place.grads, spec.grads));
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
            tensors,
            steps: 0,
        })
    }

    /// Writes the loss and the gradients of the next step.
    pub fn write(&self, gradients: &[Vec<f32>], loss: f32) {
        let queue = self.gpu.queue();
        queue.write_buffer(&self.loss, LOSS_OFFSET, bytemuck::bytes_of(&loss));
        for ((place, tensor), gradient) in self.places.iter().zip(&self.tensors).zip(gradients) {
            let (buffer, start) = place.grads;
            let range = bytes_of(start, tensor.len, tensor.grads);
            let mut bytes = Stored::new(tensor.grads, gradient).bytes().to_vec();
            if !bytes.len().is_multiple_of(4) {
                // Writes are of whole words.
                bytes.extend_from_slice(&bytemuck::bytes_of(&GUARD)[2..]);
            }
            queue.write_buffer(&self.buffers[buffer], range.start as u64, &bytes);
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
        self.values(|place, tensor| (place.params, tensor.params))
    }

    /// What is where the gradients of the next step belong.
    pub fn gradients(&self) -> Result<Vec<Vec<f32>>, CliError> {
        self.values(|place, tensor| (place.grads, tensor.grads))
    }

    /// What every tensor has in one of its places, and is stored as there.
    fn values(
        &self,
        of: impl Fn(&Place, &Kind) -> ((usize, usize), Element),
    ) -> Result<Vec<Vec<f32>>, CliError> {
        let contents = self.contents()?;
        let tensors = self.places.iter().zip(&self.tensors);
        Ok(tensors
            .map(|(place, tensor)| {
                let ((buffer, start), element) = of(place, tensor);
                let range = bytes_of(start, tensor.len, element);
                Stored::from_bytes(element, &contents[buffer][range]).values()
            })
            .collect())
    }

    fn contents(&self) -> Result<Vec<Vec<u8>>, CliError> {
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
                .zip(&self.tensors)
                .filter(|(_, tensor)| tensor.len > Fault::ELEMENT)
            {
                sums.square.sum *= 1.0 + size;
            }
        }
        Ok(sums)
    }

    /// What lies between the tensors is, bit for bit, what was put there.
    pub fn compare_surroundings(&self, outcome: &mut Outcome) -> Result<(), CliError> {
        let mut contents = self.contents()?;
        for (place, tensor) in self.places.iter().zip(&self.tensors) {
            for ((buffer, start), element) in
                [(place.params, tensor.params), (place.grads, tensor.grads)]
            {
                let guard = bytemuck::bytes_of(&GUARD).iter().cycle();
                let own = &mut contents[buffer][bytes_of(start, tensor.len, element)];
                own.iter_mut()
                    .zip(guard)
                    .for_each(|(byte, &guard)| *byte = guard);
            }
        }
        for (buffer, contents) in contents.iter().enumerate() {
            let words: Vec<u32> = bytemuck::pod_collect_to_vec(contents);
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

fn filled(gpu: &Gpu, label: &str, contents: &[u8]) -> wgpu::Buffer {
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: contents.len() as u64,
        usage: wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    gpu.queue().write_buffer(&buffer, 0, contents);
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
