//! The optimizer on the host.

#[cfg(feature = "checkpoint")]
mod checkpoint;
mod shard;

use bytemuck::Zeroable;
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use crate::averaging::Averaging;
use crate::cpu::finish_reduction::finish_reduction;
use crate::cpu::finish_update::finish_update;
use crate::cpu::half::Number;
use crate::cpu::learning_rate::learning_rate;
use crate::cpu::reduce_gradient::{BlockSlices, no_totals, reduce_gradient};
use crate::cpu::schedule_free::{average_of, between};
use crate::cpu::tensor::Tensor;
use crate::cpu::update_parameters::{Halves, MemorySlices, TILE, Tiles, Wide, update_parameters};
use crate::cpu::values::{Slice, SliceMut, Values, ValuesMut};
use crate::error::{Error, require};
use crate::group::{GroupConfig, OptimizerBuilder, ResolvedGroup};
use crate::layout::{
    Block, GroupConstants, GroupState, LOSS_ELEMENT, NO_TENSOR, RawRecord, RawTensorRecord, ScopeSums, StepSums,
    Update, skips, unscale,
};
use crate::plan::{Encoding, Geometry, Kernel, Place, Plan, TensorInfo};
use crate::record::{Record, RecordCursor, Records};
use crate::shard::Stage;

/// Elements of a block: small enough for the first-level cache, large enough that handing it to a thread costs nothing.
pub(crate) const BLOCK_ELEMENTS: u32 = 4096;

/// Blocks whose elements are worth handing to other threads, however many tensors they are in.
const PARALLEL_BLOCKS: usize = 32;

/// The largest record ring.
const RECORD_RING_BYTES: u64 = 1 << 30;

/// An optimizer on the host. Made by [`OptimizerBuilder::build_cpu`].
///
/// It walks the same plan as [`Optimizer`](crate::Optimizer), block by block and on every core; the result has the same bits for
/// any number of threads. A step allocates nothing itself; rayon's queue takes a chunk of memory about once in 30 steps where
/// there is more than one block.
#[derive(Debug)]
pub struct CpuOptimizer {
    plan: Plan,
    /// The processor's vector instructions, found at run time.
    arch: Arch,
    tensors: Vec<TensorMemory>,
    /// True if a regime uses the loss.
    needs_loss: bool,
    /// True if the tensors are large enough to use several threads.
    parallel: bool,
    /// Tensor and block of each row of the partials.
    rows: Vec<(usize, usize)>,
    partials: Vec<ScopeSums>,
    sums: Vec<ScopeSums>,
    states: Vec<GroupState>,
    updates: Vec<Update>,
    learning_rates: Vec<f32>,
    records: Vec<RawRecord>,
    /// By row, as `partials`; empty where no step is measured.
    step_partials: Vec<StepSums>,
    tensor_records: Vec<RawTensorRecord>,
    averages_are_swapped: bool,
    cursor: RecordCursor,
    /// Where a step of several ranks stands.
    stage: Stage,
}

/// A tensor's blocks, and what the rule and the regime remember of it.
#[derive(Debug)]
struct TensorMemory {
    elements: usize,
    /// `None` for an empty tensor.
    kernel: Option<Kernel>,
    blocks: Vec<Block>,
    memory: Memory,
    /// The average, or z of schedule-free training; empty where no average is kept.
    averages: Vec<f32>,
    /// What each block measured of the step; empty where that is not asked for.
    step_sums: Vec<StepSums>,
}

/// What the rule and the regime remember of a tensor.
#[derive(Debug, Default)]
struct Memory {
    momentum: Vec<f32>,
    squares: Vec<f32>,
    counters: Vec<u8>,
    /// The last gradient, the first parameters, or those from before an episode.
    vector: Vec<f32>,
    /// The two streams whose turn it is not.
    streams: [Vec<f32>; 2],
    /// What 16-bit parameters lack of f32.
    remainders: Vec<i16>,
}

