//! The zeroth-order optimizer on the host. Twin of `shaders/zeroth_order/` and `src/gpu/zeroth_order.rs`.

mod normal;

use bytemuck::Zeroable;
use pulp::Arch;
use rayon::prelude::*;

use crate::cpu::learning_rate::learning_rate;
use crate::cpu::optimizer::zeroed;
use crate::cpu::tensor::Tensor;
use crate::cpu::values::{SliceMut, ValuesMut};
use crate::cpu::{BLOCK_ELEMENTS, geometry};
use crate::element::rounding_key;
use crate::error::{CallError, Error};
use crate::layout::{GroupState, LOSS_ELEMENT, RawRecord, Scaled, ScopeSums, Squares, Update, no_totals};
use crate::plan::{Place, Plan, TensorInfo};
use crate::record::RecordCursor;
use crate::zeroth_order::record::{ZerothOrderRecords, read};
use crate::zeroth_order::tables::{
    COLUMNS_SEED, LARGEST_PULL, LARGEST_SLOPE, MOST_RANK, Motion, NEVER, PerturbedTensor, Probe, RawProbeRecord, Tables,
};
use crate::zeroth_order::{Planned, Stage, ZerothOrderBuilder};
use normal::{fill_normals, normals};

const BLOCK: usize = BLOCK_ELEMENTS as usize;

/// Number of blocks from which several threads are used.
const PARALLEL_BLOCKS: usize = 4;

/// Names of the calls, by the stage that each leaves.
const CALLS: [&str; 3] = ["perturb", "reverse", "step"];

/// A zeroth-order optimizer on the host. Made by [`ZerothOrderBuilder::build_cpu`]. It has the order of operations of
/// [`ZerothOrder`](crate::ZerothOrder), and the same bits for any number of threads.
///
/// A step is three calls, with the caller's forward pass after each of the first two:
/// [`perturb`](CpuZerothOrder::perturb), [`reverse`](CpuZerothOrder::reverse), [`step`](CpuZerothOrder::step).
#[derive(Debug)]
pub struct CpuZerothOrder {
    plan: Plan,
    tables: Tables,
    arch: Arch,
    needs_initial_norm: bool,
    initial_square: f32,
    state: GroupState,
    update: Update,
    /// U, or what takes its place in the last pass of LOZO-M.
    left: Vec<f32>,
    /// V.
    right: Vec<f32>,
    /// M.
    momentum: Vec<f32>,
    /// V_oldᵀ V_new / n of each matrix.
    turned: Vec<f32>,
    records: Vec<RawRecord>,
    probe_records: Vec<RawProbeRecord>,
    cursor: RecordCursor,
    stage: Stage,
}

impl ZerothOrderBuilder<Tensor> {
    /// Checks everything and allocates everything, as the device path does.
    ///
    /// # Errors
    /// [`ErrorKind::Build`](crate::ErrorKind::Build) for a wrong number, name, shape or element type, and
    /// [`ErrorKind::Limit`](crate::ErrorKind::Limit) for 2³² elements or more.
    pub fn build_cpu(self) -> Result<CpuZerothOrder, Error> {
        let geometry = geometry(false);
        let mut number = 0;
        let planned = self.plan(&geometry, |_, tensor| {
            number += 1;
            Ok(Place {
                params: tensor.element,
                params_buffer: number,
                params_start: 0,
                grads: tensor.element,
                grads_buffer: number,
                grads_start: 0,
                elements: tensor.elements as u64,
            })
        })?;
        let Planned { plan, tables, record_steps, needs_initial_norm } = planned;
        let mut right = zeroed::<f32>(if tables.is_low_rank { tables.right as usize } else { 0 })?;
        right.iter_mut().take(4).for_each(|one| *one = 1.0);
        let left = if tables.is_low_rank { tables.left as usize } else { 0 };
        let (momentum, turned) = if tables.has_momentum { (left, tables.turned as usize) } else { (0, 0) };
        Ok(CpuZerothOrder {
            arch: Arch::new(),
            needs_initial_norm,
            initial_square: 0.0,
            state: plan.first_states()[0],
            update: Update::zeroed(),
            left: zeroed(left)?,
            right,
            momentum: zeroed(momentum)?,
            turned: zeroed(turned)?,
            records: zeroed(record_steps as usize)?,
            probe_records: zeroed(record_steps as usize)?,
            cursor: RecordCursor::default(),
            stage: Stage::Ready,
            plan,
            tables,
        })
    }
}

