//! A case is stated once and run on the CPU path and on every adapter: groups with their settings and initial parameters, then
//! gradients step by step.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use crate::spec::{Place, Spec, lengths, packed, separate};
use crate::stored::Stored;
use crate::{adapters, download, kinds_of_partials, upload};
use wgpu_optim::cpu::{Values, ValuesMut};
use wgpu_optim::gpu::Tuning;
use wgpu_optim::internals::layout::{GroupState, ScopeSums};
use wgpu_optim::{
    Averaging, Checkpoint, CombinedSums, CpuOptimizer, Element, Error, Gpu, GroupConfig, Notes, Optimizer,
    OptimizerBuilder, Parameters, ShardSums, cpu,
};
use wgpu_optim::{LossScaler, NonFinitePolicy, Records, Rule, wgpu};

/// Every adapter, opened once for a test: opening a device costs more than most tests.
pub fn devices() -> Vec<Gpu> {
    thread_local! {
        static DEVICES: Vec<Gpu> = adapters();
    }
    DEVICES.with(Clone::clone)
}

/// To be held by each test of a binary where one must not be disturbed by another: because it compiles hundreds of kernels, where wgpu's
/// OpenGL device gives up on its context if another thread does that, or because it measures the process.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What surrounds tensors in their buffers: a NaN in every element, so that a kernel that reads it would skip the step.
pub const GUARD: u32 = 0x7fc1_7fc1;
const GUARD_ELEMENTS: usize = 9;

/// Where in its buffer a device's loss is: not where a binding may start.
const LOSS_BYTE: u64 = 36;

/// What the builder of either path is told beside its groups.
#[derive(Debug, Clone, Copy, Default)]
pub struct Setup {
    /// What to do about gradients that are not finite.
    pub policy: NonFinitePolicy,
    /// The loss scaler, if any.
    pub scaler: Option<LossScaler>,
    /// Steps that the record ring holds, if not the usual number.
    pub record_steps: Option<u32>,
    /// The rank, and how many there are.
    pub shard: Option<(u32, u32)>,
    /// Gradients that are added up in one; 1 without.
    pub micro_batches: Option<u32>,
}

impl Setup {
    /// Tells a builder.
    pub fn tell<T>(self, builder: OptimizerBuilder<T>) -> OptimizerBuilder<T> {
        let mut builder = builder.nonfinite_policy(self.policy);
        if let Some(scaler) = self.scaler {
            builder = builder.loss_scaler(scaler);
        }
        if let Some((rank, ranks)) = self.shard {
            builder = builder.sharded(rank, ranks);
        }
        if let Some(micro_batches) = self.micro_batches {
            builder = builder.micro_batches(micro_batches);
        }
        match self.record_steps {
            Some(steps) => builder.record_steps(steps),
            None => builder,
        }
    }
}

/// A tensor's length, and what its parameters and gradients are stored as.
#[derive(Debug, Clone, Copy)]
struct Kind {
    len: usize,
    params: Element,
    grads: Element,
}

fn kinds(specs: &[Spec]) -> Vec<Kind> {
    let kinds = specs.iter().flat_map(|spec| {
        spec.tensors.iter().map(|tensor| Kind { len: tensor.len(), params: spec.params, grads: spec.grads })
    });
    kinds.collect()
}