impl Memory {
    fn new(kernel: Kernel, elements: usize) -> Self {
        let momentum = if kernel.rule.traits().momentum { elements } else { 0 };
        let squares = if kernel.rule.traits().squares { elements } else { 0 };
        let counters = if kernel.has_counters() { elements } else { 0 };
        let vector = if kernel.vectors() > 0 { elements } else { 0 };
        let stream = if kernel.has_streams() { elements } else { 0 };
        Memory {
            momentum: vec![0.0; momentum],
            squares: vec![0.0; squares],
            counters: vec![0; counters],
            vector: vec![0.0; vector],
            streams: [vec![0.0; stream], vec![0.0; stream]],
            remainders: vec![0; if kernel.has_remainders() { elements } else { 0 }],
        }
    }
}

impl OptimizerBuilder<Tensor> {
    /// Checks everything and allocates everything. The same memory per parameter as on the device.
    ///
    /// # Errors
    /// A wrong number, name or length.
    pub fn build_cpu(self) -> Result<CpuOptimizer, Error> {
        let (safeguards, shard) = (self.safeguards, self.shard);
        let accumulation = self.accumulation;
        require(
            !accumulation.clears,
            || "optimizer".to_owned(),
            "clear_gradients",
            "on",
            "off on the CPU path, whose steps only borrow the gradients: fill the slices with 0 after each step",
        )?;
        let record_bytes = std::mem::size_of::<RawRecord>() as u64;
        let record_steps = self.record_steps_for(RECORD_RING_BYTES / record_bytes)? as usize;
        let mut lengths = Vec::new();
        let mut placed = Vec::new();
        for group in self.resolve()? {
            let mut tensors = Vec::with_capacity(group.tensors.len());
            for (name, tensor) in group.tensors {
                let elements = tensor.checked(&name)?;
                let (params, grads) = tensor.elements();
                // Each tensor is a pair of buffers of its own.
                let number = lengths.len();
                lengths.push(elements as usize);
                let place = Place {
                    params,
                    params_buffer: number,
                    params_start: 0,
                    grads,
                    grads_buffer: number,
                    grads_start: 0,
                    elements,
                };
                tensors.push((name, place));
            }
            placed.push(ResolvedGroup { config: group.config, tensors });
        }
        let plan = Plan::new(
            placed,
            safeguards,
            accumulation,
            &Geometry {
                block_elements: BLOCK_ELEMENTS,
                partials_per_block: 1,
                binding_elements: u64::MAX,
                binding_alignment: 4,
                dispatch_blocks: u32::MAX,
                scope_partials: u64::MAX,
                quads_need_alignment: false,
                apart: false,
            },
        )?;
        let plan = plan.sharded(shard);
        Ok(CpuOptimizer::allocate(plan, &lengths, record_steps))
    }
}

impl CpuOptimizer {
    fn allocate(plan: Plan, lengths: &[usize], record_steps: usize) -> Self {
        let mut tensors: Vec<TensorMemory> = lengths
            .iter()
            .map(|&elements| TensorMemory {
                elements,
                kernel: None,
                blocks: Vec::new(),
                memory: Memory::default(),
                averages: Vec::new(),
                step_sums: Vec::new(),
            })
            .collect();
        let blocks: usize = plan.windows.iter().map(|window| window.blocks.len()).sum();
        let mut rows = vec![(0, 0); blocks];
        for window in &plan.windows {
            let index = window.params.buffer;
            let tensor = &mut tensors[index];
            tensor.kernel = Some(window.kernel);
            tensor.blocks = window.blocks.clone();
            tensor.memory = Memory::new(window.kernel, tensor.elements);
            if window.kernel.averages {
                tensor.averages = vec![0.0; tensor.elements];
            }
            if window.kernel.step_sums {
                tensor.step_sums = vec![StepSums::default(); window.blocks.len()];
            }
            for (number, block) in window.blocks.iter().enumerate() {
                rows[block.row as usize] = (index, number);
            }
        }
        let states: Vec<GroupState> = plan.first_states();
        CpuOptimizer {
            arch: Arch::new(),
            needs_loss: plan.configs.iter().any(|config| config.regime.needs_loss()),
            parallel: lengths.iter().sum::<usize>() >= PARALLEL_BLOCKS * BLOCK_ELEMENTS as usize,
            tensors,
            rows,
            partials: vec![no_totals(); blocks],
            sums: vec![no_totals(); plan.scopes.len()],
            updates: vec![Update::zeroed(); plan.groups.len()],
            learning_rates: states.iter().map(|state| state.learning_rate).collect(),
            records: vec![RawRecord::default(); record_steps * states.len()],
            step_partials: if plan.units.is_empty() { Vec::new() } else { vec![StepSums::default(); blocks] },
            tensor_records: {
                let recorded = plan.units.iter().filter(|unit| unit.tensor != NO_TENSOR);
                vec![RawTensorRecord::default(); record_steps * recorded.count()]
            },
            states,
            averages_are_swapped: false,
            cursor: RecordCursor::default(),
            stage: Stage::Idle,
            plan,
        }
    }

