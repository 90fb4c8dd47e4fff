//! Runs of a case on a device, and on every path.

use std::sync::{Mutex, PoisonError};

use super::{CpuRun, Run, Setup};
use crate::spec::{Place, Spec, packed};
use crate::stored::Stored;
use crate::{adapters, download, kinds_of_partials, upload};
use wgpu_optim::gpu::Tuning;
use wgpu_optim::internals::layout::{GroupState, ScopeSums};
use wgpu_optim::{
    Averaging, Checkpoint, CombinedSums, Controls, Difference, Differences, Element, Error, Gpu, GroupConfig, Notes,
    Optimizer, OptimizerBuilder, Parameters, Records, Rule, ShardSums, wgpu,
};

/// Tests that use the same devices one after the other. Software drivers keep every kernel that they have compiled
/// until the device is gone, which would take several gigabytes over all tests.
const TESTS_OF_A_DEVICE: usize = 12;

/// Devices that are lent to a test, and handed to the next one at the end of the test's thread.
struct Lent {
    devices: Vec<Gpu>,
    tests: usize,
}

static FREE: Mutex<Vec<Lent>> = Mutex::new(Vec::new());

impl Lent {
    fn take() -> Self {
        let free = FREE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| Lent { devices: adapters(), tests: 0 })
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let tests = self.tests + 1;
        if tests < TESTS_OF_A_DEVICE {
            let devices = std::mem::take(&mut self.devices);
            FREE.lock().unwrap_or_else(PoisonError::into_inner).push(Lent { devices, tests });
        }
    }
}

/// Returns a device on every adapter. No other test uses them at the same time, because software drivers compile on
/// one thread of a device, and OpenGL's calls fail after waiting a second for another thread.
pub fn devices() -> Vec<Gpu> {
    thread_local! {
        static DEVICES: Lent = Lent::take();
    }
    DEVICES.with(|lent| lent.devices.clone())
}

/// Word that fills the space around tensors in their buffers: a NaN in every element type, so that a kernel that reads
/// it would skip the step.
pub const GUARD: u32 = 0x7fc1_7fc1;
const GUARD_ELEMENTS: usize = 9;

/// Offset of the loss in its buffer. No binding may start there.
const LOSS_BYTE: u64 = 36;

/// Length of a tensor, with the element types of its parameters and gradients.
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

/// Run of a case on a device.
pub struct GpuRun {
    /// Device of the run.
    pub gpu: Gpu,
    /// Optimizer, for calls that only the device path has.
    pub optimizer: Optimizer,
    /// Buffers with the tensors.
    pub buffers: Vec<wgpu::Buffer>,
    loss: wgpu::Buffer,
    /// Expected contents of the buffers, except the parameters.
    host: Vec<Vec<u8>>,
    places: Vec<Place>,
    kinds: Vec<Kind>,
}

/// Returns the byte range of a tensor's parameters or gradients in their buffer.
fn bytes_of(start: usize, len: usize, element: Element) -> std::ops::Range<usize> {
    let bytes = element.bytes() as usize;
    start * bytes..(start + len) * bytes
}

