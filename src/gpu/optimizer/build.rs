//! Building an optimizer on the device: checks, buffers and dispatches.

use std::collections::HashMap;

use super::control::Presence;
use super::rebind::{Layout, Rebinding};
use super::sweeps::{Passes, Sweeps, Tables, WindowMemory, sweeps};
use super::*;
use crate::error::{BuildError, Error, require};
use crate::gpu::buffers::{filled, part, table_factors, whole, zeroed};
use crate::gpu::context::Gpu;
use crate::gpu::limits::{self, MOST_TRIPS, binding_alignment, largest_binding};
use crate::gpu::readback::Readback;
use crate::gpu::sweep::most_storage_buffers;
use crate::gpu::tensor::{Tensor, check_alignment, checked};
use crate::gpu::whole_step::{self, WholeStep};
use crate::gpu::{finish_reduction, finish_update, learning_rate};
use crate::group::TensorSlice;
use crate::group::{OptimizerBuilder, ResolvedGroup};
use crate::layout::{
    GroupState, NO_TENSOR, PARTIAL_WORDS, RawRecord, RawTensorRecord, ScopeSums, StepSums, StepUnit, Update, no_totals,
};
use crate::plan::{Geometry, Kernel, Place, Plan, QUAD};
use crate::record::{RecordCursor, Records};
use crate::state::BLOCK;

impl OptimizerBuilder<Tensor> {
    /// Sets the slice of one f32 that holds the loss of a step, for regimes that use it. The loss must be written before the step runs.
    pub fn loss(mut self, loss: wgpu::BufferSlice) -> Self {
        self.loss = Some(loss.tensor());
        self
    }

    /// Builds the optimizer: checks all settings, allocates all memory and compiles the kernels.
    ///
    /// The optimizer takes this memory on the device in addition to the caller's buffers, in bytes per parameter:
    ///
    /// - 4 for momentum rules, 8 for AdamW (4 with `β₁ = 0`), and 1.125 and 2.125 with [`State::Bits8`](crate::State::Bits8).
    /// - 12 for AMSGrad and for Muon. Muon also takes two squares of each matrix's short side.
    /// - With Adafactor, 4 bytes for each row and column.
    /// - 1 for the direction memory of Seesaw and Hypergradient on rules without momentum.
    /// - 4 for the last gradient of the secant regimes, the first parameters of DoG and DoWG, or the displacement of Mechanic.
    /// - 8 for the first parameters and the sum of gradients of Prodigy.
    /// - 12 for the streams of AutoSgd.
    /// - 4 for an [`Averaging`](crate::Averaging).
    /// - 2 for [`Rounding::Masters`](crate::Rounding::Masters) of 16-bit parameters, or 1 with [`State::Bits8`](crate::State::Bits8) and without
    ///   an average.
    ///
    /// No other memory grows in proportion to the parameters.
    ///
    /// Parameters and gradients may share one buffer on every native backend. Browsers refuse this if the two interleave.
    ///
    /// # Errors
    /// Returns an error that names the wrong number, length, offset, usage, overlap or limit. Returns
    /// [`ErrorKind::DeviceRefused`](crate::ErrorKind::DeviceRefused) if the device refuses memory or a kernel. The caller's buffers are never
    /// written.
    pub fn build(self, gpu: &Gpu) -> Result<Optimizer, Error> {
        gpu.check_alive()?;
        let limits = gpu.device().limits();
        limits::check(&limits)?;
        let record_steps = self.record_steps_for(largest_binding(&limits))?;
        gpu.tuning().validate(gpu.device())?;
        let (safeguards, rebindable, shard) = (self.safeguards, self.rebindable, self.shard);
        let separate_passes = self.separate_passes || rebindable;
        let (accumulation, absent_gradients) = (self.accumulation, self.absent_gradients);
        let loss = self.loss.clone();
        let alignment = rebindable.then(|| binding_alignment(&limits));
        let (groups, buffers) = place_tensors(self.resolve()?, alignment)?;
        let needs_loss = groups.iter().find(|group| group.config.regime.needs_loss());
        let loss = match (needs_loss, loss) {
            (None, _) => None,
            (Some(_), Some(span)) => {
                span.check("loss", "loss")?;
                span.check_scalar("loss")?;
                Some(span)
            }
            (Some(group), None) => {
                return Err(Error::from(BuildError::MissingLoss {
                    group: group.config.name.clone(),
                    regime: group.config.regime.name(),
                }));
            }
        };
        crate::plan::check_overlaps(
            groups.iter().flat_map(|group| group.tensors.iter()).map(|one| (one.name.as_str(), &one.tensor)),
        )?;
        let elements: u64 = groups.iter().flat_map(|group| group.tensors.iter().map(|one| one.tensor.elements)).sum();
        let geometry = Geometry {
            movable: rebindable,
            joins: !(rebindable || absent_gradients),
            one_access: !rebindable && elements <= whole_step::MOST_ELEMENTS,
            ..geometry(gpu, &limits)
        };
        let plan = Plan::new(groups, safeguards, accumulation, &geometry)?.sharded(shard);
        check_storage_buffers(&plan, &limits)?;
        check_workgroup(&plan, gpu.tuning().workgroup_size)?;
        gpu.scoped("the optimizer's buffers and kernels", || {
            let kind = Kind { record_steps, rebindable, separate_passes };
            Optimizer::allocate(gpu, plan, buffers, loss, kind, &limits)
        })
    }
}