impl CpuZerothOrder {
    /// Draws the next direction `z` and moves the parameters to `w + εz`. The caller's forward pass with them gives the
    /// loss that [`reverse`](CpuZerothOrder::reverse) takes.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Call`](crate::ErrorKind::Call) if the calls are out of order, or if the slices are not the
    /// declared tensors. Nothing has changed then.
    pub fn perturb(&mut self, params: &mut [impl ValuesMut]) -> Result<(), Error> {
        let mut params = self.checked(params, CALLS[0])?;
        if self.needs_initial_norm && self.state.started == 0 {
            self.initial_square = initial_square(&params);
        }
        self.begin();
        self.draw();
        self.displace(&mut params, self.tables.motions()[0]);
        Ok(())
    }

    /// Takes the loss at `w + εz` and moves the parameters to `w - εz`. The caller's forward pass with them, on the
    /// same batch, gives the loss that [`step`](CpuZerothOrder::step) takes.
    ///
    /// # Errors
    /// See [`CpuZerothOrder::perturb`].
    pub fn reverse(&mut self, params: &mut [impl ValuesMut], loss: f32) -> Result<(), Error> {
        let mut params = self.checked(params, CALLS[1])?;
        self.tables.probe.first_loss = loss.to_bits();
        self.displace(&mut params, self.tables.motions()[1]);
        Ok(())
    }

    /// Takes the loss at `w - εz`, restores the parameters and takes the step, all in one pass: `w + (ε - ηc) z`. If
    /// one of the losses is not finite, it restores the parameters and the record is that of a skipped step.
    ///
    /// # Errors
    /// See [`CpuZerothOrder::perturb`].
    pub fn step(&mut self, params: &mut [impl ValuesMut], loss: f32) -> Result<(), Error> {
        let mut params = self.checked(params, CALLS[2])?;
        self.tables.probe.second_loss = loss.to_bits();
        let sums = self.measure();
        self.set_rate(&sums);
        let motion = self.settle();
        if self.tables.has_momentum {
            self.follow_momentum();
        }
        self.displace(&mut params, motion);
        Ok(())
    }