/// Returns a tensor's parameters or gradients as a slice of a buffer.
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
    /// Creates a run of a case on a device, with its tensors in these places.
    pub fn new(gpu: &Gpu, specs: &[Spec], places: Vec<Place>) -> Self {
        Self::with(gpu, specs, places, |builder| builder)
    }

    /// Creates a run like `new`, with a function that configures the builder.
    pub fn with(
        gpu: &Gpu,
        specs: &[Spec],
        places: Vec<Place>,
        settings: impl FnOnce(OptimizerBuilder<wgpu_optim::gpu::Tensor>) -> OptimizerBuilder<wgpu_optim::gpu::Tensor>,
    ) -> Self {
        Self::with_room(gpu, specs, places, &[], settings)
    }

    /// Creates a run like `with`, in buffers of at least this many elements. There may be more buffers than the places
    /// need.
    pub fn with_room(
        gpu: &Gpu,
        specs: &[Spec],
        places: Vec<Place>,
        room: &[usize],
        settings: impl FnOnce(OptimizerBuilder<wgpu_optim::gpu::Tensor>) -> OptimizerBuilder<wgpu_optim::gpu::Tensor>,
    ) -> Self {
        Self::try_with_room(gpu, specs, places, room, settings).expect("builds")
    }

    /// Creates a run like `with_room`.
    ///
    /// # Errors
    /// Returns the error of the builder or the device.
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
                // The host copy is as large as the buffer, which consists of whole bindings of 16 bytes.
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
                group = group.shaped_tensor(spec.tensor_name(i), &spec.shape(i), params, grads);
            }
            builder = builder.group(group);
        }
        let optimizer = builder.build(gpu)?;
        Ok(GpuRun { gpu: gpu.clone(), optimizer, buffers, loss, host, places, kinds })
    }

    /// Creates a command encoder.
    pub fn encoder(&self) -> wgpu::CommandEncoder {
        self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Records into one encoder and submits it.
    fn submit(
        &mut self,
        record: impl FnOnce(&mut Optimizer, &mut wgpu::CommandEncoder) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut encoder = self.encoder();
        record(&mut self.optimizer, &mut encoder)?;
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    /// Rebinds the tensors to other places in the same buffers, and moves the parameters there. The old places are
    /// filled such that a step that reads them fails.
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

    /// Reads the gradients that are in place for the next step.
    ///
    /// # Errors
    /// Returns an error if the device does not answer.
    pub fn try_grads(&self) -> Result<Vec<Vec<f32>>, Error> {
        self.read(|place, kind| (place.grads, kind.grads))
    }

    /// Reads the gradients like `try_grads`, and panics on failure.
    pub fn grads(&self) -> Vec<Vec<f32>> {
        self.try_grads().expect("gradients arrive")
    }

    /// Reads the words of the buffers with [`GUARD`] in the place of every parameter and gradient. All words should
    /// then be [`GUARD`].
    ///
    /// # Errors
    /// Returns an error if the device does not answer.
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

    /// Expects the gradients to be zeros from now on.
    pub fn expect_cleared(&mut self) {
        for (place, kind) in self.places.iter().zip(&self.kinds) {
            let (buffer, start) = place.grads;
            self.host[buffer][bytes_of(start, kind.len, kind.grads)].fill(0);
        }
    }

    /// Reads the buffers, even if a test has set a short time limit for readbacks on this `Gpu` or marked its device as
    /// lost.
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

    /// Asserts that everything in the buffers except the parameters is bit-identical to what was written.
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

/// Returns this many words of the fill around tensors.
fn guards(words: usize) -> Vec<u8> {
    bytemuck::cast_slice(&vec![GUARD; words]).to_vec()
}

/// Writes a tensor to the host copy and to the device, where writes consist of whole words.
fn write(gpu: &Gpu, buffers: &[wgpu::Buffer], host: &mut [u8], (buffer, start): (usize, usize), values: &Stored) {
    let stored = values.bytes();
    let start = start * if values.floats().is_some() { 4 } else { 2 };
    let bytes = start..start + stored.len();
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
        self.submit(|optimizer, encoder| optimizer.encode_step(encoder))
    }
    fn try_step_without(&mut self, grads: &[Vec<f32>], absent: &[usize]) -> Result<(), Error> {
        self.write_grads(grads);
        self.submit(|optimizer, encoder| optimizer.encode_step_without(encoder, absent))
    }
    fn try_look(&mut self, grads: &[Vec<f32>]) -> Result<(), Error> {
        self.write_grads(grads);
        self.submit(|optimizer, encoder| optimizer.encode_look(encoder))
    }
    fn try_look_without(&mut self, grads: &[Vec<f32>], absent: &[usize]) -> Result<(), Error> {
        self.write_grads(grads);
        self.submit(|optimizer, encoder| optimizer.encode_look_without(encoder, absent))
    }
    fn try_control(&mut self, group: Option<&str>, change: &dyn Fn(&mut Controls)) -> Result<(), Error> {
        match group {
            Some(group) => self.optimizer.control(group, change),
            None => self.optimizer.control_all(change),
        }
    }
    fn controls(&self, group: &str) -> Controls {
        self.optimizer.controls(group).expect("a group")
    }
    fn try_measure(&mut self, grads: &[Vec<f32>]) -> Result<ShardSums, Error> {
        self.write_grads(grads);
        self.submit(|optimizer, encoder| optimizer.encode_measure(encoder))?;
        pollster::block_on(self.optimizer.read_shard_sums())
    }
    fn try_apply(&mut self, _: &[Vec<f32>], combined: &CombinedSums) -> Result<(), Error> {
        self.submit(|optimizer, encoder| optimizer.encode_apply(encoder, combined))
    }
    fn try_params(&self) -> Result<Vec<Vec<f32>>, Error> {
        self.read(|place, kind| (place.params, kind.params))
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
        self.submit(|optimizer, encoder| optimizer.encode_swap_averages(encoder))
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
    // Buffers are padded to 16 bytes.
    fn try_rates(&self) -> Result<Vec<f32>, Error> {
        let rates = self.gpu.read_buffer("learning rates", self.optimizer.learning_rates());
        let mut rates: Vec<f32> = pollster::block_on(rates)?;
        rates.truncate(self.optimizer.groups().len());
        Ok(rates)
    }
    fn try_states(&self) -> Result<Vec<GroupState>, Error> {
        let mut states = pollster::block_on(self.optimizer.read_states())?;
        states.truncate(self.optimizer.groups().len());
        Ok(states)
    }
    fn try_sums(&self) -> Result<Vec<ScopeSums>, Error> {
        let mut sums = pollster::block_on(self.optimizer.read_sums())?;
        sums.truncate(self.optimizer.groups().len());
        Ok(sums)
    }
    fn groups(&self) -> Vec<GroupConfig> {
        self.optimizer.groups().to_vec()
    }
    fn checkpoint(&self) -> Checkpoint {
        let notes = Notes::new();
        let checkpoint = self.optimizer.checkpoint(Parameters::Included, &notes);
        pollster::block_on(checkpoint).expect("a checkpoint")
    }
    fn restore_with(&mut self, checkpoint: &Checkpoint, accepted: Differences) -> Result<Vec<Difference>, Error> {
        self.optimizer.restore_with(checkpoint, Parameters::Included, accepted)
    }
}

/// Returns runs of the case on the CPU path and on every adapter, with tensors packed into two buffers.
pub fn every_path(specs: &[Spec]) -> Vec<Box<dyn Run>> {
    every_path_with(specs, Setup::default())
}

/// Returns runs like [`every_path`], with a configuration of the builder.
///
/// On OpenGL the passes are always dispatches of their own, so that small models are tested in both ways. The kernel of a whole step is a large one
/// for each pair of a rule and a regime, and compiling kernels is nearly all that the tests do.
pub fn every_path_with(specs: &[Spec], setup: Setup) -> Vec<Box<dyn Run>> {
    let mut runs: Vec<Box<dyn Run>> = vec![Box::new(CpuRun::with(specs, setup))];
    for gpu in &devices() {
        let on_opengl = gpu.device().adapter_info().backend == wgpu::Backend::Gl;
        let separate_passes = setup.separate_passes || on_opengl;
        runs.push(Box::new(gpu_run_with(gpu, specs, Setup { separate_passes, ..setup })));
    }
    runs
}

/// Returns a run of the case on one adapter, with tensors packed into two buffers.
pub fn gpu_run_with(gpu: &Gpu, specs: &[Spec], setup: Setup) -> GpuRun {
    GpuRun::with(gpu, specs, packed(specs, 0, 0), |builder| setup.tell(builder))
}

/// Returns runs like `every_path`, and on every adapter a run with each other kind of partial sums that it supports, in
/// workgroups of several subgroups. The passes of a step are dispatches of their own, so that the sums can be read.
pub fn every_path_and_kind(specs: &[Spec]) -> Vec<Box<dyn Run>> {
    let setup = Setup { separate_passes: true, ..Setup::default() };
    let mut runs = every_path_with(specs, setup);
    for gpu in &devices() {
        for partials in kinds_of_partials(gpu).filter(|&kind| kind != gpu.tuning().partials) {
            let tuning = Tuning { workgroup_size: 64, quads_per_invocation: 8, partials, finish_workgroup_size: 64 };
            let gpu = gpu.clone().with_tuning(tuning).expect("a small geometry");
            runs.push(Box::new(gpu_run_with(&gpu, specs, setup)));
        }
    }
    runs
}
