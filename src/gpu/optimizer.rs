//! The optimizer on the device: everything is allocated by `build`, a step only records dispatches.

#[cfg(feature = "checkpoint")]
mod checkpoint;
mod rebind;
mod shard;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use bytemuck::Pod;

use crate::averaging::Averaging;
use crate::error::Error;
use crate::gpu::context::Gpu;
use crate::gpu::optimizer::rebind::Movable;
use crate::gpu::pass::{BoundGroup, CompiledKernel, Pipeline};
use crate::gpu::readback::{Readback, Source};
use crate::gpu::swap_averages::Exchange;
use crate::gpu::sweep::most_storage_buffers;
use crate::gpu::tensor::{Span, Tensor};
use crate::gpu::{finish_reduction, finish_update, learning_rate, reduce_gradient, swap_averages, update_parameters};
use crate::group::{GroupConfig, OptimizerBuilder, ResolvedGroup};
use crate::layout::{
    Block, GroupState, NO_TENSOR, PARTIAL_WORDS, RawRecord, RawTensorRecord, ScopeSums, StepSums, StepUnit, Update,
};
use crate::plan::{Geometry, Kernel, MemoryKind, Place, Plan, QUAD, Region, Stretch, TensorInfo, Window};
use crate::record::{RecordCursor, Records};

/// One of the passes of a step, or the one that is no part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PassName {
    /// Pass 1.
    ReduceGradient,
    /// Pass 2.
    FinishReduction,
    /// Pass 3.
    LearningRate,
    /// Pass 4.
    UpdateParameters,
    /// Pass 5, where a group has telemetry or a trust ratio.
    FinishUpdate,
    /// Exchanges parameters and averages ([`Optimizer::encode_swap_averages`]).
    SwapAverages,
}

impl PassName {
    /// The pass's stem, as its shader and files are called.
    pub fn name(self) -> &'static str {
        match self {
            PassName::ReduceGradient => reduce_gradient::STEM,
            PassName::FinishReduction => finish_reduction::STEM,
            PassName::LearningRate => learning_rate::STEM,
            PassName::UpdateParameters => update_parameters::STEM,
            PassName::FinishUpdate => finish_update::STEM,
            PassName::SwapAverages => swap_averages::STEM,
        }
    }
}

/// One dispatch of a step, for those who record it by other means than [`Optimizer::encode_step`].
#[derive(Debug, Clone)]
pub struct Dispatch {
    /// The pass it belongs to.
    pub pass: PassName,
    /// Its pipeline.
    pub pipeline: CompiledKernel,
    /// Its bind groups, by index.
    pub bind_groups: Vec<BoundGroup>,
    /// Workgroups along x; y and z are 1.
    pub workgroups: u32,
}

impl Dispatch {
    /// Records the dispatch.
    pub fn encode(&self, pass: &mut wgpu::ComputePass) {
        pass.set_pipeline(&self.pipeline);
        for (index, bind_group) in self.bind_groups.iter().enumerate() {
            pass.set_bind_group(index as u32, &**bind_group, &[]);
        }
        pass.dispatch_workgroups(self.workgroups, 1, 1);
    }
}

/// An optimizer on the device. Made by [`OptimizerBuilder::build`].
///
/// A step is a few passes that the caller records wherever the gradients are ready. It allocates nothing, writes no queue,
/// submits, maps and polls nothing; all per-step state is on the device, so that two steps recorded into one submit are two
/// steps.
#[derive(Debug)]
pub struct Optimizer {
    gpu: Gpu,
    plan: Plan,
    /// The dispatches of a step.
    step: Vec<Dispatch>,
    /// Of the windows that keep averages.
    averages: Vec<WindowAverages>,
    averages_are_swapped: AtomicBool,
    learning_rates: wgpu::Buffer,
    loss_scale: wgpu::Buffer,
    states: wgpu::Buffer,
    sums: wgpu::Buffer,
    records: wgpu::Buffer,
    tensor_records: wgpu::Buffer,
    readback: Readback,
    cursor: RecordCursor,
    /// Records that were fetched by a drain that then failed.
    undelivered: Records,
    rebindable: bool,
    /// Of every window, in an optimizer that can be rebound; else none.
    movables: Vec<Movable>,
    /// Why training has halted, once a record has told.
    halted: Option<Error>,
    /// Where other ranks have other parameters.
    sharded: Option<shard::Sharded>,
    #[cfg(feature = "checkpoint")]
    kept: checkpoint::Kept,
}

/// The averages of one window's parameters.
#[derive(Debug)]
struct WindowAverages {
    /// The window's index in the plan.
    window: usize,
    buffer: wgpu::Buffer,
    /// Exchanges them with the parameters.
    exchange: Dispatch,
    /// Fills them with the parameters where no average has started. In schedule-free training, copies the averages to a third bind group.
    settle: Dispatch,
    /// In schedule-free training.
    schedule_free: Option<ScheduleFree>,
}

/// What exchanges and copies averages that are nowhere kept as such.
#[derive(Debug)]
struct ScheduleFree {
    /// Brings the parameters back after an exchange.
    back: Dispatch,
    /// That of the dispatch that copies, to bind where to.
    copy: Pipeline,
}

impl WindowAverages {
    /// The next exchange.
    fn exchange(&self, swapped: bool) -> &Dispatch {
        match &self.schedule_free {
            Some(schedule_free) if swapped => &schedule_free.back,
            _ => &self.exchange,
        }
    }

    /// What copies the averages of schedule-free training, in quads as the base.
    fn copy_to(&self, gpu: &Gpu, room: &wgpu::Buffer) -> Dispatch {
        let mut copy = self.settle.clone();
        if let Some(schedule_free) = &self.schedule_free {
            let buffers = [whole(&self.buffer), whole(room)];
            let group = copy.bind_groups.len();
            let bound = schedule_free.copy.bind(gpu.device(), group, &buffers);
            copy.bind_groups.push(bound);
        }
        copy
    }
}