    /// Takes one step. `params` and `grads` are the tensors' slices, in the order of declaration over all groups.
    ///
    /// # Errors
    /// [`Error::StepTensors`] or [`Error::StepLength`] where the slices are not those that were declared,
    /// [`Error::ShardedStep`] where other ranks have other parameters,
    /// [`Error::MissingLoss`] where a regime goes by the loss,
    /// [`Error::AveragesSwapped`] between two [`swap_averages`](CpuOptimizer::swap_averages); nothing has changed then.
    /// [`Error::Halted`] by [`NonFinitePolicy::Error`](crate::NonFinitePolicy::Error), at every step until
    /// [`resume`](CpuOptimizer::resume) is called: the step was recorded, and skipped.
    pub fn step(&mut self, params: &mut [&mut [f32]], grads: &[&[f32]]) -> Result<(), Error> {
        self.check_needs_no_loss()?;
        self.step_of(params, grads, 0.0)
    }

    /// Takes a step like [`CpuOptimizer::step`], over slices of any element type.
    ///
    /// ```
    /// use half::bf16;
    /// use wgpu_optim::{Group, OptimizerBuilder, Rule};
    ///
    /// let (mut w, g) = (vec![bf16::ONE; 100], vec![bf16::from_f32(0.5); 100]);
    /// let mut optimizer = OptimizerBuilder::new(Rule::sgd())
    ///     .group(Group::new("all").tensor("w", &w, &g))
    ///     .build_cpu()?;
    /// optimizer.step_values(&mut [(&mut w).into()], &[(&g).into()])?;
    /// # Ok::<(), wgpu_optim::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`CpuOptimizer::step`]; [`Error::StepElement`] where the elements are not those that were declared.
    pub fn step_values(&mut self, params: &mut [SliceMut], grads: &[Slice]) -> Result<(), Error> {
        self.check_needs_no_loss()?;
        self.step_of(params, grads, 0.0)
    }

    /// Takes a step like [`CpuOptimizer::step_values`], with the loss.
    ///
    /// # Errors
    /// As [`CpuOptimizer::step_values`].
    pub fn step_values_with_loss(&mut self, params: &mut [SliceMut], grads: &[Slice], loss: f32) -> Result<(), Error> {
        self.step_of(params, grads, loss)
    }

    /// Refuses a step without a loss where a regime goes by it.
    fn check_needs_no_loss(&self) -> Result<(), Error> {
        let mut configs = self.plan.configs.iter();
        if self.needs_loss
            && let Some(config) = configs.find(|config| config.regime.needs_loss())
        {
            return Err(Error::MissingLoss { group: config.name.clone(), regime: config.regime.name() });
        }
        Ok(())
    }

    /// Takes a step like [`CpuOptimizer::step`], with the loss of these gradients, for regimes that need it
    /// ([`Regime::needs_loss`](crate::Regime::needs_loss)). Other regimes ignore it.
    ///
    /// # Errors
    /// As [`CpuOptimizer::step`].
    pub fn step_with_loss(&mut self, params: &mut [&mut [f32]], grads: &[&[f32]], loss: f32) -> Result<(), Error> {
        self.step_of(params, grads, loss)
    }

    fn step_of(
        &mut self,
        params: &mut [impl ValuesMut + Send + Sync],
        grads: &[impl Values + Sync],
        loss: f32,
    ) -> Result<(), Error> {
        self.check_averages_in_place("a step")?;
        self.check_alone("step")?;
        self.check_slices("parameter", params)?;
        self.check_slices("gradient", grads)?;
        self.measure_here(params, grads, loss);
        self.set_rates();
        self.update(params, grads);
        self.finish_update();
        self.check_halted()
    }

