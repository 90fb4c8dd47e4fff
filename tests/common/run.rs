//! A case is stated once and run on the CPU path and on every adapter: groups with their settings and initial parameters, then
//! gradients step by step.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

#[allow(unused_imports, reason = "each test file uses its own part")]
pub use super::spec::{Place, Spec, lengths, packed, separate};
use super::{adapters, download, kinds_of_partials, step, upload};
use wgpu_optim::gpu::Tuning;
use wgpu_optim::layout::{GroupState, ScopeSums};
use wgpu_optim::{
    Averaging, Checkpoint, CombinedSums, CpuOptimizer, Error, Gpu, GroupConfig, Notes, Optimizer,
    OptimizerBuilder, Parameters, ShardSums,
};
use wgpu_optim::{LossScaler, NonFinitePolicy, Records, Rule, StepMode, wgpu};

/// Every adapter, opened once per test binary: opening a device costs more than most tests.
pub fn devices() -> &'static [Gpu] {
    static DEVICES: OnceLock<Vec<Gpu>> = OnceLock::new();
    DEVICES.get_or_init(adapters)
}

/// To be held by each test of a binary where one must not be disturbed by another: because it compiles hundreds of kernels, where wgpu's
/// OpenGL device gives up on its context if another thread does that, or because it measures the process.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What surrounds tensors in their buffers: a NaN, so that a kernel that reads it would skip the step.
const GUARD: u32 = 0x7fc0_beef;
const GUARD_ELEMENTS: usize = 9;

/// Where in its buffer a device's loss is.
const LOSS_BYTE: u64 = 0;

/// What the builder of either path is told beside its groups.
#[derive(Debug, Clone, Copy, Default)]
pub struct Setup {
    pub mode: StepMode,
    pub policy: NonFinitePolicy,
    pub scaler: Option<LossScaler>,
    pub record_steps: Option<u32>,
    /// The rank, and how many there are.
    pub shard: Option<(u32, u32)>,
}

impl Setup {
    pub fn tell<T>(self, builder: OptimizerBuilder<T>) -> OptimizerBuilder<T> {
        let mut builder = builder.step_mode(self.mode).nonfinite_policy(self.policy);
        if let Some(scaler) = self.scaler {
            builder = builder.loss_scaler(scaler);
        }
        if let Some((rank, ranks)) = self.shard {
            builder = builder.sharded(rank, ranks);
        }
        match self.record_steps {
            Some(steps) => builder.record_steps(steps),
            None => builder,
        }
    }
}

impl From<StepMode> for Setup {
    fn from(mode: StepMode) -> Self {
        Setup {
            mode,
            ..Setup::default()
        }
    }
}

/// An optimizer at work on either path.
pub trait Run {
    fn path(&self) -> String;
    /// The loss of the steps to come; 1 without.
    fn set_loss(&mut self, loss: f32);
    /// One step; gradients tensor by tensor. On the device no step is an error.
    fn try_step(&mut self, grads: &[Vec<f32>]) -> Result<(), Error>;
    fn step(&mut self, grads: &[Vec<f32>]) {
        self.try_step(grads).expect("steps");
    }
    /// This rank's part of a step of several.
    fn measure(&mut self, grads: &[Vec<f32>]) -> ShardSums;
    /// The step that was measured.
    fn try_apply(&mut self, grads: &[Vec<f32>], combined: &CombinedSums) -> Result<(), Error>;
    fn params(&self) -> Vec<Vec<f32>>;
    /// The average of every tensor; its parameters where there is none, or none yet.
    fn averages(&self) -> Vec<Vec<f32>>;
    /// Exchanges parameters and averages.
    fn swap_averages(&mut self);
    /// On the host no drain is an error.
    fn try_records(&mut self) -> Result<Records, Error>;
    fn records(&mut self) -> Records {
        self.try_records().expect("records arrive")
    }
    fn resume(&mut self);
    fn loss_scale(&self) -> f32;
    fn rates(&self) -> Vec<f32>;
    fn states(&self) -> Vec<GroupState>;
    fn sums(&self) -> Vec<ScopeSums>;
    fn groups(&self) -> Vec<GroupConfig>;
    /// With the parameters.
    fn checkpoint(&self) -> Checkpoint;
    /// The parameters too.
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), Error>;
}