impl OptimizerBuilder<Tensor> {
    /// Where the loss of a step is, for the regimes that go by it: a slice of one f32, written by the time the step runs.
    pub fn loss(mut self, loss: wgpu::BufferSlice) -> Self {
        self.loss = Some(loss.into());
        self
    }

    /// Checks everything, allocates everything, compiles the kernels.
    ///
    /// Memory on the device beside the caller's buffers: 4 bytes per parameter for momentum rules, 8 for AdamW (4 with `β₁ = 0`), 1 byte per parameter for the
    /// direction memory of Seesaw and Hypergradient on rules without momentum, 4 for the last gradient of the secant regimes or the first parameters of DoG and DoWG, 12 for the streams of AutoSgd, 4 for an
    /// [`Averaging`](crate::Averaging), 2 for [`Rounding::Masters`](crate::Rounding::Masters) of 16-bit parameters, otherwise nothing in proportion to
    /// the parameters.
    ///
    /// Parameters and gradients may lie in one buffer. That is fine on every native backend; browsers refuse it where the two
    /// interleave.
    ///
    /// # Errors
    /// A wrong number, length, offset, usage, overlap or limit, with its name; [`Error::Device`] where the device refuses
    /// memory or a kernel. Nothing has been written to the caller's buffers in any case.
    pub fn build(self, gpu: &Gpu) -> Result<Optimizer, Error> {
        gpu.check_alive()?;
        let limits = gpu.device().limits();
        let record_bytes = std::mem::size_of::<RawRecord>() as u64;
        let record_steps = self.record_steps_for(largest_binding(&limits) / record_bytes)?;
        gpu.tuning().validate(gpu.device())?;
        let (safeguards, rebindable, shard) = (self.safeguards, self.rebindable, self.shard);
        let accumulation = self.accumulation;
        let loss = self.loss.clone();
        let alignment = rebindable.then(|| binding_alignment(&limits));
        let (groups, buffers) = place_tensors(self.resolve()?, alignment)?;
        let needs_loss = groups.iter().find(|group| group.config.regime.needs_loss());
        let loss = match (needs_loss, loss) {
            (None, _) => None,
            (Some(_), Some(span)) => {
                span.check("loss", "loss")?;
                Some(span)
            }
            (Some(group), None) => {
                return Err(Error::MissingLoss {
                    group: group.config.name.clone(),
                    regime: group.config.regime.name(),
                });
            }
        };
        crate::plan::check_overlaps(
            groups.iter().flat_map(|group| group.tensors.iter()).map(|(name, place)| (name.as_str(), place)),
        )?;
        let geometry = Geometry { apart: rebindable, ..geometry(gpu, &limits) };
        let plan = Plan::new(groups, safeguards, accumulation, &geometry)?.sharded(shard);
        check_storage_buffers(&plan, &limits)?;
        gpu.scoped("the optimizer's buffers and kernels", || {
            Optimizer::allocate(gpu, plan, buffers, loss, record_steps, rebindable, &limits)
        })
    }
}

/// Refuses a kernel that has more buffers than the device can give it.
fn check_storage_buffers(plan: &Plan, limits: &wgpu::Limits) -> Result<(), Error> {
    let kernels = plan.windows.iter().map(|window| window.kernel);
    let most = kernels.map(most_storage_buffers).max().unwrap_or(0);
    let limit = limits.max_storage_buffers_per_shader_stage;
    if most <= limit {
        return Ok(());
    }
    Err(Error::Limit {
        what: "the number of storage buffers of a kernel".to_owned(),
        value: most.into(),
        limit: limit.into(),
        way_out: "ask the adapter for more when the device is created (max_storage_buffers_per_shader_stage), keep no master weights (Rounding::Nearest or Rounding::Stochastic), or leave out averaging, telemetry or the secant regimes",
    })
}

/// The caller's buffers, each with its number.
#[derive(Default)]
struct Numbered {
    numbers: HashMap<wgpu::Buffer, usize>,
    buffers: Vec<wgpu::Buffer>,
}

impl Numbered {
    /// Checks a tensor by itself, and where its bindings would start if that is asked.
    fn place(&mut self, name: &str, tensor: Tensor, alignment_bytes: Option<u64>) -> Result<Place, Error> {
        if let Some(alignment_bytes) = alignment_bytes {
            tensor.check_alignment(name, alignment_bytes)?;
        }
        let (params, grads, elements) = tensor.checked(name)?;
        Ok(Place {
            params: params.element,
            grads: grads.element,
            params_start: params.start(),
            params_buffer: self.number(params.buffer),
            grads_start: grads.start(),
            grads_buffer: self.number(grads.buffer),
            elements,
        })
    }

    fn number(&mut self, buffer: wgpu::Buffer) -> usize {
        *self.numbers.entry(buffer).or_insert_with_key(|buffer| {
            self.buffers.push(buffer.clone());
            self.buffers.len() - 1
        })
    }
}

/// Numbers the caller's buffers and checks each tensor by itself.
fn place_tensors(
    groups: Vec<ResolvedGroup<Tensor>>,
    alignment_bytes: Option<u64>,
) -> Result<(Vec<ResolvedGroup<Place>>, Vec<wgpu::Buffer>), Error> {
    let mut numbered = Numbered::default();
    let mut placed = Vec::with_capacity(groups.len());
    for group in groups {
        let mut tensors = Vec::with_capacity(group.tensors.len());
        for (name, tensor) in group.tensors {
            let place = numbered.place(&name, tensor, alignment_bytes)?;
            tensors.push((name, place));
        }
        placed.push(ResolvedGroup { config: group.config, tensors });
    }
    Ok((placed, numbered.buffers))
}

/// Trips of a loop that are safe: some drivers stop an invocation in silence after 65,535.
pub(crate) const MOST_TRIPS: u64 = 60_000;

/// Bytes that one binding can hold: 4 GiB at most, so that indices within it fit 32 bits with room to spare.
pub(crate) fn largest_binding(limits: &wgpu::Limits) -> u64 {
    limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(1 << 32)
}

/// What the start of a binding is a multiple of, in bytes.
fn binding_alignment(limits: &wgpu::Limits) -> u64 {
    u64::from(limits.min_storage_buffer_offset_alignment.max(16))
}