/// An optimizer at work on either path. Parameters and gradients are handed over in f32, whatever they are stored as.
pub trait Run {
    /// The name of the path, for messages.
    fn path(&self) -> String;
    /// The loss of the steps to come; 1 without.
    fn set_loss(&mut self, loss: f32);
    /// One step; gradients tensor by tensor. On the device it does not tell of a halt, which the next records do.
    fn try_step(&mut self, grads: &[Vec<f32>]) -> Result<(), Error>;
    /// As [`Run::try_step`], where nothing may fail.
    fn step(&mut self, grads: &[Vec<f32>]) {
        self.try_step(grads).expect("steps");
    }
    /// This rank's part of a step of several.
    fn try_measure(&mut self, grads: &[Vec<f32>]) -> Result<ShardSums, Error>;
    /// As [`Run::try_measure`], where nothing may fail.
    fn measure(&mut self, grads: &[Vec<f32>]) -> ShardSums {
        self.try_measure(grads).expect("measures")
    }
    /// The step that was measured.
    fn try_apply(&mut self, grads: &[Vec<f32>], combined: &CombinedSums) -> Result<(), Error>;
    /// The parameters, tensor by tensor.
    fn params(&self) -> Vec<Vec<f32>>;
    /// The average of every tensor; its parameters where there is none, or none yet.
    fn averages(&self) -> Vec<Vec<f32>>;
    /// Exchanges parameters and averages.
    fn try_swap_averages(&mut self) -> Result<(), Error>;
    /// As [`Run::try_swap_averages`], where nothing may fail.
    fn swap_averages(&mut self) {
        self.try_swap_averages().expect("swaps");
    }
    /// On the host no drain is an error.
    fn try_records(&mut self) -> Result<Records, Error>;
    /// As [`Run::try_records`], where nothing may fail.
    fn records(&mut self) -> Records {
        self.try_records().expect("records arrive")
    }
    /// Goes on after a halt.
    fn resume(&mut self);
    /// The scale that the next loss is to be multiplied by.
    fn loss_scale(&self) -> f32;
    /// The learning rates, group by group.
    fn rates(&self) -> Vec<f32>;
    /// The states, group by group.
    fn states(&self) -> Vec<GroupState>;
    /// What the last step measured, scope by scope.
    fn sums(&self) -> Vec<ScopeSums>;
    /// The groups, as they are used.
    fn groups(&self) -> Vec<GroupConfig>;
    /// With the parameters.
    fn checkpoint(&self) -> Checkpoint;
    /// The parameters too.
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), Error>;
}

/// The CPU path at work.
pub struct CpuRun {
    /// The optimizer, for what is its own.
    pub optimizer: CpuOptimizer,
    loss: f32,
    params: Vec<Stored>,
    kinds: Vec<Kind>,
}

impl CpuRun {
    /// A case on the CPU path.
    pub fn new(specs: &[Spec]) -> Self {
        Self::with(specs, Setup::default())
    }

    /// As `new`, with what the builder itself is told.
    pub fn with(specs: &[Spec], setup: Setup) -> Self {
        Self::try_with(specs, setup).expect("builds")
    }

    /// As `with`.
    ///
    /// # Errors
    /// What the builder refuses.
    pub fn try_with(specs: &[Spec], setup: Setup) -> Result<Self, Error> {
        let mut builder: OptimizerBuilder<cpu::Tensor> = setup.tell(OptimizerBuilder::new(Rule::sgd()));
        let mut params = Vec::new();
        for spec in specs {
            let mut group = spec.group();
            for (i, tensor) in spec.tensors.iter().enumerate() {
                let stored = Stored::new(spec.params, tensor);
                let grads = Stored::new(spec.grads, tensor);
                group = group.tensor(spec.tensor_name(i), stored.slice(), grads.slice());
                params.push(stored);
            }
            builder = builder.group(group);
        }
        Ok(CpuRun { optimizer: builder.build_cpu()?, loss: 1.0, params, kinds: kinds(specs) })
    }

    fn stored(&self, grads: &[Vec<f32>]) -> Vec<Stored> {
        assert_eq!(grads.len(), self.kinds.len());
        let pairs = self.kinds.iter().zip(grads);
        pairs.map(|(kind, grads)| Stored::new(kind.grads, grads)).collect()
    }
}

fn slices(tensors: &[Stored]) -> Vec<&dyn Values> {
    tensors.iter().map(Stored::slice).collect()
}

fn slices_mut(tensors: &mut [Stored]) -> Vec<&mut dyn ValuesMut> {
    tensors.iter_mut().map(Stored::slice_mut).collect()
}

