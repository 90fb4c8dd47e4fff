//! The optimizer on the host.

mod averages;
#[cfg(feature = "checkpoint")]
mod checkpoint;
mod control;
mod look;
mod shard;
mod snapshot;
mod sweeps;

pub(crate) use snapshot::Snapshot;

use bytemuck::Zeroable;
use bytemuck::allocation::try_zeroed_vec;
use pulp::Arch;

use crate::cpu::factored::FactorMemory;
use crate::cpu::finish_reduction::finish_reduction;
use crate::cpu::finish_update::finish_update;
use crate::cpu::half::{Remainders, RemaindersMut};
use crate::cpu::learning_rate::learning_rate;
use crate::cpu::orthogonalize::MatrixMemory;
use crate::cpu::tensor::{Tensor, checked};
use crate::cpu::values::{Slice, Values, ValuesMut};
use crate::cpu::{BLOCK_ELEMENTS, geometry};
use crate::error::{BuildError, CallError, DeviceError, Error, require};
use crate::group::{GroupConfig, OptimizerBuilder, ResolvedGroup};
use crate::layout::{
    Block, FactoredTensor, GroupState, LOSS_ELEMENT, Matrix, NO_TENSOR, RawRecord, RawTensorRecord, ScopeSums,
    StepSums, Update, no_totals, record_flags, unscale,
};
use crate::plan::{Kernel, MemoryKind, Place, Plan, Shape, TensorInfo};
use crate::record::{Record, RecordCursor, Records};
use crate::shard::Stage;

/// Number of blocks from which several threads are used, over all tensors.
const PARALLEL_BLOCKS: usize = 32;

/// Largest size of the ring of records, and of the ring of tensor records.
const RECORD_RING_BYTES: u64 = 128 << 20;

/// Returns zeros, or an error if the system does not have enough memory.
pub(super) fn zeroed<T: Zeroable>(length: usize) -> Result<Vec<T>, Error> {
    #[cfg(test)]
    let length = crate::faults::asked_for(length as u64) as usize;
    try_zeroed_vec(length).map_err(|()| {
        Error::from(DeviceError::Failed {
            what: "the optimizer's memory".to_owned(),
            message: format!("the system has no {} bytes left", length as u128 * size_of::<T>() as u128),
        })
    })
}

/// An optimizer on the host. Made by [`OptimizerBuilder::build_cpu`].
///
/// It follows the same plan as [`Optimizer`](crate::Optimizer), block by block and on every core. The result has the same bits for
/// any number of threads. A step allocates nothing itself, except in products of matrices ([`Muon`](crate::Muon)). With more than one
/// block, rayon's queue allocates a chunk of memory about once in 30 steps.
#[derive(Debug)]
pub struct CpuOptimizer {
    pub(crate) plan: Plan,
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
    /// Sums of pass 4 by row, like `partials`. Empty if no step is measured.
    step_partials: Vec<StepSums>,
    tensor_records: Vec<RawTensorRecord>,
    averages_are_swapped: bool,
    /// True if a step was taken since the last look.
    is_look_due: bool,
    cursor: RecordCursor,
    /// Progress of a step of several ranks.
    stage: Stage,
}

/// A tensor's blocks, and its memory of the rule and the regime.
#[derive(Debug)]
struct TensorMemory {
    elements: usize,
    /// False in a step for which the tensor has no gradients.
    present: bool,
    /// `None` for an empty tensor.
    kernel: Option<Kernel>,
    /// Kernel of pass 1 of a look.
    look_kernel: Option<Kernel>,
    blocks: Vec<Block>,
    memory: Memory,
    /// The tensor as a matrix, if the rule works on matrices.
    matrix: Option<(Matrix, MatrixMemory)>,
    /// The tensor's data if the rule limits its direction.
    limited: Option<(FactoredTensor, FactorMemory)>,
    /// The tensor's shape if its rows are distinguished, and for each row whether it has a gradient, if rows without one are skipped.
    rows: Option<(Shape, Vec<bool>)>,
    /// The average, or z of schedule-free training. Empty if no average is kept.
    averages: Vec<f32>,
    /// Sums that each block measured of the step. Empty if the step is not measured.
    step_sums: Vec<StepSums>,
}

/// Memory of the rule and the regime for a tensor.
#[derive(Debug, Default, Clone)]
struct Memory {
    momentum: Vec<f32>,
    squares: Vec<f32>,
    largest_squares: Vec<f32>,
    /// Second moments of rows, and of columns.
    factors: [Vec<f32>; 2],
    /// Momentum and second moment in 8 bits, and their scales.
    momentum_codes: Vec<u8>,
    squares_codes: Vec<u8>,
    scales: Vec<u32>,
    counters: Vec<u8>,
    /// The last gradient, the first parameters, those from before an episode, or the displacement of Mechanic.
    vector: Vec<f32>,
    /// The two streams that do not take the next step. For Prodigy the first one is its sum of gradients.
    streams: [Vec<f32>; 2],
    remainders: RemainderMemory,
}