fn geometry(gpu: &Gpu, limits: &wgpu::Limits) -> Geometry {
    let element = u64::from(f32_bytes());
    let largest = largest_binding(limits);
    let binding_elements = largest / element / u64::from(QUAD) * u64::from(QUAD);
    let binding_alignment = binding_alignment(limits) / element;
    // A block must fit into a binding wherever it starts.
    let largest_block = binding_elements.saturating_sub(binding_alignment);
    Geometry {
        block_elements: u64::from(gpu.tuning().block_elements()).min(largest_block) as u32,
        partials_per_block: gpu.tuning().partials_per_block(),
        binding_elements,
        binding_alignment,
        dispatch_blocks: limits.max_compute_workgroups_per_dimension,
        scope_partials: u64::from(gpu.tuning().finish_workgroup_size) * MOST_TRIPS,
        quads_need_alignment: true,
        apart: false,
    }
}

const fn f32_bytes() -> u32 {
    std::mem::size_of::<f32>() as u32
}

impl Optimizer {
    fn allocate(
        gpu: &Gpu,
        plan: Plan,
        buffers: Vec<wgpu::Buffer>,
        loss: Option<Span>,
        record_steps: u32,
        rebindable: bool,
        limits: &wgpu::Limits,
    ) -> Result<Self, Error> {
        let device = gpu.device();
        let group_count = plan.groups.len() as u64;
        let grid = u64::from(limits.max_compute_workgroups_per_dimension);
        if plan.scopes.len() as u64 > grid {
            return Err(Error::Limit {
                what: "the number of separate norms".to_owned(),
                value: plan.scopes.len() as u64,
                limit: grid,
                way_out: "let groups share a norm, or use several optimizers",
            });
        }

        let initial: Vec<GroupState> = plan.first_states();
        let rates: Vec<f32> = initial.iter().map(|state| state.learning_rate).collect();
        let groups = filled(gpu, "groups", &plan.groups);
        let scopes = filled(gpu, "scopes", &plan.scopes);
        let states = filled(gpu, "states", &initial);
        let learning_rates = filled(gpu, "learning rates", &rates);
        let scale = plan.safeguards.loss_scaler;
        let scale = scale.map_or(1.0, |scaler| scaler.initial_scale);
        let loss_scale = filled(gpu, "loss scale", &[scale]);
        let sums = zeroed::<ScopeSums>(gpu, "sums", plan.scopes.len() as u64);
        let updates = zeroed::<Update>(gpu, "updates", group_count);
        let partials = zeroed::<u32>(gpu, "partials", u64::from(plan.partials) * u64::from(PARTIAL_WORDS));
        let records = zeroed::<RawRecord>(gpu, "records", u64::from(record_steps) * group_count);
        let recorded = plan.units.iter().filter(|unit| unit.tensor != NO_TENSOR);
        let recorded = recorded.count() as u32;
        let tensor_records = u64::from(record_steps) * u64::from(recorded);
        let most = largest_binding(limits) / std::mem::size_of::<RawTensorRecord>() as u64;
        if tensor_records > most {
            return Err(Error::Limit {
                what: "the number of records of tensors".to_owned(),
                value: tensor_records,
                limit: most,
                way_out: "ask for fewer steps with OptimizerBuilder::record_steps, or for telemetry of fewer groups",
            });
        }
        if plan.units.len() as u64 > grid {
            return Err(Error::Limit {
                what: "the number of tensors and groups that are measured".to_owned(),
                value: plan.units.len() as u64,
                limit: grid,
                way_out: "ask for telemetry of fewer groups, or use several optimizers",
            });
        }
        let tensor_records = zeroed::<RawTensorRecord>(gpu, "records of tensors", tensor_records);
        let step_partials = zeroed::<StepSums>(
            gpu,
            "partial sums of the step",
            if plan.units.is_empty() { 0 } else { plan.windows.iter().map(|window| window.blocks.len() as u64).sum() },
        );

        let tables = Tables {
            step_partials: &step_partials,
            groups: &groups,
            states: &states,
            updates: &updates,
            partials: &partials,
        };
        let memories: Vec<WindowMemory> = plan.windows.iter().map(|window| WindowMemory::new(gpu, window)).collect();
        let Sweeps { reduce, update, averages, movables } = sweeps(gpu, &plan, &buffers, &memories, tables, rebindable);

        let kernels: Vec<Kernel> = plan.windows.iter().map(|window| window.kernel).collect();
        // A binding may only start at certain offsets.
        let loss = loss.map(|span| {
            let alignment = binding_alignment(limits) / u64::from(f32_bytes());
            let start = span.start() / alignment * alignment;
            let region = Region { buffer: 0, element: span.element, start, end: span.start() + 1 };
            (span.buffer.clone(), region, (span.start() - start) as u32)
        });
        let finish = finish_reduction::pipeline(gpu, &gpu.tuning(), &kernels, loss.as_ref().map(|(.., at)| *at));
        let no_loss = zeroed::<f32>(gpu, "no loss", 0);
        let mut scalar = vec![Dispatch {
            pass: PassName::FinishReduction,
            bind_groups: vec![finish.bind(
                device,
                0,
                &[
                    whole(&scopes),
                    whole(&states),
                    whole(&partials),
                    whole(&sums),
                    match &loss {
                        Some((buffer, region, _)) => part(buffer, *region),
                        None => whole(&no_loss),
                    },
                ],
            )],
            pipeline: finish.pipeline.clone(),
            workgroups: plan.scopes.len() as u32,
        }];
        let of_groups = [
            whole(&groups),
            whole(&sums),
            whole(&states),
            whole(&updates),
            whole(&learning_rates),
            whole(&records),
            whole(&loss_scale),
        ];
        for rate in learning_rate::pipelines(gpu, &plan.groups) {
            scalar.push(Dispatch {
                pass: PassName::LearningRate,
                bind_groups: vec![rate.bind(device, 0, &of_groups)],
                pipeline: rate.pipeline,
                workgroups: (plan.groups.len() as u32).div_ceil(learning_rate::WORKGROUP),
            });
        }
        let mut step = [reduce, scalar, update].concat();
        if !plan.units.is_empty() {
            let units = filled::<StepUnit>(gpu, "units", &plan.units);
            let finish = finish_update::pipeline(gpu, &gpu.tuning(), record_steps);
            step.push(Dispatch {
                pass: PassName::FinishUpdate,
                bind_groups: vec![finish.bind(
                    device,
                    0,
                    &[whole(&units), whole(&step_partials), whole(&updates), whole(&states), whole(&tensor_records)],
                )],
                pipeline: finish.pipeline.clone(),
                workgroups: plan.units.len() as u32,
            });
        }
        Ok(Optimizer {
            gpu: gpu.clone(),
            sharded: shard::Sharded::new(gpu, &plan, &groups),
            plan,
            step,
            averages,
            averages_are_swapped: AtomicBool::new(false),
            learning_rates,
            loss_scale,
            states,
            sums,
            readback: Readback::new(device, "records", records.size() + tensor_records.size()),
            records,
            tensor_records,
            cursor: RecordCursor::default(),
            undelivered: Records::default(),
            rebindable,
            movables,
            halted: None,
            #[cfg(feature = "checkpoint")]
            kept: checkpoint::Kept { buffers, memories, updates },
        })
    }