impl Run for CpuRun {
    fn path(&self) -> String {
        "CPU path".to_owned()
    }
    fn set_loss(&mut self, loss: f32) {
        self.loss = loss;
    }
    fn try_step(&mut self, grads: &[Vec<f32>]) -> Result<(), Error> {
        let grads = self.stored(grads);
        self.optimizer.step_with_loss(&mut slices_mut(&mut self.params), &slices(&grads), self.loss)
    }
    fn try_measure(&mut self, grads: &[Vec<f32>]) -> Result<ShardSums, Error> {
        let grads = self.stored(grads);
        self.optimizer.measure_with_loss(&slices(&self.params), &slices(&grads), self.loss)
    }
    fn try_apply(&mut self, grads: &[Vec<f32>], combined: &CombinedSums) -> Result<(), Error> {
        let grads = self.stored(grads);
        self.optimizer.apply(&mut slices_mut(&mut self.params), &slices(&grads), combined)
    }

    fn params(&self) -> Vec<Vec<f32>> {
        self.params.iter().map(Stored::values).collect()
    }
    fn averages(&self) -> Vec<Vec<f32>> {
        let tensors = self.params.iter().enumerate();
        tensors
            .map(|(tensor, params)| {
                // Of 16 bits the masters, where there is an average.
                let mut averages = params.values();
                let copied = self.optimizer.copy_averages(tensor, params.slice(), &mut averages);
                let group = self.optimizer.tensors()[tensor].group;
                let kept = self.optimizer.groups()[group].averaging != Averaging::Off;
                assert!(copied.is_ok() || !kept, "{copied:?}");
                averages
            })
            .collect()
    }
    fn try_swap_averages(&mut self) -> Result<(), Error> {
        self.optimizer.swap_averages(&mut slices_mut(&mut self.params))
    }
    fn try_records(&mut self) -> Result<Records, Error> {
        Ok(self.optimizer.drain_records())
    }
    fn resume(&mut self) {
        self.optimizer.resume();
    }
    fn loss_scale(&self) -> f32 {
        self.optimizer.loss_scale()
    }
    fn rates(&self) -> Vec<f32> {
        self.optimizer.learning_rates().to_vec()
    }
    fn states(&self) -> Vec<GroupState> {
        self.optimizer.states().to_vec()
    }
    fn sums(&self) -> Vec<ScopeSums> {
        self.optimizer.sums().to_vec()
    }
    fn groups(&self) -> Vec<GroupConfig> {
        self.optimizer.groups().to_vec()
    }
    fn checkpoint(&self) -> Checkpoint {
        self.optimizer.checkpoint(Some(&slices(&self.params)), &Notes::new()).expect("a checkpoint")
    }
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), Error> {
        self.optimizer.restore(checkpoint, Some(&mut slices_mut(&mut self.params)))
    }
}

/// A device at work.
pub struct GpuRun {
    /// The device.
    pub gpu: Gpu,
    /// The optimizer, for what is its own.
    pub optimizer: Optimizer,
    /// The buffers that the tensors lie in.
    pub buffers: Vec<wgpu::Buffer>,
    loss: wgpu::Buffer,
    /// What the buffers should hold, but for the parameters.
    host: Vec<Vec<u8>>,
    places: Vec<Place>,
    kinds: Vec<Kind>,
}

/// The bytes of a tensor's parameters or gradients in their buffer.
fn bytes_of(start: usize, len: usize, element: Element) -> std::ops::Range<usize> {
    let bytes = element.bytes() as usize;
    start * bytes..(start + len) * bytes
}

/// A part of a buffer, as a tensor's parameters or gradients.
fn slice_of(
    buffers: &[wgpu::Buffer],
    (buffer, start): (usize, usize),
    len: usize,
    element: Element,
) -> wgpu_optim::gpu::ElementSlice<'_> {
    let bytes = bytes_of(start, len, element);
    element.of(buffers[buffer].slice(bytes.start as u64..bytes.end as u64))
}

impl GpuRun {
    /// A case on a device, with its tensors in these places.
    pub fn new(gpu: &Gpu, specs: &[Spec], places: Vec<Place>) -> Self {
        Self::with(gpu, specs, places, |builder| builder)
    }

