//! The epoch watchdog on the device.

use super::kept_copy::KeptCopy;
use super::products::{Form, product, rows_of};
use super::{check_fixed, check_same, dispatch, group_workgroups, parts_of, pipeline, record, uniform};
use crate::controllers::watchdog::numbers::VERDICT_RING;
use crate::controllers::watchdog::{
    EpochVerdict, RawVerdict, Turn, WatchdogBatch, WatchdogConfig, WatchdogState, check_weight,
};
use crate::error::Error;
use crate::gpu::buffers::{part, whole, zeroed};
use crate::gpu::context::Gpu;
use crate::gpu::limits::binding_alignment;
use crate::gpu::optimizer::{Dispatch, Optimizer};
use crate::gpu::pass::Binding::{Read, Uniform, Write};
use crate::gpu::pass::Pipeline;
use crate::gpu::readback::{Readback, Source};
use crate::gpu::tensor::Tensor;
use crate::group::TensorSlice;
use crate::layout::GroupState;
use crate::plan::Region;

/// Epoch watchdog on the device. It adds up the losses of an epoch. At the end of the epoch it accepts the epoch, lowers the learning rate,
/// or takes the epoch back. See [`WatchdogConfig`].
///
/// ```no_run
/// # fn f(optimizer: &wgpu_optim::Optimizer, encoder: &mut wgpu_optim::wgpu::CommandEncoder, loss: wgpu_optim::wgpu::BufferSlice, batches: &[Vec<u32>], gradients_of: impl Fn(&[u32], &mut wgpu_optim::wgpu::CommandEncoder)) -> Result<(), wgpu_optim::Error> {
/// use wgpu_optim::{Watchdog, WatchdogConfig};
///
/// // `loss` is the slice of one f32 into which the caller's kernels write the mean loss of a batch.
/// let mut watchdog = Watchdog::new(optimizer, loss, WatchdogConfig::light())?;
/// watchdog.encode_start(optimizer, encoder)?;
/// for _epoch in 0..40 {
///     for batch in batches {
///         gradients_of(batch, encoder);
///         optimizer.encode_step(encoder)?;
///         watchdog.encode_batch(encoder, batch.len() as f32)?;
///     }
///     watchdog.encode_epoch_end(optimizer, encoder)?;
/// }
/// # Ok(())
/// # }
/// ```
///
/// Verdicts are carried out on the device, and the host need not wait for them. [`Watchdog::read_verdicts`] returns them.
///
/// # What is taken back
/// The parameters, and everything that the optimizer keeps of them: momentum, second moments, averages, master weights, and the regime's memory
/// and scalars. The bits are those of the epoch's start. Not taken back are the counts of steps attempted and skipped, the loss scale, and the
/// records. A schedule goes on, because it also counts the steps that were taken back. After a take-back the first record has the lower
/// learning-rate factor as [`Term::Control`](crate::Term::Control), and the other terms continue from the epoch's start.
///
/// # Memory
/// The watchdog keeps a copy of parameters and optimizer state: 4 bytes per f32 parameter for SGD with a fixed rate, 8 with momentum, 12 for
/// AdamW. The end of an epoch reads and writes that much once. The sum of the losses is in f32. Its relative error is at most 2⁻²⁴ per batch.
///
/// # The learning rate
/// The watchdog lowers [`Controls::learning_rate_factor`](crate::Controls::learning_rate_factor) of every group in the device's controls. With
/// [`Regime::fixed`](crate::Regime::fixed) the rate is lowered for good. Regimes that measure the alignment of steps notice the shorter steps and
/// may raise their own rate again. The host's [`Optimizer::controls`] does not include the change. Do not set the factor from the host while
/// a watchdog is active, because that would replace the watchdog's factor.
#[derive(Debug)]
pub struct Watchdog {
    gpu: Gpu,
    states: wgpu::Buffer,
    watch: wgpu::Buffer,
    verdicts: wgpu::Buffer,
    readback: Readback,
    read: u64,
    /// Begins to watch, and copies parameters and state.
    start: Vec<Dispatch>,
    /// Judges an epoch, and copies or restores parameters and state.
    end: Vec<Dispatch>,
    add_loss: Pipeline,
    loss: Tensor,
    /// Dispatches that add a loss, by the weight of the batch.
    batches: Vec<(f32, Dispatch)>,
    turn: Turn,
}