    /// Records one step into the caller's encoder, in a compute pass of its own. The gradients must be complete by then.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], since wgpu would do nothing, in silence; [`Error::AveragesSwapped`] between two
    /// [`encode_swap_averages`](Optimizer::encode_swap_averages); [`Error::ShardedStep`] where other ranks have other parameters.
    pub fn encode_step(&self, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("wgpu-optim step"),
            timestamp_writes: None,
        });
        self.encode_step_in(&mut pass)
    }

    /// Records one step into the caller's compute pass.
    ///
    /// # Errors
    /// As [`Optimizer::encode_step`].
    pub fn encode_step_in(&self, pass: &mut wgpu::ComputePass) -> Result<(), Error> {
        self.gpu.check_alive()?;
        self.check_averages_in_place("a step")?;
        self.check_alone("encode_step")?;
        for dispatch in self.dispatches() {
            dispatch.encode(pass);
        }
        Ok(())
    }

    /// The dispatches of the next step, in order: for profilers, and for callers with an encoder of their own, who record
    /// no step while [`averages_are_swapped`](Optimizer::averages_are_swapped). Of one rank of several they are a step by its own gradients
    /// alone.
    pub fn dispatches(&self) -> &[Dispatch] {
        &self.step
    }

    /// The dispatches of the next [`encode_swap_averages`](Optimizer::encode_swap_averages), in order: for callers with an encoder of
    /// their own, who then call [`Optimizer::count_swap`].
    pub fn swap_dispatches(&self) -> impl Iterator<Item = &Dispatch> {
        let swapped = self.averages_are_swapped();
        let exchanges = self.averages.iter();
        exchanges.map(move |averages| averages.exchange(swapped))
    }

    /// Tells that the caller has recorded the [`swap_dispatches`](Optimizer::swap_dispatches), so that
    /// [`averages_are_swapped`](Optimizer::averages_are_swapped) is right, no step is recorded in between, and the next swap goes the other
    /// way.
    pub fn count_swap(&self) {
        self.averages_are_swapped.fetch_xor(true, Ordering::Relaxed);
    }

    /// Records the exchange of parameters and averages in the caller's buffers, in a compute pass of its own: what comes after it
    /// finds the averages where the parameters were, and evaluates them. A second call brings the parameters back; both are then
    /// what they were, bit for bit; those of [schedule-free](crate::Averaging::ScheduleFree) groups within one unit in the last place,
    /// see there. Groups without an [`Averaging`](crate::Averaging), and groups whose average has not started yet,
    /// keep their parameters throughout.
    ///
    /// Everything that is recorded counts: submit it all, in the order in which it was recorded.
    ///
    /// # Errors
    /// [`Error::NoAverages`] where no group keeps one, [`Error::DeviceLost`].
    pub fn encode_swap_averages(&self, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        self.gpu.check_alive()?;
        if !self.plan.configs.iter().any(|config| config.averaging.is_on()) {
            return Err(Error::NoAverages { owner: "the optimizer".to_owned() });
        }
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("wgpu-optim averages"),
            timestamp_writes: None,
        });
        for dispatch in self.swap_dispatches() {
            dispatch.encode(&mut pass);
        }
        self.count_swap();
        Ok(())
    }

    /// Whether, after all that was recorded so far, the averages lie where the parameters belong, and the other way round. No step can
    /// be recorded then.
    pub fn averages_are_swapped(&self) -> bool {
        self.averages_are_swapped.load(Ordering::Relaxed)
    }

    /// Records a copy of a tensor's averages, in the tensor's own order, into a slice of its length that the caller owns. Where the
    /// average has not started yet, it is a copy of the parameters. Of a [schedule-free](crate::Averaging::ScheduleFree) group it takes
    /// 4 more bytes on the device for each of the tensor's elements until the copy has been made. `tensor` is an index into [`tensors`](Optimizer::tensors).
    ///
    /// # Errors
    /// [`Error::UnknownTensor`]; [`Error::NoAverages`] where the tensor's group keeps none; [`Error::AveragesSwapped`] while the
    /// averages are in the caller's own buffers; [`Error::AveragesLength`], [`Error::Misaligned`] or [`Error::MissingUsage`]
    /// (`COPY_DST`) for the slice; [`Error::DeviceLost`].
    pub fn encode_copy_averages(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        tensor: usize,
        destination: wgpu::BufferSlice,
    ) -> Result<(), Error> {
        self.gpu.check_alive()?;
        let tensor = self.averaged_tensor(tensor)?;
        self.check_averages_in_place("a copy of the averages")?;
        let destination = Span::from(destination);
        destination.check_destination(&tensor.name, tensor.elements)?;
        let windows = self.averages.iter().filter_map(|averages| {
            let window = &self.plan.windows[averages.window];
            let stretches = window.stretches_of(tensor);
            (!stretches.is_empty()).then_some((averages, window, stretches))
        });
        let parts: Vec<(Dispatch, wgpu::Buffer, Vec<Stretch>)> =
            if self.plan.configs[tensor.group].averaging == Averaging::ScheduleFree {
                // These averages are nowhere kept: they need room until the copy is made.
                self.gpu.scoped("room for a copy of the averages", || {
                    let parts = windows.map(|(averages, window, stretches)| {
                        let bytes = window.memory_bytes(MemoryKind::BaseIterates);
                        let room = zeroed::<u8>(&self.gpu, "a copy of the averages", bytes);
                        (averages.copy_to(&self.gpu, &room), room, stretches)
                    });
                    Ok::<_, Error>(parts.collect())
                })?
            } else {
                let parts = windows.map(|(averages, _, stretches)| {
                    let settle = averages.settle.clone();
                    (settle, averages.buffer.clone(), stretches)
                });
                parts.collect()
            };
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some("wgpu-optim averages"),
                timestamp_writes: None,
            });
            for (settle, ..) in &parts {
                settle.encode(&mut pass);
            }
        }
        let element = u64::from(f32_bytes());
        for (_, buffer, stretches) in &parts {
            for stretch in stretches {
                encoder.copy_buffer_to_buffer(
                    buffer,
                    stretch.in_memory * element,
                    &destination.buffer,
                    (destination.start() + stretch.in_tensor) * element,
                    stretch.elements * element,
                );
            }
        }
        Ok(())
    }

    /// A tensor's averages, for tests and for the curious: see [`encode_copy_averages`](Optimizer::encode_copy_averages). Waits for
    /// the device.
    ///
    /// # Errors
    /// As [`encode_copy_averages`](Optimizer::encode_copy_averages); [`Error::Device`] or [`Error::Readback`].
    pub async fn read_averages(&self, tensor: usize) -> Result<Vec<f32>, Error> {
        let elements = self.averaged_tensor(tensor)?.elements;
        let bytes = elements * u64::from(f32_bytes());
        let buffer = self.gpu.scoped("a copy of the averages", || {
            Ok::<_, Error>(zeroed::<f32>(&self.gpu, "a copy of the averages", elements))
        })?;
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        self.encode_copy_averages(&mut encoder, tensor, buffer.slice(..bytes))?;
        self.gpu.queue().submit([encoder.finish()]);
        let mut averages = self.gpu.read_buffer("averages", &buffer).await?;
        // The buffer is padded to 16 bytes.
        averages.truncate(elements as usize);
        Ok(averages)
    }

    /// The tensor, where it has averages.
    fn averaged_tensor(&self, index: usize) -> Result<&TensorInfo, Error> {
        let tensors = &self.plan.tensors;
        let tensor = tensors.get(index).ok_or(Error::UnknownTensor { index, tensors: tensors.len() })?;
        if self.plan.configs[tensor.group].averaging.is_on() {
            Ok(tensor)
        } else {
            Err(Error::NoAverages { owner: format!("tensor \"{}\"", tensor.name) })
        }
    }

    fn check_averages_in_place(&self, what: &'static str) -> Result<(), Error> {
        if self.averages_are_swapped() { Err(Error::AveragesSwapped { what }) } else { Ok(()) }
    }

    /// The learning rates on the device: one f32 per group, in the order of declaration, then padding to 16 bytes; usable as a
    /// read-only storage buffer or as the source of a copy. 0 until the first non-zero gradient, unless the regime was given a first rate.
    pub fn learning_rates(&self) -> &wgpu::Buffer {
        &self.learning_rates
    }

    /// The scale of the loss on the device: one f32, a power of two, then padding to 16 bytes; usable as
    /// [`learning_rates`](Optimizer::learning_rates) is. What the gradients of the next step are to be multiplied by; 1 without a
    /// [`LossScaler`](crate::LossScaler).
    pub fn loss_scale(&self) -> &wgpu::Buffer {
        &self.loss_scale
    }

    /// The groups' settings, with every default filled in.
    pub fn groups(&self) -> &[GroupConfig] {
        &self.plan.configs
    }

    /// The tensors, in the order of declaration; [`NonFinite::tensor`](crate::NonFinite::tensor) is an index into them.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.plan.tensors
    }

    /// The device this optimizer lives on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Fetches the records of all steps submitted so far and not drained before. Waits for the device, but holds up no step.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] or [`Error::Readback`]; [`Error::Halted`] by [`NonFinitePolicy::Error`](crate::NonFinitePolicy::Error), again
    /// and again until [`resume`](Optimizer::resume) is called. No record is lost by an error: the next drain that succeeds brings it.
    pub async fn drain_records(&mut self) -> Result<Records, Error> {
        self.check_halted()?;
        self.fetch_records().await?;
        self.check_halted()?;
        Ok(std::mem::take(&mut self.undelivered))
    }

    async fn fetch_records(&mut self) -> Result<(), Error> {
        if self.readback.is_in_flight() {
            self.finish_drain().await?;
        }
        let rings = [&self.records, &self.tensor_records].map(Source::whole);
        self.readback.start(&self.gpu, &rings)?;
        self.finish_drain().await
    }

    async fn finish_drain(&mut self) -> Result<(), Error> {
        let (plan, cursor) = (&self.plan, &mut self.cursor);
        let middle = self.records.size() as usize;
        let records = self.readback.wait(&self.gpu, |bytes| cursor.read(bytes.split_at(middle), plan)).await?;
        self.keep(records);
        Ok(())
    }

    fn keep(&mut self, records: Records) {
        // The last one tells how things stood when the copy was made.
        if let Some(last) = records.records.last() {
            self.halted = self.plan.halted(last);
        }
        self.undelivered.append(records);
    }

    fn check_halted(&self) -> Result<(), Error> {
        self.halted.clone().map_or(Ok(()), Err)
    }

    /// Lets training go on after [`Error::Halted`], from where it was before the steps that were skipped; the count of skips in a row
    /// starts anew. Steps submitted before this call stay skipped, those submitted later are taken. Waits for the device, and does no harm
    /// where nothing has halted.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] or [`Error::Readback`]; training stays halted then.
    pub async fn resume(&mut self) -> Result<(), Error> {
        // Whatever of it tells of the halt has been read afterwards.
        self.fetch_records().await?;
        for group in 0..self.plan.groups.len() {
            for field in [std::mem::offset_of!(GroupState, skips_in_row), std::mem::offset_of!(GroupState, halted)] {
                let at = group * std::mem::size_of::<GroupState>() + field;
                let queue = self.gpu.queue();
                queue.write_buffer(&self.states, at as u64, bytemuck::bytes_of(&0u32));
            }
        }
        self.halted = None;
        Ok(())
    }

    /// Fetches records without ever waiting: starts a copy, or hands over what an earlier call started if it has arrived.
    ///
    /// # Errors
    /// As [`Optimizer::drain_records`].
    pub fn try_drain_records(&mut self) -> Result<Option<Records>, Error> {
        self.check_halted()?;
        let (plan, cursor) = (&self.plan, &mut self.cursor);
        let middle = self.records.size() as usize;
        let arrived = self.readback.try_finish(&self.gpu, |bytes| cursor.read(bytes.split_at(middle), plan))?;
        let any = arrived.is_some();
        self.keep(arrived.unwrap_or_default());
        self.check_halted()?;
        let rings = [&self.records, &self.tensor_records].map(Source::whole);
        self.readback.start(&self.gpu, &rings)?;
        Ok(any.then(|| std::mem::take(&mut self.undelivered)))
    }

    /// The state of every group, for tests and for the curious. Waits for the device.
    ///
    /// # Errors
    /// As [`Optimizer::drain_records`].
    pub async fn read_states(&self) -> Result<Vec<GroupState>, Error> {
        self.gpu.read_buffer("states", &self.states).await
    }

    /// What the last step's reduction measured, per scope. Waits for the device.
    ///
    /// # Errors
    /// As [`Optimizer::drain_records`].
    pub async fn read_sums(&self) -> Result<Vec<ScopeSums>, Error> {
        self.gpu.read_buffer("sums", &self.sums).await
    }
}