pub struct CpuRun {
    pub optimizer: CpuOptimizer,
    loss: f32,
    params: Vec<Vec<f32>>,
}

impl CpuRun {
    pub fn new(specs: &[Spec]) -> Self {
        Self::in_mode(specs, StepMode::TwoPass)
    }

    pub fn in_mode(specs: &[Spec], mode: StepMode) -> Self {
        Self::with(specs, mode.into())
    }

    pub fn with(specs: &[Spec], setup: Setup) -> Self {
        let mut builder = setup.tell(OptimizerBuilder::new(Rule::sgd()));
        for spec in specs {
            let mut group = spec.group();
            for (i, tensor) in spec.tensors.iter().enumerate() {
                group = group.tensor(spec.tensor_name(i), tensor, tensor);
            }
            builder = builder.group(group);
        }
        CpuRun {
            optimizer: builder.build_cpu().expect("builds"),
            loss: 1.0,
            params: specs.iter().flat_map(|spec| spec.tensors.clone()).collect(),
        }
    }
}

impl Run for CpuRun {
    fn path(&self) -> String {
        "CPU path".to_owned()
    }
    fn set_loss(&mut self, loss: f32) {
        self.loss = loss;
    }
    fn try_step(&mut self, grads: &[Vec<f32>]) -> Result<(), Error> {
        let mut params: Vec<&mut [f32]> = self.params.iter_mut().map(Vec::as_mut_slice).collect();
        if self.optimizer.step_mode() == StepMode::Lagged {
            let mut grads = grads.to_vec();
            let mut grads: Vec<&mut [f32]> = grads.iter_mut().map(Vec::as_mut_slice).collect();
            let stepped = self.optimizer.step_lagged(&mut params, &mut grads);
            let params = params.iter().map(|tensor| tensor.to_vec()).collect();
            self.params = params;
            return stepped;
        }
        let grads: Vec<&[f32]> = grads.iter().map(Vec::as_slice).collect();
        self.optimizer
            .step_with_loss(&mut params, &grads, self.loss)
    }
    fn measure(&mut self, grads: &[Vec<f32>]) -> ShardSums {
        let (params, loss) = (&self.params, self.loss);
        let measured = self.optimizer.measure_with_loss(params, grads, loss);
        measured.expect("measures")
    }
    fn try_apply(&mut self, grads: &[Vec<f32>], combined: &CombinedSums) -> Result<(), Error> {
        let mut params: Vec<&mut [f32]> = self.params.iter_mut().map(Vec::as_mut_slice).collect();
        let grads: Vec<&[f32]> = grads.iter().map(Vec::as_slice).collect();
        self.optimizer.apply(&mut params, &grads, combined)
    }
    fn params(&self) -> Vec<Vec<f32>> {
        self.params.clone()
    }
    fn averages(&self) -> Vec<Vec<f32>> {
        let tensors = self.params.iter().enumerate();
        tensors
            .map(|(tensor, params)| self.optimizer.averages(tensor).unwrap_or(params).to_vec())
            .collect()
    }
    fn swap_averages(&mut self) {
        let mut params: Vec<&mut [f32]> = self.params.iter_mut().map(Vec::as_mut_slice).collect();
        self.optimizer.swap_averages(&mut params).expect("swaps");
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
        let params: Vec<&[f32]> = self.params.iter().map(Vec::as_slice).collect();
        let checkpoint = self.optimizer.checkpoint(Some(&params), &Notes::new());
        checkpoint.expect("a checkpoint")
    }
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), Error> {
        let mut params: Vec<&mut [f32]> = self.params.iter_mut().map(Vec::as_mut_slice).collect();
        self.optimizer.restore(checkpoint, Some(&mut params))
    }
}