    /// Passes 1 and 2.
    fn measure_here(&mut self, params: &[impl Values + Sync], grads: &[impl Values + Sync], loss: f32) {
        self.reduce(params, grads);
        self.finish();
        if self.needs_loss {
            for sums in &mut self.sums {
                sums.loss = loss;
            }
            // All groups hear of it from one scope.
            if let (false, Some(sums)) = (loss.is_finite(), self.sums.first_mut()) {
                sums.first_nonfinite = sums.first_nonfinite.min(LOSS_ELEMENT);
            }
        }
    }

    /// Exchanges parameters and averages: `params` are the tensors' slices, as in a step. A second call brings the parameters back; both
    /// are then what they were, bit for bit (of [schedule-free](crate::Averaging::ScheduleFree) groups see there). Groups without an [`Averaging`](crate::Averaging), and groups whose average has not
    /// started yet, keep their parameters throughout.
    ///
    /// # Errors
    /// [`Error::NoAverages`] where no group keeps one, [`Error::StepTensors`] or [`Error::StepLength`] where the slices are not those
    /// that were declared; nothing has changed then.
    pub fn swap_averages(&mut self, params: &mut [&mut [f32]]) -> Result<(), Error> {
        self.swap_averages_of(params)
    }

    /// Exchanges parameters and averages like [`CpuOptimizer::swap_averages`], over slices of any element type. For 16-bit parameters the
    /// master weights are exchanged, as exactly as [`Rounding::Masters`](crate::Rounding::Masters) says.
    ///
    /// # Errors
    /// As [`CpuOptimizer::swap_averages`]; [`Error::StepElement`] where the elements are not those that were declared.
    pub fn swap_averages_values(&mut self, params: &mut [SliceMut]) -> Result<(), Error> {
        self.swap_averages_of(params)
    }

    fn swap_averages_of(&mut self, params: &mut [impl ValuesMut]) -> Result<(), Error> {
        if !self.plan.configs.iter().any(|config| config.averaging.is_on()) {
            return Err(Error::NoAverages { owner: "the optimizer".to_owned() });
        }
        self.check_slices("parameter", params)?;
        for (index, params) in params.iter_mut().enumerate() {
            if !self.has_average(index) {
                continue;
            }
            let schedule_free = self.is_schedule_free(index);
            let tensor = &mut self.tensors[index];
            let exchanged: fn(f32, f32) -> f32 = match self.averages_are_swapped {
                false => average_of,
                true => between,
            };
            match params.values_mut() {
                SliceMut::F32(params) if schedule_free => {
                    for (w, &z) in params.iter_mut().zip(&tensor.averages) {
                        *w = exchanged(*w, z);
                    }
                }
                SliceMut::F32(params) => params.swap_with_slice(&mut tensor.averages),
                mut params => {
                    let mut masters = vec![0.0; tensor.elements];
                    let remainders = &mut tensor.memory.remainders;
                    let stored = params.as_slice();
                    stored.decode_parameters(remainders, &mut masters);
                    if schedule_free {
                        for (w, &z) in masters.iter_mut().zip(&tensor.averages) {
                            *w = exchanged(*w, z);
                        }
                        params.encode_parameters(Encoding::Masters, &masters, remainders, 0, 0);
                        continue;
                    }
                    // Averages are kept beside masters alone, which need no random bits.
                    let averages = &tensor.averages;
                    params.encode_parameters(Encoding::Masters, averages, remainders, 0, 0);
                    tensor.averages = masters;
                }
            }
        }
        self.averages_are_swapped = !self.averages_are_swapped;
        Ok(())
    }

    /// Returns true while the averages are in the caller's slices and the parameters are kept here. No step can be taken then.
    pub fn averages_are_swapped(&self) -> bool {
        self.averages_are_swapped
    }

    /// A tensor's averages; `tensor` is an index into [`tensors`](CpuOptimizer::tensors). `None` where its group keeps none, where the
    /// average has not started yet, so that the parameters stand in for it, and while the averages are in the caller's slices. `None`, too,
    /// of [schedule-free](crate::Averaging::ScheduleFree) groups, whose average is nowhere kept as such:
    /// [`copy_averages`](CpuOptimizer::copy_averages) gives every average.
    pub fn averages(&self, tensor: usize) -> Option<&[f32]> {
        let here = !self.averages_are_swapped && tensor < self.tensors.len() && self.has_average(tensor);
        let kept = here && !self.is_schedule_free(tensor);
        kept.then(|| self.tensors[tensor].averages.as_slice())
    }