/// The buffers of whole optimizers that sweeps read or write.
#[derive(Clone, Copy)]
struct Tables<'a> {
    step_partials: &'a wgpu::Buffer,
    groups: &'a wgpu::Buffer,
    states: &'a wgpu::Buffer,
    updates: &'a wgpu::Buffer,
    partials: &'a wgpu::Buffer,
}

/// What is remembered of a window's parameters.
#[derive(Debug)]
struct WindowMemory {
    /// A buffer of each kind that the window's kernel keeps. That of the momentum has the squares behind it.
    kinds: Vec<(MemoryKind, wgpu::Buffer)>,
}

impl WindowMemory {
    fn new(gpu: &Gpu, window: &Window) -> Self {
        // Squares are kept where the momentum is, if there is one.
        let behind_momentum = window.kernel.keeps(MemoryKind::Momentum);
        let own = |kind: &MemoryKind| *kind != MemoryKind::SecondMoment || !behind_momentum;
        let kinds = window.kernel.memories().filter(own).map(|kind| {
            let behind = match kind {
                MemoryKind::Momentum if window.kernel.keeps(MemoryKind::SecondMoment) => {
                    window.memory_bytes(MemoryKind::SecondMoment)
                }
                _ => 0,
            };
            let bytes = window.memory_bytes(kind) + behind;
            (kind, zeroed::<u8>(gpu, kind.name(), bytes))
        });
        WindowMemory { kinds: kinds.collect() }
    }