    /// As `new`, with what the builder itself is told.
    pub fn with(
        gpu: &Gpu,
        specs: &[Spec],
        places: Vec<Place>,
        settings: impl FnOnce(OptimizerBuilder<wgpu_optim::gpu::Tensor>) -> OptimizerBuilder<wgpu_optim::gpu::Tensor>,
    ) -> Self {
        Self::with_room(gpu, specs, places, &[], settings)
    }

    /// As `with`, in buffers of at least so many elements: there may be more of them than the places need.
    pub fn with_room(
        gpu: &Gpu,
        specs: &[Spec],
        places: Vec<Place>,
        room: &[usize],
        settings: impl FnOnce(OptimizerBuilder<wgpu_optim::gpu::Tensor>) -> OptimizerBuilder<wgpu_optim::gpu::Tensor>,
    ) -> Self {
        Self::try_with_room(gpu, specs, places, room, settings).expect("builds")
    }

    /// As `with_room`.
    ///
    /// # Errors
    /// What the builder or the device refuses.
    pub fn try_with_room(
        gpu: &Gpu,
        specs: &[Spec],
        places: Vec<Place>,
        room: &[usize],
        settings: impl FnOnce(OptimizerBuilder<wgpu_optim::gpu::Tensor>) -> OptimizerBuilder<wgpu_optim::gpu::Tensor>,
    ) -> Result<Self, Error> {
        let kinds = kinds(specs);
        let spans = || {
            places.iter().zip(&kinds).flat_map(|(place, kind)| {
                let span = |(buffer, start), element| (buffer, bytes_of(start, kind.len, element));
                [span(place.params, kind.params), span(place.grads, kind.grads)]
            })
        };
        let count = spans().map(|(buffer, _)| buffer + 1).max().unwrap_or(0).max(room.len());
        let mut host: Vec<Vec<u8>> = (0..count)
            .map(|buffer| {
                let end = spans()
                    .filter(|(b, _)| *b == buffer)
                    .map(|(_, bytes)| bytes.end)
                    .max()
                    .unwrap_or(0)
                    .max(4 * room.get(buffer).copied().unwrap_or(0));
                // As large as the buffer, which is of whole bindings of 16 bytes.
                guards((end.div_ceil(4) + GUARD_ELEMENTS).next_multiple_of(4))
            })
            .collect();
        let tensors = specs.iter().flat_map(|spec| &spec.tensors);
        for ((place, kind), tensor) in places.iter().zip(&kinds).zip(tensors) {
            let (buffer, start) = place.params;
            let bytes = bytes_of(start, kind.len, kind.params);
            host[buffer][bytes].copy_from_slice(Stored::new(kind.params, tensor).bytes());
        }
        let buffers: Vec<wgpu::Buffer> =
            host.iter().map(|bytes| upload(gpu, &bytemuck::pod_collect_to_vec::<u8, f32>(bytes))).collect();
        let loss = upload(gpu, &[1.0; 16]);
        let mut builder = settings(OptimizerBuilder::new(Rule::sgd())).loss(loss.slice(LOSS_BYTE..LOSS_BYTE + 4));
        let mut next = places.iter();
        for spec in specs {
            let mut group = spec.group();
            for (i, tensor) in spec.tensors.iter().enumerate() {
                let place = next.next().expect("a place for each tensor");
                let slice = |place, element| slice_of(&buffers, place, tensor.len(), element);
                let (params, grads) = (slice(place.params, spec.params), slice(place.grads, spec.grads));
                group = group.tensor(spec.tensor_name(i), params, grads);
            }
            builder = builder.group(group);
        }
        let optimizer = builder.build(gpu)?;
        Ok(GpuRun { gpu: gpu.clone(), optimizer, buffers, loss, host, places, kinds })
    }