/// Remainders of master weights with 16-bit parameters: see [`Remainders`].
#[derive(Debug, Default, Clone)]
struct RemainderMemory {
    long: Vec<i16>,
    short: Vec<i8>,
}

impl RemainderMemory {
    fn as_ref(&self) -> Remainders<'_> {
        Remainders { long: &self.long, short: &self.short }
    }

    fn as_mut(&mut self) -> RemaindersMut<'_> {
        RemaindersMut { long: &mut self.long, short: &mut self.short }
    }
}

impl Memory {
    fn new(kernel: Kernel, elements: usize) -> Result<Self, Error> {
        let entries = |kind: MemoryKind| if kernel.keeps(kind) { kind.entries(elements as u64) as usize } else { 0 };
        let counters = if kernel.has_counters() { elements } else { 0 };
        let vector = if kernel.vectors() > 0 { elements } else { 0 };
        let streams = [kernel.has_streams() || kernel.has_estimate(), kernel.has_streams()];
        let [one, two] = streams.map(|kept| if kept { elements } else { 0 });
        Ok(Memory {
            momentum: zeroed(entries(MemoryKind::Momentum))?,
            squares: zeroed(entries(MemoryKind::SecondMoment))?,
            largest_squares: zeroed(entries(MemoryKind::LargestSecondMoment))?,
            factors: Default::default(),
            momentum_codes: zeroed(entries(MemoryKind::MomentumCodes))?,
            squares_codes: zeroed(entries(MemoryKind::SecondMomentCodes))?,
            scales: zeroed(entries(MemoryKind::Scales))?,
            counters: zeroed(counters)?,
            vector: zeroed(vector)?,
            streams: [zeroed(one)?, zeroed(two)?],
            remainders: RemainderMemory {
                long: zeroed(entries(MemoryKind::Remainders))?,
                short: zeroed(entries(MemoryKind::RemainderCodes))?,
            },
        })
    }
}

impl OptimizerBuilder<Tensor> {
    /// Checks all settings and allocates all memory: the same number of bytes per parameter as on the device.
    ///
    /// # Errors
    /// Returns an error for a wrong number, name or length.
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
        let record_steps = self.record_steps_for(RECORD_RING_BYTES)? as usize;
        let mut lengths = Vec::new();
        let mut placed = Vec::new();
        for group in self.resolve()? {
            let mut tensors = Vec::with_capacity(group.tensors.len());
            for named in group.tensors {
                let elements = checked(&named.name, named.tensor)?;
                let [params, grads] = named.tensor.map(|tensor| tensor.element);
                // Each tensor has its own pair of buffers.
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
                tensors.push(named.with(place));
            }
            placed.push(ResolvedGroup { config: group.config, tensors });
        }
        let plan = Plan::new(placed, safeguards, accumulation, &geometry(true))?;
        let plan = plan.sharded(shard);
        CpuOptimizer::allocate(plan, &lengths, record_steps)
    }
}