    /// The first of these kinds that there is.
    fn find(&self, wanted: &[MemoryKind]) -> Option<&wgpu::Buffer> {
        let mut kinds = self.kinds.iter();
        let (_, buffer) = kinds.find(|(kind, _)| wanted.contains(kind))?;
        Some(buffer)
    }

    /// A kind that is kept: the buffer, and its first byte there.
    #[cfg(feature = "checkpoint")]
    fn place_of(&self, window: &Window, kind: MemoryKind) -> Option<(&wgpu::Buffer, u64)> {
        let (place, start) = match kind {
            MemoryKind::SecondMoment if window.kernel.keeps(MemoryKind::Momentum) => {
                (MemoryKind::Momentum, window.memory_bytes(MemoryKind::Momentum))
            }
            kind => (kind, 0),
        };
        Some((self.find(&[place])?, start))
    }
}

/// What a rule remembers in a buffer of its own: squares only where there is no momentum.
const OF_THE_RULE: [MemoryKind; 2] = [MemoryKind::Momentum, MemoryKind::SecondMoment];

/// What a regime remembers, of which there is one kind at most.
const OF_THE_REGIME: [MemoryKind; 4] =
    [MemoryKind::Counters, MemoryKind::LastGradient, MemoryKind::FirstParameters, MemoryKind::Streams];

/// What is bound where nothing is kept. Two, since one of them may be read while the other is written.
fn no_memory(gpu: &Gpu) -> [wgpu::Buffer; 2] {
    [(); 2].map(|()| zeroed::<u8>(gpu, "no memory", 0))
}

/// The bind group of a sweep that has the window's own buffers.
const OWN_BUFFERS: usize = 1;

/// What a sweep binds there beside parameters and gradients.
#[derive(Debug)]
struct OwnBuffers {
    blocks: wgpu::Buffer,
    momentum: wgpu::Buffer,
    /// What pass 1 compares the gradient with: the next, or z of schedule-free training, which pass 4 has in a bind group of its own.
    compared: wgpu::Buffer,
    memory: wgpu::Buffer,
    remainders: wgpu::Buffer,
}

impl OwnBuffers {
    /// Of the pass that measures, or of those that write.
    fn bindings<'a>(
        &'a self,
        sweep: Sweep,
        params: wgpu::BufferBinding<'a>,
        grads: wgpu::BufferBinding<'a>,
    ) -> [wgpu::BufferBinding<'a>; 6] {
        [
            whole(&self.blocks),
            params,
            grads,
            whole(&self.momentum),
            whole(if sweep == Sweep::Reduce { &self.compared } else { &self.memory }),
            whole(&self.remainders),
        ]
    }
}