/// Returns an error if a kernel has more buffers than the device can bind.
pub(super) fn check_storage_buffers(plan: &Plan, limits: &wgpu::Limits) -> Result<(), Error> {
    let kernels = plan.windows.iter().map(|window| window.kernel);
    let most = kernels.map(most_storage_buffers).max().unwrap_or(0);
    let limit = limits.max_storage_buffers_per_shader_stage;
    if most <= limit {
        return Ok(());
    }
    Err(Error::from(BuildError::Limit {
        what: "the number of storage buffers of a kernel".to_owned(),
        value: most.into(),
        limit: limit.into(),
        way_out: "ask the adapter for more when the device is created (max_storage_buffers_per_shader_stage), keep no master weights (Rounding::Nearest or Rounding::Stochastic) or no average, or use a regime that keeps no last gradient",
    }))
}

/// Returns an error if a workgroup has too few invocations to find the scale of a block of 8-bit state together.
pub(super) fn check_workgroup(plan: &Plan, workgroup_size: u32) -> Result<(), Error> {
    require(
        workgroup_size >= BLOCK / QUAD || !plan.windows.iter().any(|window| window.kernel.bits8),
        || "tuning".to_owned(),
        "workgroup_size",
        workgroup_size,
        "at least 8 with State::Bits8, whose scales are found by 8 invocations together",
    )
}

/// The caller's buffers, each with its number.
#[derive(Default)]
pub(in crate::gpu) struct Numbered {
    pub(super) numbers: HashMap<wgpu::Buffer, usize>,
    pub(in crate::gpu) buffers: Vec<wgpu::Buffer>,
}