    /// Returns the tensors, in the order of declaration.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.plan.tensors
    }

    /// Returns the records of all steps that were not drained before.
    pub fn drain_records(&mut self) -> ZerothOrderRecords {
        let rings = (bytemuck::cast_slice(&self.records), bytemuck::cast_slice(&self.probe_records));
        read(&mut self.cursor, rings, &self.plan)
    }

    /// Checks the slices and the order of the calls.
    fn checked<'a>(
        &mut self,
        params: &'a mut [impl ValuesMut],
        call: &'static str,
    ) -> Result<Vec<&'a mut [f32]>, Error> {
        let role = "parameter";
        if params.len() != self.plan.tensors.len() {
            let (expected, actual) = (self.plan.tensors.len(), params.len());
            return Err(Error::from(CallError::StepTensors { role, expected, actual }));
        }
        let mut slices = Vec::with_capacity(params.len());
        for (values, (tensor, place)) in params.iter_mut().zip(self.plan.tensors.iter().zip(&self.plan.places)) {
            let tensor = tensor.name.clone();
            match values.values_mut() {
                SliceMut::F32(slice) if slice.len() as u64 == place.elements => slices.push(slice),
                SliceMut::F32(slice) => {
                    let (expected, actual) = (place.elements as usize, slice.len());
                    return Err(Error::from(CallError::StepLength { tensor, role, expected, actual }));
                }
                other => {
                    let (expected, actual) = (place.params, other.as_slice().element());
                    return Err(Error::from(CallError::StepElement { tensor, role, expected, actual }));
                }
            }
        }
        self.stage.go_on(call, CALLS)?;
        Ok(slices)
    }

    /// Sets the keys of the step. Twin of `shaders/zeroth_order/begin.wgsl`.
    fn begin(&mut self) {
        let probe = &mut self.tables.probe;
        probe.key = rounding_key(probe.seed, self.state.steps_low, self.state.steps_high);
        if probe.interval == 0 {
            return;
        }
        let is_first = probe.age == NEVER;
        let draws = is_first || probe.age + 1 >= probe.interval;
        probe.draws = u32::from(draws);
        probe.turns = u32::from(draws && !is_first);
        probe.age = if draws { 0 } else { probe.age + 1 };
        if draws {
            probe.period = probe.period.wrapping_add(1);
            probe.columns_key = rounding_key(probe.seed ^ COLUMNS_SEED, probe.period, 0);
        }
    }

    /// Draws U, and V in its turn. Twin of `turn.wgsl` and `draw.wgsl`.
    fn draw(&mut self) {
        let probe = &self.tables.probe;
        if self.tables.has_momentum && probe.turns != 0 {
            for tensor in &self.tables.tensors {
                turn(tensor, probe.columns_key, &self.right, &mut self.turned);
            }
        }
        let parallel = self.left.len() >= PARALLEL_BLOCKS * BLOCK;
        fill(self.arch, probe.key, 0, &mut self.left, parallel);
        if probe.draws != 0
            && let Some(right) = self.right.get_mut(4..)
        {
            fill(self.arch, probe.columns_key, 1, right, parallel);
        }
    }

    /// Moves all parameters along z. Twin of `displace.wgsl`.
    fn displace(&self, params: &mut [&mut [f32]], motion: Motion) {
        let key = self.tables.probe.key;
        for (params, tensor) in params.iter_mut().zip(&self.tables.tensors) {
            let block = |(number, values): (usize, &mut [f32])| {
                let first = number * BLOCK;
                self.arch.dispatch(|| {
                    let mut z = [0.0; BLOCK];
                    let z = &mut z[..values.len()];
                    if tensor.columns == 0 {
                        fill_normals(key, tensor.first_quad.wrapping_add((first / 4) as u32), z);
                    } else {
                        multiply_factors(tensor, &self.left, &self.right, first, z);
                    }
                    follow(motion, tensor.decays != 0, z, values);
                });
            };
            if params.len() >= PARALLEL_BLOCKS * BLOCK {
                params.par_chunks_mut(BLOCK).enumerate().for_each(block);
            } else {
                params.chunks_mut(BLOCK).enumerate().for_each(block);
            }
        }
    }

    /// Computes the slope, and what pass 3 needs of it. Twin of `measure` in `losses.wgsl`.
    fn measure(&mut self) -> ScopeSums {
        let probe = &mut self.tables.probe;
        let [above, below] = [probe.first_loss, probe.second_loss].map(f32::from_bits);
        let half = 0.5 * above - 0.5 * below;
        // NaN is not below the limit.
        let fits = above.is_finite() && below.is_finite() && half.abs() <= LARGEST_SLOPE * probe.epsilon;
        probe.slope = if fits { half / probe.epsilon } else { 0.0 };
        let slope = Scaled::new(probe.slope, 0);
        let mut sums = no_totals();
        sums.square = Squares { sum: slope.mantissa * slope.mantissa * probe.square, exponent: slope.exponent };
        sums.initial_square = Squares { sum: self.initial_square, exponent: 0 };
        if !fits {
            sums.first_nonfinite = LOSS_ELEMENT;
        }
        sums
    }

    /// Pass 3, and its record.
    fn set_rate(&mut self, sums: &ScopeSums) {
        let slot = self.state.record_slot as usize % self.records.len();
        let outcome = learning_rate(0, &self.plan.groups[0], std::slice::from_ref(sums), 0, &[], &mut self.state);
        match outcome.update {
            Some(update) => self.update = update,
            None => {
                self.update.skip = outcome.turn.skip;
                self.update.first = 0;
            }
        }
        self.records[slot] = outcome.record;
        self.state.record_slot = slot as u32 + 1;
        let Probe { first_loss, second_loss, slope, .. } = self.tables.probe;
        self.probe_records[slot] = RawProbeRecord { losses: [first_loss, second_loss], slope };
    }

    /// Returns the motion that restores the parameters and takes the step. Twin of `settle.wgsl`.
    fn settle(&mut self) -> Motion {
        let (probe, update) = (&mut self.tables.probe, &self.update);
        let (epsilon, is_taken) = (probe.epsilon, update.skip == 0);
        let pull = (update.learning_rate * probe.slope).clamp(-LARGEST_PULL, LARGEST_PULL);
        probe.shrink = if is_taken { update.shrink } else { 1.0 };
        if !self.tables.has_momentum {
            return Motion { restore: epsilon, pull: if is_taken { -pull } else { 0.0 }, shrink: probe.shrink };
        }
        (probe.keep, probe.share, probe.rate) = match (is_taken, update.first != 0) {
            (false, _) => (1.0, 0.0, 0.0),
            (true, true) => (0.0, probe.slope, update.learning_rate),
            (true, false) => (probe.momentum, (1.0 - probe.momentum) * probe.slope, update.learning_rate),
        };
        Motion { restore: 0.0, pull: 1.0, shrink: probe.shrink }
    }

    /// Updates M, and puts s ε U - η M in the place of U, so that its product with Vᵀ restores the parameters and takes
    /// the step. Twin of `momentum.wgsl`.
    fn follow_momentum(&mut self) {
        let probe = &self.tables.probe;
        for tensor in &self.tables.tensors {
            let rank = tensor.rank as usize;
            if rank == 0 {
                continue;
            }
            let restore = if tensor.decays != 0 { probe.shrink * probe.epsilon } else { probe.epsilon };
            let turned = if probe.turns != 0 && tensor.turns != 0 {
                &self.turned[tensor.turn_first as usize..][..rank * rank]
            } else {
                &[]
            };
            let elements = tensor.left_first as usize..(tensor.left_first + tensor.rows * tensor.rank) as usize;
            let rows = self.momentum[elements.clone()].par_chunks_mut(rank).with_min_len(BLOCK);
            rows.zip(self.left[elements].par_chunks_mut(rank)).for_each(|(momentum, left)| {
                let mut old = [0.0f32; MOST_RANK as usize];
                old[..rank].copy_from_slice(momentum);
                for k in 0..rank {
                    let mut m = old[k];
                    if !turned.is_empty() {
                        m = (0..rank).fold(0.0, |sum, l| sum + old[l] * turned[l * rank + k]);
                    }
                    m = probe.keep * m + probe.share * left[k];
                    momentum[k] = m;
                    left[k] = restore * left[k] - (probe.rate * m).clamp(-LARGEST_PULL, LARGEST_PULL);
                }
            });
        }
    }
}