/// The dispatches of passes 1 and 4, and what belongs to their windows.
#[derive(Default)]
struct Sweeps {
    reduce: Vec<Dispatch>,
    update: Vec<Dispatch>,
    averages: Vec<WindowAverages>,
    /// Of an optimizer that can be rebound.
    movables: Vec<Movable>,
}

fn sweeps(
    gpu: &Gpu,
    plan: &Plan,
    buffers: &[wgpu::Buffer],
    memories: &[WindowMemory],
    tables: Tables,
    rebindable: bool,
) -> Sweeps {
    let passes = Passes { gpu, rebindable };
    let mut sweeps = Sweeps::default();
    let nothing = no_memory(gpu);
    for (index, (window, memory)) in plan.windows.iter().zip(memories).enumerate() {
        let momentum = memory.find(&OF_THE_RULE);
        let regimes = memory.find(&OF_THE_REGIME).unwrap_or(&nothing[1]);
        let base_iterates =
            window.kernel.compares_iterates().then(|| memory.find(&[MemoryKind::BaseIterates])).flatten();
        let remainders = memory.find(&[MemoryKind::Remainders]);
        let buffers_of_window = OwnBuffers {
            remainders: remainders.unwrap_or(&nothing[1]).clone(),
            blocks: filled::<Block>(gpu, "blocks", &window.blocks),
            momentum: momentum.unwrap_or(&nothing[0]).clone(),
            compared: base_iterates.unwrap_or(regimes).clone(),
            memory: regimes.clone(),
        };
        let own_of = |sweep| {
            buffers_of_window.bindings(
                sweep,
                part(&buffers[window.params.buffer], window.params),
                part(&buffers[window.grads.buffer], window.grads),
            )
        };
        let own = own_of(Sweep::Update);
        let measured = [whole(tables.groups), whole(tables.states), whole(tables.partials)];
        let reduce = passes.dispatch(Sweep::Reduce, window, &[&measured, &own_of(Sweep::Reduce)]);
        let averaged = memory.find(&[MemoryKind::Averages, MemoryKind::BaseIterates]);
        let (update, averages) = passes.update(index, window, tables, &own, averaged);
        if rebindable {
            let group = |dispatch: &Dispatch| dispatch.bind_groups[OWN_BUFFERS].clone();
            let bound = rebind::Sweeps {
                reduce: group(&reduce),
                update: group(&update),
                averages: averages.as_ref().map(|own| [group(&own.exchange), group(&own.settle)]),
            };
            let pipeline = |sweep| passes.compiled(sweep, window);
            let pipelines = rebind::Sweeps {
                reduce: pipeline(Sweep::Reduce),
                update: pipeline(Sweep::Update),
                averages: window.kernel.averages.then(|| [Sweep::Exchange, Sweep::Settle].map(pipeline)),
            };
            let own = buffers_of_window;
            let movable = Movable::new(plan, window, buffers, own, pipelines, bound);
            sweeps.movables.push(movable);
        }
        sweeps.reduce.push(reduce);
        sweeps.update.push(update);
        sweeps.averages.extend(averages);
    }
    sweeps
}

/// A pass over a window's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Sweep {
    Reduce,
    Update,
    /// Exchanges parameters and averages.
    Exchange,
    /// Brings parameters back that were exchanged with averages which are nowhere kept.
    Back,
    /// Fills averages that have not started, or copies those that are nowhere kept.
    Settle,
}

impl Sweep {
    fn pass(self) -> PassName {
        match self {
            Sweep::Reduce => PassName::ReduceGradient,
            Sweep::Update => PassName::UpdateParameters,
            Sweep::Exchange | Sweep::Back | Sweep::Settle => PassName::SwapAverages,
        }
    }
}

/// The sweeps over windows, bound to what they work on.
#[derive(Clone, Copy)]
struct Passes<'a> {
    gpu: &'a Gpu,
    /// Whether parameters and gradients may come to lie in one buffer, wherever they are now.
    rebindable: bool,
}

impl Passes<'_> {
    /// Pass 4, and the window's averages where it keeps some in this buffer.
    fn update(
        self,
        index: usize,
        window: &Window,
        tables: Tables,
        own: &[wgpu::BufferBinding],
        averages: Option<&wgpu::Buffer>,
    ) -> (Dispatch, Option<WindowAverages>) {
        let updates = [whole(tables.updates)];
        let step_partials = whole(tables.step_partials);
        let Some(buffer) = averages else {
            let update = if window.kernel.step_sums {
                // There are no averages, so that nothing is bound in their place.
                let measured = [step_partials.clone(), step_partials];
                self.dispatch(Sweep::Update, window, &[&updates, own, &measured])
            } else {
                self.dispatch(Sweep::Update, window, &[&updates, own])
            };
            return (update, None);
        };
        let memory = [whole(buffer)];
        let groups: [&[_]; 3] = [&updates, own, &memory];
        let exchange = self.dispatch(Sweep::Exchange, window, &groups);
        let (settle, schedule_free) = if window.kernel.schedule_free {
            let settle = self.dispatch(Sweep::Settle, window, &groups[..OWN_BUFFERS + 1]);
            let schedule_free = ScheduleFree {
                back: self.dispatch(Sweep::Back, window, &groups),
                copy: self.compiled(Sweep::Settle, window),
            };
            (settle, Some(schedule_free))
        } else {
            (self.dispatch(Sweep::Settle, window, &groups), None)
        };
        let update = if window.kernel.step_sums {
            let measured = [whole(buffer), step_partials];
            self.dispatch(Sweep::Update, window, &[&updates, own, &measured])
        } else {
            self.dispatch(Sweep::Update, window, &groups)
        };
        let averages = WindowAverages { window: index, buffer: buffer.clone(), exchange, settle, schedule_free };
        (update, Some(averages))
    }

    /// A sweep over a window, with the buffers of its bind groups.
    fn dispatch(self, sweep: Sweep, window: &Window, groups: &[&[wgpu::BufferBinding]]) -> Dispatch {
        let device = self.gpu.device();
        let pipeline = self.compiled(sweep, window);
        Dispatch {
            pass: sweep.pass(),
            bind_groups: groups
                .iter()
                .enumerate()
                .map(|(index, buffers)| pipeline.bind(device, index, buffers))
                .collect(),
            pipeline: pipeline.pipeline.clone(),
            workgroups: window.blocks.len() as u32,
        }
    }

    fn compiled(self, sweep: Sweep, window: &Window) -> Pipeline {
        let (kernel, access) = (window.kernel, window.access);
        let (gpu, tuning) = (self.gpu, self.gpu.tuning());
        let exchange = match (sweep, kernel.schedule_free) {
            (Sweep::Reduce, _) => return reduce_gradient::pipeline(gpu, &tuning, kernel, access),
            (Sweep::Update, _) => {
                // The other passes do not write beside what they read: they do not care.
                let one_buffer = self.rebindable || window.params.buffer == window.grads.buffer;
                return update_parameters::pipeline(gpu, &tuning, kernel, access, one_buffer);
            }
            (Sweep::Exchange, false) => Exchange::Swap,
            (Sweep::Back | Sweep::Settle, false) => Exchange::Settle,
            (Sweep::Exchange, true) => Exchange::ToAverage,
            (Sweep::Back, true) => Exchange::Back,
            (Sweep::Settle, true) => Exchange::Copy,
        };
        swap_averages::pipeline(gpu, &tuning, kernel, access, exchange)
    }
}