pub struct GpuRun {
    pub gpu: Gpu,
    pub optimizer: Optimizer,
    pub buffers: Vec<wgpu::Buffer>,
    loss: wgpu::Buffer,
    /// What the buffers should hold, but for the parameters.
    host: Vec<Vec<f32>>,
    places: Vec<Place>,
    lengths: Vec<usize>,
}

impl GpuRun {
    pub fn new(gpu: &Gpu, specs: &[Spec], places: Vec<Place>) -> Self {
        Self::with(gpu, specs, places, |builder| builder)
    }

    pub fn in_mode(gpu: &Gpu, specs: &[Spec], places: Vec<Place>, mode: StepMode) -> Self {
        Self::with(gpu, specs, places, |builder| builder.step_mode(mode))
    }

    /// As `new`, with what the builder itself is told.
    pub fn with(
        gpu: &Gpu,
        specs: &[Spec],
        places: Vec<Place>,
        settings: impl FnOnce(
            OptimizerBuilder<wgpu_optim::gpu::Tensor>,
        ) -> OptimizerBuilder<wgpu_optim::gpu::Tensor>,
    ) -> Self {
        Self::with_room(gpu, specs, places, &[], settings)
    }

    /// As `with`, in buffers of at least so many elements: there may be more of them than the places need.
    pub fn with_room(
        gpu: &Gpu,
        specs: &[Spec],
        places: Vec<Place>,
        room: &[usize],
        settings: impl FnOnce(
            OptimizerBuilder<wgpu_optim::gpu::Tensor>,
        ) -> OptimizerBuilder<wgpu_optim::gpu::Tensor>,
    ) -> Self {
        let lengths: Vec<usize> = lengths(specs).collect();
        let spans = || {
            places
                .iter()
                .zip(&lengths)
                .flat_map(|(place, &len)| [(place.params, len), (place.grads, len)])
        };
        let count = spans()
            .map(|((buffer, _), _)| buffer + 1)
            .max()
            .unwrap_or(0)
            .max(room.len());
        let mut host: Vec<Vec<f32>> = (0..count)
            .map(|buffer| {
                let end = spans()
                    .filter(|((b, _), _)| *b == buffer)
                    .map(|((_, start), len)| start + len)
                    .max()
                    .unwrap_or(0)
                    .max(room.get(buffer).copied().unwrap_or(0));
                vec![f32::from_bits(GUARD); end + GUARD_ELEMENTS]
            })
            .collect();
        let tensors = specs.iter().flat_map(|spec| &spec.tensors);
        for (place, tensor) in places.iter().zip(tensors) {
            let (buffer, start) = place.params;
            host[buffer][start..][..tensor.len()].copy_from_slice(tensor);
        }
        let buffers: Vec<wgpu::Buffer> = host.iter().map(|values| upload(gpu, values)).collect();
        let loss = upload(gpu, &[1.0]);
        let mut builder =
            settings(OptimizerBuilder::new(Rule::sgd())).loss(loss.slice(LOSS_BYTE..LOSS_BYTE + 4));
        let mut next = places.iter();
        for spec in specs {
            let mut group = spec.group();
            for (i, tensor) in spec.tensors.iter().enumerate() {
                let place = next.next().expect("a place for each tensor");
                let slice = |(buffer, start): (usize, usize)| {
                    let start = 4 * start as u64;
                    buffers[buffer].slice(start..start + 4 * tensor.len() as u64)
                };
                group = group.tensor(spec.tensor_name(i), slice(place.params), slice(place.grads));
            }
            builder = builder.group(group);
        }
        let optimizer = builder.build(gpu).expect("builds");
        GpuRun {
            gpu: gpu.clone(),
            optimizer,
            buffers,
            loss,
            host,
            places,
            lengths,
        }
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

    /// Rebinds to other places in the same buffers, and takes the parameters there; where they were, and where the gradients were, is
    /// nothing that a step could read unnoticed.
    pub fn move_to(&mut self, places: Vec<Place>) -> Result<(), Error> {
        let slices: Vec<_> = places
            .iter()
            .zip(&self.lengths)
            .map(|(place, &len)| {
                [place.params, place.grads].map(|(buffer, start)| {
                    let start = 4 * start as u64;
                    self.buffers[buffer].slice(start..start + 4 * len as u64)
                })
            })
            .map(|[params, grads]| (params, grads))
            .collect();
        let params = self.params();
        self.optimizer.rebind(&slices)?;
        for (buffer, host) in self.buffers.iter().zip(&mut self.host) {
            host.fill(f32::from_bits(GUARD));
            let bytes = bytemuck::cast_slice(host);
            self.gpu.queue().write_buffer(buffer, 0, bytes);
        }
        for (place, params) in places.iter().zip(&params) {
            let (buffer, start) = place.params;
            self.gpu.queue().write_buffer(
                &self.buffers[buffer],
                4 * start as u64,
                bytemuck::cast_slice(params),
            );
        }
        self.places = places;
        Ok(())
    }

    pub fn write_grads(&mut self, grads: &[Vec<f32>]) {
        assert_eq!(grads.len(), self.places.len());
        for ((place, grads), &len) in self.places().iter().zip(grads).zip(&self.lengths) {
            assert_eq!(grads.len(), len);
            let (buffer, start) = place.grads;
            self.host[buffer][start..][..len].copy_from_slice(grads);
            self.gpu.queue().write_buffer(
                &self.buffers[buffer],
                4 * start as u64,
                bytemuck::cast_slice(grads),
            );
        }
    }

    /// Everything in the buffers that is not a parameter is, bit for bit, what was put there.
    pub fn assert_surroundings_untouched(&self) {
        let mut expected = self.host.clone();
        let mut found: Vec<Vec<f32>> = self
            .buffers
            .iter()
            .zip(&self.host)
            .map(|(buffer, host)| download(&self.gpu, buffer, host.len()))
            .collect();
        for (place, &len) in self.places.iter().zip(&self.lengths) {
            let mut written = vec![place.params];
            if self.optimizer.step_mode() == StepMode::Lagged {
                written.push(place.grads);
            }
            for (buffer, start) in written {
                found[buffer][start..][..len].fill(0.0);
                expected[buffer][start..][..len].fill(0.0);
            }
        }
        for (buffer, (found, expected)) in found.iter().zip(&expected).enumerate() {
            for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert!(
                    found.to_bits() == expected.to_bits(),
                    "{}: buffer {buffer}, element {at} is not a parameter, but a step changed it from {expected} to {found}",
                    self.path()
                );
            }
        }
    }
}