    /// An encoder of the device's.
    pub fn encoder(&self) -> wgpu::CommandEncoder {
        self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Rebinds to other places in the same buffers, and takes the parameters there; where they were, and where the gradients were, is
    /// nothing that a step could read unnoticed.
    pub fn move_to(&mut self, places: Vec<Place>) -> Result<(), Error> {
        let slices: Vec<_> = places
            .iter()
            .zip(&self.kinds)
            .map(|(place, kind)| {
                let slice = |place, element| slice_of(&self.buffers, place, kind.len, element);
                (slice(place.params, kind.params), slice(place.grads, kind.grads))
            })
            .collect();
        let params = self.params();
        self.optimizer.rebind(&slices)?;
        for (buffer, host) in self.buffers.iter().zip(&mut self.host) {
            *host = guards(host.len() / 4);
            self.gpu.queue().write_buffer(buffer, 0, host);
        }
        self.places = places;
        self.write_params(&params);
        Ok(())
    }

    /// Writes parameters, as the caller may between steps.
    pub fn write_params(&mut self, params: &[Vec<f32>]) {
        for ((place, kind), params) in self.places.iter().zip(&self.kinds).zip(params) {
            let host = &mut self.host[place.params.0];
            write(&self.gpu, &self.buffers, host, place.params, &Stored::new(kind.params, params));
        }
    }

    /// Writes gradients, without a step.
    pub fn write_grads(&mut self, grads: &[Vec<f32>]) {
        assert_eq!(grads.len(), self.places.len());
        for ((place, grads), kind) in self.places.iter().zip(grads).zip(&self.kinds) {
            assert_eq!(grads.len(), kind.len);
            let host = &mut self.host[place.grads.0];
            write(&self.gpu, &self.buffers, host, place.grads, &Stored::new(kind.grads, grads));
        }
    }

    /// What is where the gradients of the next step belong.
    pub fn grads(&self) -> Vec<Vec<f32>> {
        self.read_grads().expect("gradients arrive")
    }

    /// As `grads`.
    ///
    /// # Errors
    /// Where a device does not answer.
    pub fn read_grads(&self) -> Result<Vec<Vec<f32>>, Error> {
        self.read(|place, kind| (place.grads, kind.grads))
    }

    /// As [`Run::params`].
    ///
    /// # Errors
    /// Where a device does not answer.
    pub fn read_params(&self) -> Result<Vec<Vec<f32>>, Error> {
        self.read(|place, kind| (place.params, kind.params))
    }

    /// As [`Run::rates`].
    ///
    /// # Errors
    /// Where a device does not answer.
    pub fn read_rates(&self) -> Result<Vec<f32>, Error> {
        let rates = self.optimizer.learning_rates();
        let rates = self.gpu.read_buffer("learning rates", rates);
        let mut rates: Vec<f32> = pollster::block_on(rates)?;
        // The buffer is padded to 16 bytes.
        rates.truncate(self.optimizer.groups().len());
        Ok(rates)
    }

    /// As [`Run::sums`].
    ///
    /// # Errors
    /// Where a device does not answer.
    pub fn read_sums(&self) -> Result<Vec<ScopeSums>, Error> {
        let mut sums = pollster::block_on(self.optimizer.read_sums())?;
        // The buffer is padded to 16 bytes.
        sums.truncate(self.optimizer.groups().len());
        Ok(sums)
    }

    /// The words of the buffers, with [`GUARD`] in the place of every parameter and gradient: what lies between tensors, and should be [`GUARD`] too.
    ///
    /// # Errors
    /// Where a device does not answer.
    pub fn read_surroundings(&self) -> Result<Vec<Vec<u32>>, Error> {
        let mut contents = self.contents()?;
        for (place, kind) in self.places.iter().zip(&self.kinds) {
            for ((buffer, start), element) in [(place.params, kind.params), (place.grads, kind.grads)] {
                let guard = bytemuck::bytes_of(&GUARD).iter().cycle();
                let own = &mut contents[buffer][bytes_of(start, kind.len, element)];
                own.iter_mut().zip(guard).for_each(|(byte, &guard)| *byte = guard);
            }
        }
        let contents = contents.iter();
        Ok(contents.map(|bytes| bytemuck::pod_collect_to_vec(bytes)).collect())
    }

    /// Gradients should be zeros now.
    pub fn expect_cleared(&mut self) {
        for (place, kind) in self.places.iter().zip(&self.kinds) {
            let (buffer, start) = place.grads;
            self.host[buffer][bytes_of(start, kind.len, kind.grads)].fill(0);
        }
    }

    /// What is in the buffers, whatever a test has made of this `Gpu`: a short time for readbacks, or the word that the device is lost.
    fn contents(&self) -> Result<Vec<Vec<u8>>, Error> {
        let gpu = Gpu::from_parts(self.gpu.device().clone(), self.gpu.queue().clone());
        self.buffers.iter().map(|buffer| pollster::block_on(gpu.read_buffer("tensors", buffer))).collect()
    }

    fn read(&self, what: impl Fn(&Place, &Kind) -> ((usize, usize), Element)) -> Result<Vec<Vec<f32>>, Error> {
        let contents = self.contents()?;
        let tensors = self.places.iter().zip(&self.kinds);
        Ok(tensors
            .map(|(place, kind)| {
                let ((buffer, start), element) = what(place, kind);
                let bytes = &contents[buffer][bytes_of(start, kind.len, element)];
                Stored::from_bytes(element, bytes).values()
            })
            .collect())
    }

    /// Everything in the buffers that is not a parameter is, bit for bit, what was put there.
    pub fn assert_surroundings_untouched(&self) {
        let mut expected = self.host.clone();
        let mut found = self.contents().expect("the device answers");
        for (place, kind) in self.places.iter().zip(&self.kinds) {
            let (buffer, start) = place.params;
            let bytes = bytes_of(start, kind.len, kind.params);
            found[buffer][bytes.clone()].fill(0);
            expected[buffer][bytes].fill(0);
        }
        for (buffer, (found, expected)) in found.iter().zip(&expected).enumerate() {
            for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert!(
                    found == expected,
                    "{}: buffer {buffer}, byte {at} is not of a parameter, but a step changed it from {expected} to {found}",
                    self.path()
                );
            }
        }
    }
}