    /// Copies a tensor's averages into a slice of its length. `params` are its parameters as they are after the last step; where the average
    /// has not started yet, it is a copy of them. `tensor` is an index into [`tensors`](CpuOptimizer::tensors).
    ///
    /// ```
    /// use wgpu_optim::{Group, OptimizerBuilder, Rule};
    ///
    /// let (mut w, g) = (vec![1.0f32; 100], vec![0.5f32; 100]);
    /// let mut optimizer = OptimizerBuilder::new(Rule::sgd())
    ///     .schedule_free()
    ///     .group(Group::new("all").tensor("w", &w, &g))
    ///     .build_cpu()?;
    /// optimizer.step(&mut [&mut w], &[&g])?;
    /// let mut evaluated = vec![0.0; 100];
    /// optimizer.copy_averages(0, &w, &mut evaluated)?;
    /// # Ok::<(), wgpu_optim::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownTensor`]; [`Error::NoAverages`] where the tensor's group keeps none; [`Error::AveragesSwapped`] while the averages
    /// are in the caller's own slices; [`Error::StepLength`] or [`Error::StepElement`] where `params` are not the tensor's,
    /// [`Error::AveragesLength`] for the destination.
    pub fn copy_averages<'a>(
        &self,
        tensor: usize,
        params: impl Into<Slice<'a>>,
        destination: &mut [f32],
    ) -> Result<(), Error> {
        let tensors = self.tensors.len();
        let info = self.plan.tensors.get(tensor).ok_or(Error::UnknownTensor { index: tensor, tensors })?;
        if !self.plan.configs[info.group].averaging.is_on() {
            return Err(Error::NoAverages { owner: format!("tensor \"{}\"", info.name) });
        }
        self.check_averages_in_place("a copy of the averages")?;
        let params = params.into();
        self.check_slice("parameter", tensor, params)?;
        if destination.len() != params.len() {
            return Err(Error::AveragesLength {
                tensor: info.name.clone(),
                expected: params.len() as u64,
                actual: destination.len() as u64,
            });
        }
        let memory = &self.tensors[tensor];
        let started = self.has_average(tensor);
        if started && !self.is_schedule_free(tensor) {
            destination.copy_from_slice(&memory.averages);
            return Ok(());
        }
        match params {
            Slice::F32(params) => destination.copy_from_slice(params),
            halves => {
                halves.decode_parameters(&memory.memory.remainders, destination);
            }
        }
        if started {
            for (w, &z) in destination.iter_mut().zip(&memory.averages) {
                *w = average_of(*w, z);
            }
        }
        Ok(())
    }

    /// Returns true if z of schedule-free training is kept in the place of a tensor's average.
    fn is_schedule_free(&self, tensor: usize) -> bool {
        let group = self.plan.tensors[tensor].group;
        self.plan.configs[group].averaging == Averaging::ScheduleFree
    }

    /// Returns true if a tensor's average has started.
    fn has_average(&self, tensor: usize) -> bool {
        self.updates[self.plan.tensors[tensor].group].average_weight > 0.0
    }

    fn check_averages_in_place(&self, what: &'static str) -> Result<(), Error> {
        if self.averages_are_swapped {
            return Err(Error::AveragesSwapped { what });
        }
        Ok(())
    }

    /// Pass 5, where it is asked for.
    fn finish_update(&mut self) {
        if self.plan.units.is_empty() {
            return;
        }
        for (partial, &(tensor, block)) in self.step_partials.iter_mut().zip(&self.rows) {
            if let Some(sums) = self.tensors[tensor].step_sums.get(block) {
                *partial = *sums;
            }
        }
        finish_update(&self.plan.units, &self.step_partials, &self.updates, &mut self.states, &mut self.tensor_records);
    }

    /// Pass 2.
    fn finish(&mut self) {
        for (scope, sums) in self.plan.scopes.iter().zip(&mut self.sums) {
            let first = scope.first_partial as usize;
            *sums = finish_reduction(&self.partials[first..][..scope.partials as usize]);
        }
    }

    fn check_slices(&self, role: &'static str, slices: &[impl Values]) -> Result<(), Error> {
        if slices.len() != self.tensors.len() {
            return Err(Error::StepTensors { role, expected: self.tensors.len(), actual: slices.len() });
        }
        for (index, slice) in slices.iter().enumerate() {
            self.check_slice(role, index, slice.values())?;
        }
        Ok(())
    }

    fn check_slice(&self, role: &'static str, index: usize, slice: Slice) -> Result<(), Error> {
        let place = &self.plan.places[index];
        let expected = if role == "gradient" { place.grads } else { place.params };
        if slice.element() != expected {
            return Err(Error::StepElement {
                tensor: self.plan.tensors[index].name.clone(),
                role,
                expected,
                actual: slice.element(),
            });
        }
        let (expected, actual) = (self.tensors[index].elements, slice.len());
        if actual != expected {
            return Err(Error::StepLength { tensor: self.plan.tensors[index].name.clone(), role, expected, actual });
        }
        Ok(())
    }

    /// Pass 1 over all blocks.
    fn reduce(&mut self, params: &[impl Values + Sync], grads: &[impl Values + Sync]) {
        let (tensors, groups, states) = (&self.tensors, &self.plan.groups, &self.states);
        let arch = self.arch;
        let sweep = |(partial, &(index, number)): (&mut ScopeSums, &(usize, usize))| {
            let tensor = &tensors[index];
            let Some(kernel) = tensor.kernel else { return };
            let block = &tensor.blocks[number];
            let (start, end) = (block.params_start as usize, (block.params_start + block.elements) as usize);
            let group = block.group as usize;
            let of = Reduce {
                kernel,
                constants: &groups[group],
                state: &states[group],
                block,
                params: params[index].values().range(start..end),
                remainders: tensor.memory.remainders.get(start..end).unwrap_or_default(),
                slices: BlockSlices {
                    params: &[],
                    grads: &[],
                    momentum: tensor.memory.momentum.get(start..end).unwrap_or_default(),
                    squares: tensor.memory.squares.get(start..end).unwrap_or_default(),
                    counters: tensor.memory.counters.get(start..end).unwrap_or_default(),
                    vector: if kernel.compares_iterates() {
                        &tensor.averages[start..end]
                    } else {
                        tensor.memory.vector.get(start..end).unwrap_or_default()
                    },
                },
            };
            *partial = match grads[index].values().range(start..end) {
                Slice::F32(grads) => arch.dispatch(of.over(grads)),
                Slice::F16(grads) => arch.dispatch(of.over(grads)),
                Slice::Bf16(grads) => arch.dispatch(of.over(grads)),
            };
        };
        if self.parallel {
            self.partials.par_iter_mut().zip(self.rows.par_iter()).for_each(sweep);
        } else {
            self.partials.iter_mut().zip(&self.rows).for_each(sweep);
        }
    }

    /// Pass 3 for every group, and the record.
    fn set_rates(&mut self) {
        let groups = self.plan.groups.len();
        let ring_steps = self.records.len() / groups;
        let slot = self.states.first().map_or(0, |state| state.record_slot);
        let slot = slot as usize % ring_steps;
        let ring = &mut self.records[slot * groups..][..groups];
        for (group, constants) in self.plan.groups.iter().enumerate() {
            let state = &mut self.states[group];
            let outcome = learning_rate(group as u32, constants, &self.sums, state);
            match outcome.update {
                Some(update) => self.updates[group] = update,
                None => {
                    let update = &mut self.updates[group];
                    update.skip = outcome.turn.skip;
                    update.first = 0;
                    update.put = outcome.turn.put;
                    update.take = outcome.turn.take;
                }
            }
            self.learning_rates[group] = state.learning_rate;
            ring[group] = outcome.record;
            state.record_slot = slot as u32 + 1;
        }
    }

    /// Pass 4 over all blocks.
    fn update(&mut self, params: &mut [impl ValuesMut + Send], grads: &[impl Values + Sync]) {
        let (arch, updates) = (self.arch, &self.updates);
        let update_one = |tensor: &mut TensorMemory, params: SliceMut, grads: Slice| {
            let (Some(kernel), Some(block)) = (tensor.kernel, tensor.blocks.first()) else {
                return;
            };
            let update = &updates[block.group as usize];
            if update.skip != skips::SKIP_ALL {
                update_in_halves(
                    arch,
                    kernel,
                    update,
                    StretchSlices {
                        params,
                        grads,
                        remainders: &mut tensor.memory.remainders,
                        first_element: block.first_element,
                        memory: MemorySlices {
                            momentum: &mut tensor.memory.momentum,
                            squares: &mut tensor.memory.squares,
                            counters: &mut tensor.memory.counters,
                            vector: &mut tensor.memory.vector,
                            averages: &mut tensor.averages,
                            step_sums: &mut tensor.step_sums,
                            streams: tensor.memory.streams.each_mut().map(Vec::as_mut_slice),
                        },
                    },
                );
            }
        };
        if self.parallel {
            self.tensors.par_iter_mut().zip(params.par_iter_mut()).zip(grads.par_iter()).for_each(
                |((tensor, params), grads)| {
                    update_one(tensor, params.values_mut(), grads.values());
                },
            );
        } else {
            self.tensors.iter_mut().zip(params.iter_mut()).zip(grads.iter()).for_each(|((tensor, params), grads)| {
                update_one(tensor, params.values_mut(), grads.values());
            });
        }
    }

    /// Returns the learning rate of each group, in the order of declaration. It is 0 until the first non-zero gradient, unless the regime
    /// was given a first rate.
    pub fn learning_rates(&self) -> &[f32] {
        &self.learning_rates
    }

    /// Returns the loss scale by which the gradients of the next step must be multiplied: a power of two, 1 without a
    /// [`LossScaler`](crate::LossScaler).
    pub fn loss_scale(&self) -> f32 {
        let exponent = self.states.first().map(|state| state.loss_scale_exponent);
        unscale(-exponent.unwrap_or(0))
    }

    /// Lets training go on after [`Error::Halted`], from the state before the skipped steps. The count of skips in a row starts at 0.
    pub fn resume(&mut self) {
        for state in &mut self.states {
            state.skips_in_row = 0;
            state.halted = 0;
        }
    }

    fn check_halted(&self) -> Result<(), Error> {
        match self.states.first() {
            Some(state) if state.halted != 0 => {
                let groups = self.plan.groups.len();
                let slot = state.record_slot as usize - 1;
                let record = Record::from_raw(&self.records[slot * groups], &self.plan);
                self.plan.halted(&record).map_or(Ok(()), Err)
            }
            _ => Ok(()),
        }
    }

    /// Returns the settings of the groups, with every default filled in.
    pub fn groups(&self) -> &[GroupConfig] {
        &self.plan.configs
    }

    /// Returns the tensors, in the order of declaration; [`NonFinite::tensor`](crate::NonFinite::tensor) is an index into them.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.plan.tensors
    }

    /// Returns the records of all steps that were not drained before.
    pub fn drain_records(&mut self) -> Records {
        let plan = &self.plan;
        let rings = (bytemuck::cast_slice(&self.records), bytemuck::cast_slice(&self.tensor_records));
        self.cursor.read(rings, plan)
    }

    /// Returns the state of every group. For tests and inspection.
    pub fn states(&self) -> &[GroupState] {
        &self.states
    }

    /// Returns the sums of the last step's reduction, one entry for each norm. For tests and inspection.
    pub fn sums(&self) -> &[ScopeSums] {
        &self.sums
    }
}