impl Numbered {
    /// Checks a tensor by itself, and optionally where its bindings would start.
    pub(super) fn place(
        &mut self,
        name: &str,
        tensor: [Tensor; 2],
        alignment_bytes: Option<u64>,
    ) -> Result<Place, Error> {
        if let Some(alignment_bytes) = alignment_bytes {
            check_alignment(name, &tensor, alignment_bytes)?;
        }
        let elements = checked(name, &tensor)?;
        let [params, grads] = tensor;
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

    pub(in crate::gpu) fn number(&mut self, buffer: wgpu::Buffer) -> usize {
        *self.numbers.entry(buffer).or_insert_with_key(|buffer| {
            self.buffers.push(buffer.clone());
            self.buffers.len() - 1
        })
    }
}

/// Numbers the caller's buffers and checks each tensor by itself.
pub(super) fn place_tensors(
    groups: Vec<ResolvedGroup<[Tensor; 2]>>,
    alignment_bytes: Option<u64>,
) -> Result<(Vec<ResolvedGroup<Place>>, Vec<wgpu::Buffer>), Error> {
    let mut numbered = Numbered::default();
    let mut placed = Vec::with_capacity(groups.len());
    for group in groups {
        let mut tensors = Vec::with_capacity(group.tensors.len());
        for tensor in group.tensors {
            let place = numbered.place(&tensor.name, tensor.tensor.clone(), alignment_bytes)?;
            tensors.push(tensor.with(place));
        }
        placed.push(ResolvedGroup { config: group.config, tensors });
    }
    Ok((placed, numbered.buffers))
}

pub(in crate::gpu) fn geometry(gpu: &Gpu, limits: &wgpu::Limits) -> Geometry {
    let element = u64::from(f32_bytes());
    let largest = largest_binding(limits);
    let binding_elements = largest / element / u64::from(QUAD) * u64::from(QUAD);
    let binding_alignment = binding_alignment(limits) / element;
    // A block must fit into a binding for every start.
    let largest_block = binding_elements.saturating_sub(binding_alignment);
    Geometry {
        block_elements: u64::from(gpu.tuning().block_elements()).min(largest_block) as u32,
        partials_per_block: gpu.tuning().partials_per_block(),
        binding_elements,
        binding_alignment,
        dispatch_blocks: limits.max_compute_workgroups_per_dimension,
        scope_partials: u64::from(gpu.tuning().finish_workgroup_size) * MOST_TRIPS,
        quads_need_alignment: true,
        movable: false,
        joins: true,
        one_access: false,
    }
}

/// Settings of the optimizer as a whole.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    /// Number of steps that the ring of records holds.
    record_steps: u32,
    rebindable: bool,
    /// True if a step must not be a single dispatch.
    separate_passes: bool,
}

pub(super) const fn f32_bytes() -> u32 {
    std::mem::size_of::<f32>() as u32
}