/// So many words of what surrounds tensors.
fn guards(words: usize) -> Vec<u8> {
    bytemuck::cast_slice(&vec![GUARD; words]).to_vec()
}

/// Writes a tensor, on the host and on the device, where writes are of whole words.
fn write(gpu: &Gpu, buffers: &[wgpu::Buffer], host: &mut [u8], (buffer, start): (usize, usize), values: &Stored) {
    let stored = values.bytes();
    let element_bytes = if values.floats().is_some() { 4 } else { 2 };
    let bytes = start * element_bytes..start * element_bytes + stored.len();
    host[bytes.clone()].copy_from_slice(stored);
    let words = bytes.start..bytes.end.next_multiple_of(4);
    gpu.queue().write_buffer(&buffers[buffer], words.start as u64, &host[words]);
}

impl Run for GpuRun {
    fn path(&self) -> String {
        let partials = self.gpu.tuning().partials.name();
        format!("{}, {partials}", self.gpu.describe())
    }
    fn set_loss(&mut self, loss: f32) {
        self.gpu.queue().write_buffer(&self.loss, LOSS_BYTE, bytemuck::bytes_of(&loss));
    }
    fn try_step(&mut self, grads: &[Vec<f32>]) -> Result<(), Error> {
        self.write_grads(grads);
        let mut encoder = self.encoder();
        self.optimizer.encode_step(&mut encoder)?;
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }
    fn try_measure(&mut self, grads: &[Vec<f32>]) -> Result<ShardSums, Error> {
        self.write_grads(grads);
        let mut encoder = self.encoder();
        self.optimizer.encode_measure(&mut encoder)?;
        self.gpu.queue().submit([encoder.finish()]);
        pollster::block_on(self.optimizer.read_shard_sums())
    }
    fn try_apply(&mut self, _: &[Vec<f32>], combined: &CombinedSums) -> Result<(), Error> {
        let mut encoder = self.encoder();
        self.optimizer.encode_apply(&mut encoder, combined)?;
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }
    fn params(&self) -> Vec<Vec<f32>> {
        self.read_params().expect("parameters arrive")
    }
    fn averages(&self) -> Vec<Vec<f32>> {
        let (groups, tensors) = (self.optimizer.groups(), self.optimizer.tensors());
        let elements = self.kinds.iter().map(|kind| kind.len).sum();
        let place = upload(&self.gpu, &vec![0.0; elements]);
        let mut encoder = self.encoder();
        for (index, tensor) in tensors.iter().enumerate() {
            if groups[tensor.group].averaging != Averaging::Off {
                let start = 4 * tensor.first_element;
                let slice = place.slice(start..start + 4 * tensor.elements);
                self.optimizer.encode_copy_averages(&mut encoder, index, slice).expect("alive");
            }
        }
        self.gpu.queue().submit([encoder.finish()]);
        let all = download(&self.gpu, &place, elements);
        let params = self.params().into_iter().zip(tensors);
        params
            .map(|(params, tensor)| match groups[tensor.group].averaging {
                Averaging::Off => params,
                _ => all[tensor.first_element as usize..][..params.len()].to_vec(),
            })
            .collect()
    }
    fn try_swap_averages(&mut self) -> Result<(), Error> {
        let mut encoder = self.encoder();
        self.optimizer.encode_swap_averages(&mut encoder)?;
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }
    fn try_records(&mut self) -> Result<Records, Error> {
        pollster::block_on(self.optimizer.drain_records())
    }
    fn resume(&mut self) {
        pollster::block_on(self.optimizer.resume()).expect("resumes");
    }
    fn loss_scale(&self) -> f32 {
        download(&self.gpu, self.optimizer.loss_scale(), 1)[0]
    }
    fn rates(&self) -> Vec<f32> {
        self.read_rates().expect("rates arrive")
    }
    fn states(&self) -> Vec<GroupState> {
        pollster::block_on(self.optimizer.read_states()).expect("states arrive")
    }
    fn sums(&self) -> Vec<ScopeSums> {
        self.read_sums().expect("sums arrive")
    }
    fn groups(&self) -> Vec<GroupConfig> {
        self.optimizer.groups().to_vec()
    }
    fn checkpoint(&self) -> Checkpoint {
        let notes = Notes::new();
        let checkpoint = self.optimizer.checkpoint(Parameters::Included, &notes);
        pollster::block_on(checkpoint).expect("a checkpoint")
    }
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), Error> {
        self.optimizer.restore(checkpoint, Parameters::Included)
    }
}