impl Watchdog {
    /// Creates a watchdog of an optimizer: allocates its buffers and compiles its kernels. `loss` is a slice of one f32, which the caller's
    /// kernels must write before the commands of [`encode_batch`](Watchdog::encode_batch) run.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) for a setting outside its range or a slice that is not one f32 of a storage
    /// buffer. Returns [`ErrorKind::Call`](crate::ErrorKind::Call) for an optimizer that cannot be watched: one of several ranks, one with
    /// regime AutoSgd, which takes back by itself, and one built with [`rebindable`](crate::OptimizerBuilder::rebindable). Returns
    /// [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused) if the device lacks memory, or
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn new(optimizer: &Optimizer, loss: wgpu::BufferSlice, config: WatchdogConfig) -> Result<Self, Error> {
        config.check()?;
        check_fixed(optimizer, "a watchdog")?;
        let loss = loss.tensor();
        loss.check("loss", "loss")?;
        loss.check_scalar("loss")?;
        optimizer.gpu.scoped("the buffers and kernels of a watchdog", || Ok(Self::allocate(optimizer, loss, config)))
    }

    fn allocate(optimizer: &Optimizer, loss: Tensor, config: WatchdogConfig) -> Self {
        let gpu = &optimizer.gpu;
        let watch = zeroed::<WatchdogState>(gpu, "watchdog", 1);
        let verdicts = zeroed::<RawVerdict>(gpu, "verdicts", VERDICT_RING.into());
        let parts = || optimizer.plan.places.iter().flat_map(|place| parts_of(optimizer, place));
        let rows = parts().map(|part| rows_of(&part)).sum::<u32>();
        let rows = if config.needs_distance() { rows } else { 0 };
        let sums = zeroed::<[f32; 2]>(gpu, "rows of distances", rows.into());
        let constants = uniform(&optimizer.gpu, "constants of the watchdog", &config.constants(rows));
        let judge = |start: bool| {
            let bindings = [Read, Uniform, Write, Read, Write, Write];
            let start = [crate::gpu::pass::flag("START", start)];
            let kernel = pipeline(&optimizer.gpu, "controllers/judge", "judge", &[], &start, &bindings);
            let buffers = [
                whole(&sums),
                whole(&constants),
                whole(&watch),
                whole(&optimizer.learning_rates),
                whole(&optimizer.groups),
                whole(&verdicts),
            ];
            dispatch(&optimizer.gpu, &kernel, &buffers, 1)
        };
        let mut distances = Vec::new();
        let mut keep = Vec::new();
        let mut row = 0;
        for part in parts() {
            let copy = KeptCopy::of_parameters(optimizer, &watch, &part);
            if config.needs_distance() {
                distances.push(product(optimizer, Form::Distance, &part, Some(&copy.kept), &sums, row));
                row += rows_of(&part);
            }
            keep.push(copy.keep);
        }
        let memories = optimizer.kept.memories.iter().flat_map(|memory| memory.kinds.iter().map(|(_, buffer)| buffer));
        let memories = memories.chain([&optimizer.kept.updates]);
        keep.extend(memories.map(|memory| KeptCopy::of_buffer(optimizer, &watch, memory).keep));
        let kernel =
            pipeline(&optimizer.gpu, "controllers/keep_states", "keep_states", &[], &[], &[Read, Write, Write]);
        let states = zeroed::<GroupState>(gpu, "states to take back", optimizer.plan.groups.len() as u64);
        let buffers = [whole(&watch), whole(&optimizer.states), whole(&states)];
        keep.push(dispatch(&optimizer.gpu, &kernel, &buffers, group_workgroups(optimizer)));
        Watchdog {
            gpu: gpu.clone(),
            states: optimizer.states.clone(),
            start: [vec![judge(true)], keep.clone()].concat(),
            end: [distances, vec![judge(false)], keep].concat(),
            add_loss: pipeline(&optimizer.gpu, "controllers/add_loss", "add_loss", &[], &[], &[Write, Uniform, Read]),
            readback: Readback::new(gpu.device(), "verdicts", verdicts.size() + watch.size()),
            watch,
            verdicts,
            read: 0,
            loss,
            batches: Vec::new(),
            turn: Turn::default(),
        }
    }