fn whole(buffer: &wgpu::Buffer) -> wgpu::BufferBinding<'_> {
    wgpu::BufferBinding { buffer, offset: 0, size: None }
}

fn part(buffer: &wgpu::Buffer, region: Region) -> wgpu::BufferBinding<'_> {
    wgpu::BufferBinding { buffer, offset: region.start_bytes(), size: wgpu::BufferSize::new(region.bytes()) }
}

/// A buffer of at least one item, so that it can be bound; wgpu fills it with zeros.
fn zeroed<T>(gpu: &Gpu, label: &str, items: u64) -> wgpu::Buffer {
    gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: (items.max(1) * std::mem::size_of::<T>() as u64).next_multiple_of(16),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

fn filled<T: Pod>(gpu: &Gpu, label: &str, items: &[T]) -> wgpu::Buffer {
    let buffer = zeroed::<T>(gpu, label, items.len() as u64);
    gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(items));
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::past_two_to_the_32::{RINGS, START, STEPS, check};
    use crate::{Group, Rule};

    #[test]
    fn the_ring_is_whole_past_two_to_the_32_steps() {
        let adapters = pollster::block_on(Gpu::adapters(None));
        assert!(!adapters.is_empty(), "no adapter");
        for adapter in adapters {
            let gpu = pollster::block_on(Gpu::open(&adapter)).expect("opens");
            for ring in RINGS {
                for n in STEPS {
                    let buffer = zeroed::<f32>(&gpu, "both", 32);
                    let (w, g) = (buffer.slice(..64), buffer.slice(64..));
                    let mut optimizer = OptimizerBuilder::new(Rule::sgd())
                        .record_steps(ring)
                        .group(Group::new("all").tensor("w", w, g))
                        .build(&gpu)
                        .expect("builds");
                    let at = std::mem::offset_of!(GroupState, steps_low) as u64;
                    let start = bytemuck::bytes_of(&START);
                    gpu.queue().write_buffer(&optimizer.states, at, start);
                    let mut encoder = gpu.device().create_command_encoder(&Default::default());
                    for _ in 0..n {
                        optimizer.encode_step(&mut encoder).expect("alive");
                    }
                    gpu.queue().submit([encoder.finish()]);
                    let drained = pollster::block_on(optimizer.drain_records()).expect("arrives");
                    check(ring, n, drained, &gpu.describe());
                }
            }
        }
    }

    /// AdamW's bias corrections on every adapter, from counts of steps that no test could take, in ulps of what they are in f64.
    #[test]
    fn bias_corrections_are_right_after_any_number_of_steps() {
        for adapter in pollster::block_on(Gpu::adapters(None)) {
            let gpu = pollster::block_on(Gpu::open(&adapter)).expect("opens");
            let buffer = zeroed::<f32>(&gpu, "both", 32);
            let (w, g) = (buffer.slice(..64), buffer.slice(64..));
            let (beta1, beta2) = (0.9, 0.999);
            let optimizer = OptimizerBuilder::new(Rule::adamw())
                .group(Group::new("all").tensor("w", w, g))
                .build(&gpu)
                .expect("builds");
            for taken in [0, 1, 2, 9, 99, 999, 9_999, (1 << 24) - 1, 1 << 24, u64::from(u32::MAX), 1 << 40] {
                let words = [taken as u32, (taken >> 32) as u32];
                let at = std::mem::offset_of!(GroupState, steps_low) as u64;
                let queue = gpu.queue();
                queue.write_buffer(&optimizer.states, at, bytemuck::cast_slice(&words));
                let mut encoder = gpu.device().create_command_encoder(&Default::default());
                optimizer.encode_step(&mut encoder).expect("alive");
                queue.submit([encoder.finish()]);
                let state = pollster::block_on(optimizer.read_states()).expect("arrives")[0];
                let less_power = |beta: f32| -(f64::from(beta).ln() * (taken + 1) as f64).exp_m1();
                for (got, exact) in [
                    (state.first_correction, 1.0 / less_power(beta1)),
                    (state.second_correction, 1.0 / less_power(beta2).sqrt()),
                ] {
                    let unit = f64::from(f32::EPSILON) * exact.log2().floor().exp2();
                    let ulps = (f64::from(got) - exact).abs() / unit;
                    // WGSL allows a quotient 2.5.
                    assert!(
                        ulps <= 5.0,
                        "{}, after {taken} steps: {got} instead of {exact}, {ulps:.1} ulps",
                        gpu.describe()
                    );
                }
            }
        }
    }
}