/// The case on the CPU path and, packed in two arenas, on every adapter.
pub fn every_path(specs: &[Spec]) -> Vec<Box<dyn Run>> {
    every_path_with(specs, Setup::default())
}

/// As [`every_path`], with what the builder itself is told.
pub fn every_path_with(specs: &[Spec], setup: Setup) -> Vec<Box<dyn Run>> {
    let mut runs: Vec<Box<dyn Run>> = vec![Box::new(CpuRun::with(specs, setup))];
    for gpu in &devices() {
        runs.push(Box::new(gpu_run_with(gpu, specs, setup)));
    }
    runs
}

/// The case on one adapter, packed in two arenas.
pub fn gpu_run_with(gpu: &Gpu, specs: &[Spec], setup: Setup) -> GpuRun {
    GpuRun::with(gpu, specs, packed(specs, 0, 0), |builder| setup.tell(builder))
}

/// As `every_path`, and on every adapter with each other kind of partials that it can have, in workgroups of several subgroups.
pub fn every_path_and_kind(specs: &[Spec]) -> Vec<Box<dyn Run>> {
    let mut runs = every_path(specs);
    for gpu in &devices() {
        for partials in kinds_of_partials(gpu).filter(|&kind| kind != gpu.tuning().partials) {
            let tuning = Tuning { workgroup_size: 64, quads_per_invocation: 8, partials, finish_workgroup_size: 64 };
            let gpu = gpu.clone().with_tuning(tuning).expect("a small geometry");
            let places = packed(specs, 0, 0);
            runs.push(Box::new(GpuRun::new(&gpu, specs, places)));
        }
    }
    runs
}

/// Floats as their bits, for comparisons that tell zeros apart and NaN from NaN.
pub fn bits(values: &[Vec<f32>]) -> Vec<Vec<u32>> {
    values.iter().map(|tensor| tensor.iter().map(|x| x.to_bits()).collect()).collect()
}