impl Run for GpuRun {
    fn path(&self) -> String {
        let partials = self.gpu.tuning().partials.name();
        format!("{}, {partials}", self.gpu.describe())
    }
    fn set_loss(&mut self, loss: f32) {
        self.gpu
            .queue()
            .write_buffer(&self.loss, LOSS_BYTE, bytemuck::bytes_of(&loss));
    }
    fn try_step(&mut self, grads: &[Vec<f32>]) -> Result<(), Error> {
        self.write_grads(grads);
        step(&self.gpu, &self.optimizer);
        Ok(())
    }
    fn measure(&mut self, grads: &[Vec<f32>]) -> ShardSums {
        self.write_grads(grads);
        let mut encoder = self
            .gpu
            .device()
            .create_command_encoder(&Default::default());
        self.optimizer.encode_measure(&mut encoder).expect("alive");
        self.gpu.queue().submit([encoder.finish()]);
        pollster::block_on(self.optimizer.read_shard_sums()).expect("sums arrive")
    }
    fn try_apply(&mut self, _: &[Vec<f32>], combined: &CombinedSums) -> Result<(), Error> {
        let mut encoder = self
            .gpu
            .device()
            .create_command_encoder(&Default::default());
        self.optimizer.encode_apply(&mut encoder, combined)?;
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }
    fn params(&self) -> Vec<Vec<f32>> {
        let found: Vec<Vec<f32>> = self
            .buffers
            .iter()
            .zip(&self.host)
            .map(|(buffer, host)| download(&self.gpu, buffer, host.len()))
            .collect();
        self.places()
            .iter()
            .zip(&self.lengths)
            .map(|(place, &len)| found[place.params.0][place.params.1..][..len].to_vec())
            .collect()
    }
    fn averages(&self) -> Vec<Vec<f32>> {
        let (groups, tensors) = (self.optimizer.groups(), self.optimizer.tensors());
        let place = upload(&self.gpu, &vec![0.0; self.lengths.iter().sum()]);
        let mut encoder = self
            .gpu
            .device()
            .create_command_encoder(&Default::default());
        for (index, tensor) in tensors.iter().enumerate() {
            if groups[tensor.group].averaging != Averaging::Off {
                let start = 4 * tensor.first_element;
                let slice = place.slice(start..start + 4 * tensor.elements);
                self.optimizer
                    .encode_copy_averages(&mut encoder, index, slice)
                    .expect("alive");
            }
        }
        self.gpu.queue().submit([encoder.finish()]);
        let all = download(&self.gpu, &place, self.lengths.iter().sum());
        let params = self.params().into_iter().zip(tensors);
        params
            .map(|(params, tensor)| match groups[tensor.group].averaging {
                Averaging::Off => params,
                _ => all[tensor.first_element as usize..][..params.len()].to_vec(),
            })
            .collect()
    }
    fn swap_averages(&mut self) {
        let mut encoder = self
            .gpu
            .device()
            .create_command_encoder(&Default::default());
        self.optimizer
            .encode_swap_averages(&mut encoder)
            .expect("alive");
        self.gpu.queue().submit([encoder.finish()]);
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
        let groups = self.optimizer.groups().len();
        download(&self.gpu, self.optimizer.learning_rates(), groups)
    }
    fn states(&self) -> Vec<GroupState> {
        pollster::block_on(self.optimizer.read_states()).expect("states arrive")
    }
    fn sums(&self) -> Vec<ScopeSums> {
        let mut sums = pollster::block_on(self.optimizer.read_sums()).expect("sums arrive");
        // The buffer is padded to 16 bytes.
        sums.truncate(self.optimizer.groups().len());
        sums
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
    every_path_in_mode(specs, StepMode::TwoPass)
}

pub fn every_path_in_mode(specs: &[Spec], mode: StepMode) -> Vec<Box<dyn Run>> {
    every_path_with(specs, mode.into())
}

pub fn every_path_with(specs: &[Spec], setup: Setup) -> Vec<Box<dyn Run>> {
    let mut runs: Vec<Box<dyn Run>> = vec![Box::new(CpuRun::with(specs, setup))];
    for gpu in devices() {
        runs.push(Box::new(gpu_run_with(gpu, specs, setup)));
    }
    runs
}

/// The case on one adapter, packed in two arenas.
pub fn gpu_run_with(gpu: &Gpu, specs: &[Spec], setup: Setup) -> GpuRun {
    GpuRun::with(gpu, specs, packed(specs, 0, 0), |builder| {
        setup.tell(builder)
    })
}

/// As `every_path`, and on every adapter with each other kind of partials that it can have, in workgroups of several subgroups.
pub fn every_path_and_kind(specs: &[Spec]) -> Vec<Box<dyn Run>> {
    every_path_and_kind_in_mode(specs, StepMode::TwoPass)
}

pub fn every_path_and_kind_in_mode(specs: &[Spec], mode: StepMode) -> Vec<Box<dyn Run>> {
    let mut runs = every_path_in_mode(specs, mode);
    for gpu in devices() {
        for partials in kinds_of_partials(gpu).filter(|&kind| kind != gpu.tuning().partials) {
            let tuning = Tuning {
                workgroup_size: 64,
                quads_per_invocation: 8,
                partials,
                finish_workgroup_size: 64,
            };
            let gpu = gpu.clone().with_tuning(tuning).expect("a small geometry");
            let places = packed(specs, 0, 0);
            runs.push(Box::new(GpuRun::in_mode(&gpu, specs, places, mode)));
        }
    }
    runs
}

pub fn bits(values: &[Vec<f32>]) -> Vec<Vec<u32>> {
    values
        .iter()
        .map(|tensor| tensor.iter().map(|x| x.to_bits()).collect())
        .collect()
}