impl Optimizer {
    pub(super) fn allocate(
        gpu: &Gpu,
        plan: Plan,
        buffers: Vec<wgpu::Buffer>,
        loss: Option<Tensor>,
        Kind { record_steps, rebindable, separate_passes }: Kind,
        limits: &wgpu::Limits,
    ) -> Result<Self, Error> {
        let device = gpu.device();
        let group_count = plan.groups.len() as u64;
        let grid = u64::from(limits.max_compute_workgroups_per_dimension);
        if plan.scopes.len() as u64 > grid {
            return Err(Error::from(BuildError::Limit {
                what: "the number of separate norms".to_owned(),
                value: plan.scopes.len() as u64,
                limit: grid,
                way_out: "let groups share a norm, or use several optimizers",
            }));
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
        let sums = filled::<ScopeSums>(gpu, "sums", &vec![no_totals(); plan.scopes.len()]);
        let updates = zeroed::<Update>(gpu, "updates", group_count);
        let partials = zeroed::<u32>(gpu, "partials", u64::from(plan.partials) * u64::from(PARTIAL_WORDS));
        let records = zeroed::<RawRecord>(gpu, "records", u64::from(record_steps) * group_count);
        let recorded = plan.units.iter().filter(|unit| unit.tensor != NO_TENSOR);
        let recorded = recorded.count() as u32;
        let tensor_records = u64::from(record_steps) * u64::from(recorded);
        if plan.units.len() as u64 > grid {
            return Err(Error::from(BuildError::Limit {
                what: "the number of tensors and groups that are measured".to_owned(),
                value: plan.units.len() as u64,
                limit: grid,
                way_out: "ask for telemetry of fewer groups, or use several optimizers",
            }));
        }
        let tensor_records = zeroed::<RawTensorRecord>(gpu, "records of tensors", tensor_records);
        let step_partials = zeroed::<StepSums>(
            gpu,
            "partial sums of the step",
            if plan.units.is_empty() { 0 } else { plan.windows.iter().map(|window| window.blocks.len() as u64).sum() },
        );

        let tables = Tables {
            step_partials: step_partials.clone(),
            records: records.clone(),
            groups: groups.clone(),
            states: states.clone(),
            updates: updates.clone(),
            partials: partials.clone(),
        };
        let memories = plan.memory_windows().iter().map(|window| WindowMemory::new(gpu, &plan, window));
        let memories: Vec<WindowMemory> = memories.collect();
        let loss = loss.map(|span| {
            let (region, at) = span.scalar_region(limits);
            (span.buffer, region, at)
        });
        let of_loss = loss.as_ref().map(|(buffer, region, _)| part(buffer, *region));
        let loss_at = loss.as_ref().map(|(.., at)| *at);
        let factors = table_factors(gpu, &plan.factors);
        let mut of_groups = vec![
            whole(&groups),
            whole(&sums),
            whole(&states),
            whole(&updates),
            whole(&learning_rates),
            whole(&records),
            whole(&loss_scale),
            whole(&factors),
        ];
        of_groups.extend(of_loss.clone());
        // A dispatch cannot bind a buffer for reading and another part of it for writing.
        let may_be_whole = !separate_passes && loss.iter().all(|(buffer, ..)| !buffers.contains(buffer));
        let whole_step = if may_be_whole { WholeStep::of(gpu, &plan, loss_at) } else { None };
        let whole_step = whole_step.map(|kernel| (kernel.pipeline(gpu), &of_groups[..]));
        let kernels = plan.windows.iter().flat_map(|window| [Some(window.kernel), window.kernel.of_look()]);
        let kernels: Vec<Kernel> = kernels.flatten().collect();
        let passes = Passes { gpu, rebindable };
        #[cfg(not(target_arch = "wasm32"))]
        if whole_step.is_none() {
            ahead::compile_ahead(passes, &plan, &kernels, loss_at);
        }
        let sweeps = sweeps(passes, &plan.windows, &buffers, &memories, &tables, whole_step.as_ref());
        let rebinding = rebindable.then(|| Rebinding {
            layouts: vec![Layout {
                buffers: buffers.clone(),
                places: plan.places.clone(),
                windows: plan.windows.clone(),
                sweeps: sweeps.clone(),
            }],
            tables,
        });
        let Sweeps { reduce, update, averages, blocks } = sweeps;

        let mut scalar = Vec::new();
        if whole_step.is_none() {
            // Without partial sums and a loss, pass 2 has nothing to do, and the sums keep their first values.
            if !reduce.is_empty() || loss_at.is_some() {
                let finish = finish_reduction::pipeline(gpu, &gpu.tuning(), &kernels, loss_at);
                let mut bound = vec![whole(&scopes), whole(&states), whole(&partials), whole(&sums)];
                bound.extend(of_loss);
                scalar.push(Dispatch {
                    pass: PassName::FinishReduction,
                    bind_groups: vec![finish.bind(device, 0, &bound)],
                    pipeline: finish.pipeline,
                    workgroups: plan.scopes.len() as u32,
                });
            }
            for rate in learning_rate::pipelines(gpu, &plan.groups) {
                scalar.push(Dispatch {
                    pass: PassName::LearningRate,
                    bind_groups: vec![rate.bind(device, 0, &of_groups)],
                    pipeline: rate.pipeline,
                    workgroups: (plan.groups.len() as u32).div_ceil(learning_rate::WORKGROUP),
                });
            }
        }
        let looks = look::Looks::new(gpu, &plan, &[whole(&groups), whole(&sums), whole(&states), whole(&updates)]);
        let mut step = [reduce, scalar, update].concat();
        if !plan.units.is_empty() {
            let units = filled::<StepUnit>(gpu, "units", &plan.units);
            let finish = finish_update::pipeline(gpu, &gpu.tuning(), record_steps);
            step.push(Dispatch {
                pass: PassName::FinishUpdate,
                bind_groups: vec![finish.bind(
                    device,
                    0,
                    &[
                        whole(&units),
                        whole(&step_partials),
                        whole(&updates),
                        whole(&states),
                        whole(&tensor_records),
                        whole(&records),
                    ],
                )],
                pipeline: finish.pipeline.clone(),
                workgroups: plan.units.len() as u32,
            });
        }
        Ok(Optimizer {
            gpu: gpu.clone(),
            sharded: shard::Sharded::new(gpu, &plan),
            presence: Presence::new(gpu, &plan, blocks),
            plan,
            step,
            looks,
            averages,
            averages_are_swapped: false,
            learning_rates,
            loss_scale,
            groups,
            states,
            sums,
            readback: Readback::new(device, "records", records.size() + tensor_records.size()),
            records,
            tensor_records,
            cursor: RecordCursor::default(),
            undelivered: Records::default(),
            rebinding,
            halted: None,
            kept: Kept { buffers, memories, updates },
        })
    }
}