/// Pass 1 over one block. A type and not a closure, and so is [`UpdateStretch`]: a closure of this size is not inlined, and only what
/// is inlined is compiled for the processor's vector instructions.
struct Reduce<'a, G> {
    kernel: Kernel,
    constants: &'a GroupConstants,
    state: &'a GroupState,
    block: &'a Block,
    params: Slice<'a>,
    remainders: &'a [i16],
    /// Without parameters.
    slices: BlockSlices<'a, G>,
}

impl<'a> Reduce<'a, f32> {
    /// The same over these gradients.
    fn over<G>(self, grads: &'a [G]) -> Reduce<'a, G> {
        let slices = self.slices;
        Reduce {
            kernel: self.kernel,
            constants: self.constants,
            state: self.state,
            block: self.block,
            params: self.params,
            remainders: self.remainders,
            slices: BlockSlices {
                params: slices.params,
                grads,
                momentum: slices.momentum,
                squares: slices.squares,
                counters: slices.counters,
                vector: slices.vector,
            },
        }
    }
}

impl<G: Number> NullaryFnOnce for Reduce<'_, G> {
    type Output = ScopeSums;

    #[inline(always)]
    fn call(self) -> ScopeSums {
        let (kernel, state) = (self.kernel, self.state);
        // Not filled where nobody looks at it.
        let mut buffer;
        let params = match self.params {
            Slice::F32(params) => params,
            halves if kernel.measures_parameters(state.started != 0) => {
                buffer = [0.0; BLOCK_ELEMENTS as usize];
                halves.decode_parameters(self.remainders, &mut buffer)
            }
            _ => &[],
        };
        let slices = BlockSlices { params, ..self.slices };
        reduce_gradient(kernel, self.constants, state, self.block, slices)
    }
}