impl CpuOptimizer {
    fn allocate(plan: Plan, lengths: &[usize], record_steps: usize) -> Result<Self, Error> {
        let mut tensors: Vec<TensorMemory> = lengths
            .iter()
            .map(|&elements| TensorMemory {
                elements,
                present: true,
                kernel: None,
                look_kernel: None,
                blocks: Vec::new(),
                memory: Memory::default(),
                matrix: None,
                limited: None,
                rows: None,
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
            tensor.look_kernel = window.kernel.of_look();
            tensor.blocks = window.blocks.clone();
            tensor.memory = Memory::new(window.kernel, tensor.elements)?;
            if let Some(&matrix) = window.matrices.first() {
                let gram = matrix.rows as usize * matrix.rows as usize;
                let memory = MatrixMemory {
                    directions: zeroed(tensor.elements)?,
                    others: zeroed(tensor.elements)?,
                    grams: [zeroed(gram)?, zeroed(gram)?],
                };
                tensor.matrix = Some((matrix, memory));
            }
            if let Some(&limited) = window.limited.first() {
                let [rows, columns, means] =
                    [window.room.rows, window.room.columns, window.room.means].map(|length| length as usize);
                let memory = FactorMemory { sums: [zeroed(rows)?, zeroed(columns)?], means: zeroed(means)? };
                tensor.limited = Some((limited, memory));
                tensor.memory.factors = [zeroed(rows)?, zeroed(columns)?];
            }
            if let Some(rows) = window.rows.first() {
                let flags = if window.kernel.lazy_rows { rows.shape.rows } else { 0 };
                tensor.rows = Some((rows.shape, vec![false; flags]));
            }
            tensor.averages = zeroed(if window.kernel.averages { tensor.elements } else { 0 })?;
            tensor.step_sums = zeroed(if window.kernel.step_sums { window.blocks.len() } else { 0 })?;
            for (number, block) in window.blocks.iter().enumerate() {
                rows[block.row as usize] = (index, number);
            }
        }
        let states: Vec<GroupState> = plan.first_states();
        Ok(CpuOptimizer {
            arch: Arch::new(),
            needs_loss: plan.configs.iter().any(|config| config.regime.needs_loss()),
            parallel: lengths.iter().sum::<usize>() >= PARALLEL_BLOCKS * BLOCK_ELEMENTS as usize,
            tensors,
            rows,
            partials: vec![no_totals(); blocks],
            sums: vec![no_totals(); plan.scopes.len()],
            updates: vec![Update::zeroed(); plan.groups.len()],
            learning_rates: states.iter().map(|state| state.learning_rate).collect(),
            records: zeroed::<RawRecord>(record_steps * states.len())?,
            step_partials: zeroed::<StepSums>(if plan.units.is_empty() { 0 } else { blocks })?,
            tensor_records: {
                let recorded = plan.units.iter().filter(|unit| unit.tensor != NO_TENSOR);
                zeroed::<RawTensorRecord>(record_steps * recorded.count())?
            },
            states,
            averages_are_swapped: false,
            is_look_due: false,
            cursor: RecordCursor::default(),
            stage: Stage::Idle,
            plan,
        })
    }

    /// Takes one step. `params` and `grads` are the tensors' values, in the order of [`tensors`](CpuOptimizer::tensors): slices, vectors or
    /// arrays of f32, f16 or bf16, see [`Values`].
    ///
    /// ```
    /// use wgpu_optim::half::bf16;
    /// use wgpu_optim::{Group, OptimizerBuilder, Rule};
    ///
    /// let (mut w, g) = (vec![bf16::ONE; 100], vec![bf16::from_f32(0.5); 100]);
    /// let mut optimizer = OptimizerBuilder::new(Rule::sgd())
    ///     .group(Group::new("all").tensor("w", &w, &g))
    ///     .build_cpu()?;
    /// optimizer.step(&mut [&mut w], &[&g])?;
    /// # Ok::<(), wgpu_optim::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) if the slices are not the declared tensors, for an optimizer over several ranks
    /// ([`sharded`](OptimizerBuilder::sharded)), and between two [`swap_averages`](CpuOptimizer::swap_averages). Returns
    /// [`ErrorKind::Build`](crate::ErrorKind::Build) if a regime needs the loss. After these errors nothing has changed.
    ///
    /// With [`NonFinitePolicy::Error`](crate::NonFinitePolicy::Error), returns [`ErrorKind::Halted`](crate::ErrorKind::Halted) at every step
    /// from the halt until [`resume`](CpuOptimizer::resume) is called. These steps are recorded and skipped.
    pub fn step(&mut self, params: &mut [impl ValuesMut], grads: &[impl Values]) -> Result<(), Error> {
        self.check_needs_no_loss()?;
        self.step_with_loss(params, grads, 0.0)
    }

    /// Takes a step like [`CpuOptimizer::step`], with the loss of these gradients, for regimes that need it
    /// ([`Regime::needs_loss`](crate::Regime::needs_loss)). Other regimes ignore it.
    ///
    /// # Errors
    /// See [`CpuOptimizer::step`].
    pub fn step_with_loss(
        &mut self,
        params: &mut [impl ValuesMut],
        grads: &[impl Values],
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
        self.is_look_due = true;
        self.check_halted()
    }

    /// Returns an error for a step without a loss if a regime uses the loss.
    fn check_needs_no_loss(&self) -> Result<(), Error> {
        let mut configs = self.plan.configs.iter();
        if self.needs_loss
            && let Some(config) = configs.find(|config| config.regime.needs_loss())
        {
            return Err(Error::from(BuildError::MissingLoss {
                group: config.name.clone(),
                regime: config.regime.name(),
            }));
        }
        Ok(())
    }

    /// Passes 1 and 2.
    fn measure_here(&mut self, params: &[impl Values], grads: &[impl Values], loss: f32) {
        self.reduce(params, grads, |tensor| tensor.kernel.as_ref().filter(|kernel| kernel.is_measured));
        self.finish();
        if self.needs_loss {
            for sums in &mut self.sums {
                sums.loss = loss;
            }
            // All groups read the non-finite elements of all scopes, so one scope is enough.
            if let (false, Some(sums)) = (loss.is_finite(), self.sums.first_mut()) {
                sums.first_nonfinite = sums.first_nonfinite.min(LOSS_ELEMENT);
            }
        }
    }

    /// Pass 5, if the step is measured.
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
            return Err(Error::from(CallError::StepTensors {
                role,
                expected: self.tensors.len(),
                actual: slices.len(),
            }));
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
            return Err(Error::from(CallError::StepElement {
                tensor: self.plan.tensors[index].name.clone(),
                role,
                expected,
                actual: slice.element(),
            }));
        }
        let (expected, actual) = (self.tensors[index].elements, slice.len());
        // An absent gradient is not read and may be empty.
        let is_left_out = role == "gradient" && !self.tensors[index].present && actual == 0;
        if actual != expected && !is_left_out {
            return Err(Error::from(CallError::StepLength {
                tensor: self.plan.tensors[index].name.clone(),
                role,
                expected,
                actual,
            }));
        }
        Ok(())
    }

    /// Pass 3 for every group, and the record.
    fn set_rates(&mut self) {
        let groups = self.plan.groups.len();
        let ring_steps = self.records.len() / groups;
        let slot = self.states.first().map_or(0, |state| state.record_slot);
        let last = slot.checked_sub(1).map(|last| self.records[last as usize % ring_steps * groups]);
        let last_overflow = last.filter(|record| record.flags & record_flags::SKIPPED == 0);
        let last_overflow = last_overflow.map_or(0, |record| record.overflow_key);
        let slot = slot as usize % ring_steps;
        let ring = &mut self.records[slot * groups..][..groups];
        for (group, constants) in self.plan.groups.iter().enumerate() {
            let state = &mut self.states[group];
            let outcome = learning_rate(group as u32, constants, &self.sums, last_overflow, &self.plan.factors, state);
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

    /// Returns the learning rate of each group, in the order of declaration. A rate is 0 until the first non-zero gradient, unless the regime
    /// was given a first rate.
    pub fn learning_rates(&self) -> &[f32] {
        &self.learning_rates
    }

    /// Returns the loss scale by which the gradients of the next step must be multiplied. It is a power of two, and 1 without a
    /// [`LossScaler`](crate::LossScaler).
    pub fn loss_scale(&self) -> f32 {
        let exponent = self.states.first().map(|state| state.loss_scale_exponent);
        unscale(-exponent.unwrap_or(0))
    }

    /// Continues training after [`ErrorKind::Halted`](crate::ErrorKind::Halted), from the state before the skipped steps. The count of
    /// consecutive skips is reset.
    pub fn resume(&mut self) {
        for state in &mut self.states {
            state.skips_in_row = 0;
            state.overflows_in_row = 0;
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

    /// Returns the tensors, in the order of declaration. Tensors with another rule ([`Group::other_tensors`](crate::Group::other_tensors))
    /// follow the others of their group. [`NonFinite::tensor`](crate::NonFinite::tensor) is an index into this slice.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.plan.tensors
    }

    /// Returns the records of all steps since the last drain.
    pub fn drain_records(&mut self) -> Records {
        let plan = &self.plan;
        let rings = (bytemuck::cast_slice(&self.records), bytemuck::cast_slice(&self.tensor_records));
        self.cursor.read(rings, plan)
    }

    /// Returns the state of every group. For tests and inspection.
    #[doc(hidden)]
    pub fn states(&self) -> &[GroupState] {
        &self.states
    }

    /// Returns the sums of the last step's reduction, one entry for each norm. For tests and inspection.
    #[doc(hidden)]
    pub fn sums(&self) -> &[ScopeSums] {
        &self.sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::past_two_to_the_32::{RINGS, START, STEPS, check};
    use crate::{Averaging, ErrorKind, Group, Regime, Rule, faults};

    #[test]
    fn whichever_request_for_memory_fails_the_next_build_works() {
        for (rule, regime, averaging) in [
            (Rule::adamw(), Regime::adgd(), Averaging::polynomial_decay()),
            (Rule::sgd(), Regime::auto_sgd(), Averaging::Off),
            (Rule::sgd(), Regime::dog(), Averaging::ScheduleFree),
        ] {
            let (mut w, g) = (vec![half::bf16::ONE; 100], vec![half::bf16::ONE; 100]);
            let group = || Group::new("all").regime(regime).averaging(averaging).tensor("w", &w, &g);
            let builder = || OptimizerBuilder::new(rule).telemetry(true).group(group());
            let refused = |request| faults::with_failing(request, || builder().build_cpu());
            let requests = (0..).map_while(refused).inspect(|built| {
                let error = built.as_ref().expect_err("refused");
                assert_eq!(error.kind(), ErrorKind::DeviceRefused);
                assert!(error.to_string().contains("the optimizer's memory"), "{error}");
            });
            assert!(requests.count() > 5);
            let mut optimizer = builder().build_cpu().expect("builds");
            optimizer.step_with_loss(&mut [&mut w], &[&g], 1.0).expect("steps");
        }
    }

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