    /// Records the start of the watch, before the first step of the first epoch. The state at this point is what a take-back of the first epoch
    /// restores.
    ///
    /// Batches added before this call give the loss at the start, f(w₀): the caller may evaluate all its data once, without steps. Otherwise
    /// the loss of the first batch of the first epoch stands for f(w₀). It is measured before the first step, but on one batch only.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) for another optimizer than the one of [`Watchdog::new`], and while its averages are
    /// swapped in, or [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn encode_start(&mut self, optimizer: &Optimizer, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        check_same(optimizer, &self.states, "Watchdog::encode_start")?;
        record(encoder, "wgpu-optim watchdog", &self.start);
        self.turn.start();
        Ok(())
    }

    /// Records the addition of a batch's loss, with the weight of the batch in the epoch's mean, such as its number of rows. The first
    /// batch of each weight allocates 16 bytes.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Build`](crate::ErrorKind::Build) for a weight that is not finite and above 0,
    /// [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused) or [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn encode_batch(&mut self, encoder: &mut wgpu::CommandEncoder, weight: f32) -> Result<(), Error> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("wgpu-optim watchdog"),
            timestamp_writes: None,
        });
        self.encode_batch_in(&mut pass, weight)
    }

    /// Records the addition of a batch's loss into the caller's compute pass.
    ///
    /// # Errors
    /// See [`Watchdog::encode_batch`].
    pub fn encode_batch_in(&mut self, pass: &mut wgpu::ComputePass, weight: f32) -> Result<(), Error> {
        check_weight(weight)?;
        self.gpu.check_alive()?;
        if !self.batches.iter().any(|(known, _)| *known == weight) {
            let added = self.gpu.scoped("a batch of the watchdog", || Ok::<_, Error>(self.adding(weight)))?;
            self.batches.push((weight, added));
        }
        let added = self.batches.iter().filter(|(known, _)| *known == weight);
        added.for_each(|(_, added)| added.encode(pass));
        self.turn.add();
        Ok(())
    }

    /// Returns the dispatch that adds a loss with a weight.
    fn adding(&self, weight: f32) -> Dispatch {
        let gpu = &self.gpu;
        // A binding may only start at certain offsets.
        let alignment = binding_alignment(&gpu.device().limits()) / 4;
        let (at, element) = (self.loss.start(), self.loss.element);
        let start = at / alignment * alignment;
        let region = Region { buffer: 0, element, start, end: at + 1 };
        let batch = uniform(gpu, "a batch of the watchdog", &WatchdogBatch { weight, loss_at: (at - start) as u32 });
        dispatch(gpu, &self.add_loss, &[whole(&self.watch), whole(&batch), part(&self.loss.buffer, region)], 1)
    }

    /// Records the end of an epoch: the verdict, and the change that follows from it. The next epoch's first step may be recorded right after.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) like [`Watchdog::encode_start`], before that call, and if no batch was added since
    /// the last epoch ended. Returns [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost) if the device is lost.
    pub fn encode_epoch_end(&mut self, optimizer: &Optimizer, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        check_same(optimizer, &self.states, "Watchdog::encode_epoch_end")?;
        let calls = ["Watchdog::encode_start", "Watchdog::encode_batch", "Watchdog::encode_epoch_end"];
        self.turn.check_end(calls)?;
        record(encoder, "wgpu-optim watchdog", &self.end);
        self.turn.end();
        Ok(())
    }

    /// Returns the verdicts on the epochs that have ended since the last call, at most the last 256 of them. Waits for the device.
    ///
    /// # Errors
    /// Returns [`ErrorKind::DeviceLost`](crate::ErrorKind::DeviceLost) or [`ErrorKind::Readback`](crate::ErrorKind::Readback). The next call
    /// then returns the verdicts that this call could not return.
    pub async fn read_verdicts(&mut self) -> Result<Vec<EpochVerdict>, Error> {
        if self.readback.is_in_flight() {
            // This copy belongs to an earlier call that was dropped or timed out.
            self.readback.wait(&self.gpu, |_| ()).await?;
        }
        let sources = [&self.verdicts, &self.watch].map(Source::whole);
        self.readback.start(&self.gpu, &sources)?;
        let (middle, read) = (self.verdicts.size() as usize, self.read);
        let (verdicts, ended) = self
            .readback
            .wait(&self.gpu, |bytes| {
                let (ring, watch) = bytes.split_at(middle);
                let watch: WatchdogState = bytemuck::pod_read_unaligned(&watch[..size_of::<WatchdogState>()]);
                let ended = u64::from(watch.epochs);
                let first = read.max(ended.saturating_sub(VERDICT_RING.into()));
                let verdicts = (first..ended).map(|epoch| {
                    let at = (epoch % u64::from(VERDICT_RING)) as usize * size_of::<RawVerdict>();
                    EpochVerdict::of(&bytemuck::pod_read_unaligned(&ring[at..][..size_of::<RawVerdict>()]))
                });
                (verdicts.collect(), ended)
            })
            .await?;
        self.read = ended;
        Ok(verdicts)
    }
}