/// Pass 4 over a stretch of a tensor.
struct UpdateStretch<'a, T> {
    kernel: Kernel,
    update: &'a Update,
    elements: T,
    memory: MemorySlices<'a>,
}

impl<T: Tiles> NullaryFnOnce for UpdateStretch<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        update_parameters(self.kernel, self.update, self.elements, self.memory);
    }
}

/// A stretch of a tensor of whatever elements.
struct StretchSlices<'a> {
    params: SliceMut<'a>,
    grads: Slice<'a>,
    /// Empty where nothing is kept of 16-bit parameters.
    remainders: &'a mut [i16],
    /// Index of the first element in the optimizer.
    first_element: u32,
    memory: MemorySlices<'a>,
}

impl StretchSlices<'_> {
    /// Up to an element, a multiple of [`BLOCK_ELEMENTS`] or the end, and from there on.
    #[inline(always)]
    fn split_at(self, middle: usize) -> (Self, Self) {
        let (params, params_after) = self.params.split_at(middle);
        let (grads, grads_after) = self.grads.split_at(middle);
        let kept = middle.min(self.remainders.len());
        let (remainders, remainders_after) = self.remainders.split_at_mut(kept);
        let (memory, memory_after) = self.memory.split_at(middle);
        (
            StretchSlices { params, grads, remainders, first_element: self.first_element, memory },
            StretchSlices {
                params: params_after,
                grads: grads_after,
                remainders: remainders_after,
                first_element: self.first_element.wrapping_add(middle as u32),
                memory: memory_after,
            },
        )
    }
}