/// Σ w², at most the largest f32.
fn initial_square(params: &[&mut [f32]]) -> f32 {
    let mut sum = 0.0f64;
    for w in params.iter().flat_map(|params| params.iter()) {
        sum += f64::from(*w) * f64::from(*w);
    }
    sum.min(f64::from(f32::MAX)) as f32
}

/// Fills a buffer with the normal numbers of a key, from a quad on.
fn fill(arch: Arch, key: u32, first_quad: u32, values: &mut [f32], parallel: bool) {
    let block = |(number, values): (usize, &mut [f32])| {
        arch.dispatch(|| fill_normals(key, first_quad + (number * BLOCK / 4) as u32, values));
    };
    if parallel {
        values.par_chunks_mut(BLOCK).enumerate().for_each(block);
    } else {
        values.chunks_mut(BLOCK).enumerate().for_each(block);
    }
}

/// Elements of U Vᵀ from the tensor's element `first` on.
#[inline(always)]
fn multiply_factors(tensor: &PerturbedTensor, left: &[f32], right: &[f32], first: usize, z: &mut [f32]) {
    let (rank, columns) = (tensor.rank as usize, tensor.columns as usize);
    let mut at = 0;
    while at < z.len() {
        let (row, column) = ((first + at) / columns, (first + at) % columns);
        let u = &left[tensor.left_first as usize + row * rank..][..rank];
        let count = (columns - column).min(z.len() - at);
        // A vector's V is the 1 at the start.
        let v = &right[tensor.right_first as usize + column * rank..][..count * rank];
        for (z, v) in z[at..at + count].iter_mut().zip(v.chunks_exact(rank)) {
            let mut sum = u[0] * v[0];
            for k in 1..rank {
                sum += u[k] * v[k];
            }
            *z = sum;
        }
        at += count;
    }
}

#[inline(always)]
fn follow(motion: Motion, decays: bool, z: &[f32], values: &mut [f32]) {
    let shrink = if decays { motion.shrink } else { 1.0 };
    let along = shrink * motion.restore + motion.pull;
    for (w, z) in values.iter_mut().zip(z) {
        *w = shrink * *w + along * z;
    }
}

/// V_oldᵀ V_new / n of a matrix. The old V is in its buffer.
fn turn(tensor: &PerturbedTensor, columns_key: u32, right: &[f32], turned: &mut [f32]) {
    if tensor.turns == 0 {
        return;
    }
    let (rank, columns) = (tensor.rank as usize, tensor.columns as usize);
    let product = &mut turned[tensor.turn_first as usize..][..rank * rank];
    product.fill(0.0);
    for column in 0..columns {
        let first = tensor.right_first as usize + column * rank;
        for k in 0..rank {
            let at = first + k;
            let new = normals(columns_key, (at / 4) as u32)[at % 4];
            for l in 0..rank {
                product[l * rank + k] += right[first + l] * new;
            }
        }
    }
    product.iter_mut().for_each(|sum| *sum /= columns as f32);
}

#[cfg(test)]
mod tests {
    use crate::{ErrorKind, Regime, ZerothOrderBuilder, ZerothOrderMethod, faults};

    #[test]
    fn whichever_request_for_memory_fails_the_next_build_works() {
        let mut w = [1.0f32; 12];
        let builder = ZerothOrderBuilder::new(ZerothOrderMethod::lozo_m(), Regime::fixed(0.1));
        let builder = builder.shaped_tensor("w", &[3, 4], &w);
        let refused = |request| faults::with_failing(request, || builder.clone().build_cpu());
        let requests = (0..).map_while(refused).inspect(|built| {
            let error = built.as_ref().expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::DeviceRefused, "{error}");
        });
        assert_eq!(requests.count(), 6);
        builder.build_cpu().expect("builds").perturb(&mut [&mut w]).expect("perturbs");
    }
}