/// Halves a tensor, at a multiple of the block, until a half is not worth handing to another thread.
fn update_in_halves(arch: Arch, kernel: Kernel, update: &Update, slices: StretchSlices) {
    let block = BLOCK_ELEMENTS as usize;
    let elements = slices.params.len();
    if elements <= block * PARALLEL_BLOCKS / 4 {
        let StretchSlices { params, grads, remainders, first_element, memory } = slices;
        return match (params, grads) {
            (SliceMut::F32(params), Slice::F32(grads)) => {
                arch.dispatch(UpdateStretch { kernel, update, elements: Wide { params, grads }, memory })
            }
            (params, grads) => arch.dispatch(UpdateStretch {
                kernel,
                update,
                elements: Halves {
                    params,
                    grads,
                    remainders,
                    encoding: kernel.encoding,
                    rounding_key: update.rounding_key,
                    first_element,
                    buffers: &mut [[0.0; TILE]; 2],
                },
                memory,
            }),
        };
    }
    let middle = elements.div_ceil(block) / 2 * block;
    let (before, after) = slices.split_at(middle);
    rayon::join(|| update_in_halves(arch, kernel, update, before), || update_in_halves(arch, kernel, update, after));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::past_two_to_the_32::{RINGS, START, STEPS, check};
    use crate::{Group, Rule};

    #[test]
    fn the_ring_is_whole_past_two_to_the_32_steps() {
        for ring in RINGS {
            for n in STEPS {
                let (mut w, g) = (vec![1.0f32; 16], vec![0.0f32; 16]);
                let mut optimizer = OptimizerBuilder::new(Rule::sgd())
                    .record_steps(ring)
                    .group(Group::new("all").tensor("w", &w, &g))
                    .build_cpu()
                    .expect("builds");
                optimizer.states[0].steps_low = START;
                for _ in 0..n {
                    optimizer.step(&mut [&mut w], &[&g]).expect("steps");
                }
                check(ring, n, optimizer.drain_records(), "CPU path");
            }
        }
    }
}
