//! The loops over elements: blocks in parallel, with the vector instructions of the machine.

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::*;
use crate::cpu::controls::absence_of;
use crate::cpu::factored::{FactorMemory, Factors, follow_moments, limit_of};
use crate::cpu::half::{Number, Remainders, RemaindersMut};
use crate::cpu::orthogonalize::orthogonalize;
use crate::cpu::reduce_gradient::{BlockSlices, reduce_gradient};
use crate::cpu::rows::{Rows, mark};
use crate::cpu::state::{Codes, decode_momentum, decode_squares};
use crate::cpu::update_parameters::{Halves, MemorySlices, SHORT_TILE, TILE, Tiles, Wide, prepare, update_parameters};
use crate::cpu::values::{Slice, SliceMut, Values, ValuesMut};
use crate::layout::{Block, FactoredTensor, GroupConstants, GroupState, NO_ELEMENT, ScopeSums, Squares, Update, skips};
use crate::plan::Kernel;
use crate::rates::RateFactors;
use crate::state;

const STATE_BLOCK: usize = state::BLOCK as usize;

/// Pass 1 over one block. This and [`UpdateStretch`] are types and not closures. A closure of this size is not inlined, and only inlined
/// code is compiled for the processor's vector instructions.
pub(super) struct Reduce<'a, G> {
    pub(super) arch: Arch,
    pub(super) kernel: &'a Kernel,
    pub(super) constants: &'a GroupConstants,
    pub(super) state: &'a GroupState,
    pub(super) block: &'a Block,
    pub(super) params: Slice<'a>,
    pub(super) remainders: Remainders<'a>,
    /// Codes of momentum and second moment, and their scales. Empty if they are not in 8 bits.
    pub(super) codes: ([&'a [u8]; 2], &'a [u32]),
    /// Slices of the block, without the parameters.
    pub(super) slices: BlockSlices<'a, G>,
}

impl<'a> Reduce<'a, f32> {
    /// Returns the same pass over these gradients.
    pub(super) fn over<G>(self, grads: &'a [G]) -> Reduce<'a, G> {
        let slices = self.slices;
        Reduce {
            arch: self.arch,
            kernel: self.kernel,
            constants: self.constants,
            state: self.state,
            block: self.block,
            params: self.params,
            remainders: self.remainders,
            codes: self.codes,
            slices: BlockSlices {
                params: slices.params,
                grads,
                momentum: slices.momentum,
                squares: slices.squares,
                counters: slices.counters,
                vector: slices.vector,
                sums: slices.sums,
            },
        }
    }
}

impl<G: Number> NullaryFnOnce for Reduce<'_, G> {
    type Output = ScopeSums;

    #[inline(always)]
    fn call(self) -> ScopeSums {
        let (kernel, state) = (self.kernel, self.state);
        // The buffer is only filled if it is used.
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
        reduce_gradient(self.arch, *kernel, self.constants, state, self.block, slices)
    }
}

/// Codes of a block's momentum and second moment with their scales, and the buffers that they are decoded to.
struct DecodeBlock<'a>(([&'a [u8]; 2], &'a [u32]), &'a mut [[f32; BLOCK_ELEMENTS as usize]; 2]);

impl NullaryFnOnce for DecodeBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let DecodeBlock(([momentum_codes, squares_codes], scales), [momentum, squares]) = self;
        decode_momentum(momentum_codes, scales, momentum);
        decode_squares(squares_codes, scales, squares);
    }
}

impl<G: Number> Reduce<'_, G> {
    fn run(self) -> ScopeSums {
        let kernel = self.kernel;
        if kernel.bits8 && (kernel.reads_momentum() || kernel.measures_secant()) {
            self.run_on_codes()
        } else {
            self.dispatch()
        }
    }

    /// Not inlined, because the compiler would otherwise put a copy of the loops into each caller.
    #[inline(never)]
    fn dispatch(self) -> ScopeSums {
        self.arch.dispatch(self)
    }

    /// Not inlined, so that blocks without codes do not have the buffers on their stack.
    #[inline(never)]
    fn run_on_codes(self) -> ScopeSums {
        let mut moments = [[0.0; BLOCK_ELEMENTS as usize]; 2];
        self.arch.dispatch(DecodeBlock(self.codes, &mut moments));
        let [momentum_codes, squares_codes] = self.codes.0;
        let [momentum, squares] = &moments;
        let (momentum, squares) = (&momentum[..momentum_codes.len()], &squares[..squares_codes.len()]);
        Reduce { slices: BlockSlices { momentum, squares, ..self.slices }, ..self }.dispatch()
    }
}

/// Pass 4 over a stretch of a tensor.
struct UpdateStretch<'a, 'm, T, const PLAIN: bool> {
    arch: Arch,
    kernel: &'a Kernel,
    update: &'a Update,
    /// Index of the first element in the optimizer.
    first_element: u32,
    elements: T,
    /// Borrowed, because moving it takes as long as updating a small tensor.
    memory: &'a mut MemorySlices<'m>,
}

impl<T: Tiles, const PLAIN: bool> NullaryFnOnce for UpdateStretch<'_, '_, T, PLAIN> {
    /// [`RawRecord::overflow_key`] of these elements.
    type Output = u32;

    #[inline(always)]
    fn call(self) -> u32 {
        let first = update_parameters::<PLAIN>(self.arch, *self.kernel, self.update, self.elements, self.memory);
        first.map_or(0, |first| NO_ELEMENT - (self.first_element + first))
    }
}

/// A pass that a rule owns, over a whole tensor.
trait TensorPass {
    type Output;

    fn run(self, elements: impl Tiles) -> Self::Output;
}

/// The first pass of a rule that works on matrices.
struct Prepare<'a> {
    kernel: &'a Kernel,
    update: &'a Update,
    momentum: &'a [f32],
    prepared: &'a mut [f32],
}

impl TensorPass for Prepare<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, elements: impl Tiles) {
        prepare(*self.kernel, self.update, elements, self.momentum, self.prepared);
    }
}

/// The passes of a rule that limits its directions. Returns the factor of the direction.
struct Limit<'a> {
    kernel: &'a Kernel,
    update: &'a Update,
    tensor: &'a FactoredTensor,
    memory: &'a mut FactorMemory,
    /// Second moments of rows and of columns.
    moments: [&'a mut [f32]; 2],
    /// Second moments of elements, if they are not kept for rows and columns.
    squares: &'a [f32],
}

impl TensorPass for Limit<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self, mut elements: impl Tiles) -> f32 {
        let Limit { kernel, update, tensor, memory, moments: [rows, columns], squares } = self;
        let is_factored = kernel.rule.traits().factored;
        if is_factored {
            follow_moments(*kernel, update, tensor, &mut elements, [&mut *rows, &mut *columns], memory);
        }
        let factors = Factors { tensor, moments: [rows, columns], means: &memory.means, first: 0 };
        limit_of(*kernel, update, tensor, &mut elements, squares, is_factored.then_some(factors))
    }
}

/// A pass with the elements that it processes.
struct Over<T, P>(T, P);

impl<T: Tiles, P: TensorPass> NullaryFnOnce for Over<T, P> {
    type Output = P::Output;

    #[inline(always)]
    fn call(self) -> P::Output {
        self.1.run(self.0)
    }
}

/// Runs a pass over a whole tensor.
fn over_tensor<P: TensorPass>(
    arch: Arch,
    kernel: &Kernel,
    params: &mut SliceMut,
    grads: Slice,
    remainders: RemaindersMut,
    pass: P,
) -> P::Output {
    if let (SliceMut::F32(params), Slice::F32(grads)) = (&mut *params, grads) {
        return arch.dispatch(Over(Wide { params, grads }, pass));
    }
    let [params_buffer, grads_buffer] = &mut [[0.0; SHORT_TILE]; 2];
    let elements = Halves {
        params: params.reborrow(),
        grads,
        remainders,
        encoding: kernel.encoding,
        // The key is not used, because nothing is encoded.
        rounding_key: 0,
        first_element: 0,
        buffers: [params_buffer, grads_buffer],
    };
    arch.dispatch(Over(elements, pass))
}

/// A stretch of a tensor of any element type.
pub(super) struct StretchSlices<'a> {
    pub(super) params: SliceMut<'a>,
    pub(super) grads: Slice<'a>,
    /// Remainders of 16-bit parameters. Empty if none are kept.
    pub(super) remainders: RemaindersMut<'a>,
    /// Index of the first element in the optimizer.
    pub(super) first_element: u32,
    pub(super) memory: MemorySlices<'a>,
}

impl StretchSlices<'_> {
    /// Splits the stretch at an element, which must be a multiple of [`BLOCK_ELEMENTS`] or the end.
    #[inline(always)]
    pub(super) fn split_at(self, middle: usize) -> (Self, Self) {
        let (params, params_after) = self.params.split_at(middle);
        let (grads, grads_after) = self.grads.split_at(middle);
        let (remainders, remainders_after) = self.remainders.split_at(middle);
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

/// Pass 4 over elements that one thread updates. Returns [`RawRecord::overflow_key`].
fn update_stretch<T: Tiles>(
    arch: Arch,
    kernel: &Kernel,
    update: &Update,
    first_element: u32,
    elements: T,
    memory: &mut MemorySlices,
) -> u32 {
    if memory.is_plain(kernel) {
        arch.dispatch(UpdateStretch::<_, true> { arch, kernel, update, first_element, elements, memory })
    } else {
        arch.dispatch(UpdateStretch::<_, false> { arch, kernel, update, first_element, elements, memory })
    }
}

/// Halves a tensor, at multiples of the block, until a half is too small for another thread. Returns [`RawRecord::overflow_key`].
pub(super) fn update_in_halves(arch: Arch, kernel: &Kernel, update: &Update, mut slices: StretchSlices) -> u32 {
    let block = BLOCK_ELEMENTS as usize;
    let elements = slices.params.len();
    if elements <= block * PARALLEL_BLOCKS / 4 {
        let StretchSlices { params, grads, remainders, first_element, ref mut memory } = slices;
        return match (params, grads) {
            (SliceMut::F32(params), Slice::F32(grads)) => {
                update_stretch(arch, kernel, update, first_element, Wide { params, grads }, memory)
            }
            (params, grads) => {
                let mut short = [[0.0; SHORT_TILE]; 2];
                let mut long;
                // Sums of the step are added up in the order of longer tiles.
                let [params_buffer, grads_buffer] = if memory.step_sums.is_empty() {
                    short.each_mut().map(|buffer| &mut buffer[..])
                } else {
                    long = [[0.0; TILE]; 2];
                    long.each_mut().map(|buffer| &mut buffer[..])
                };
                let elements = Halves {
                    params,
                    grads,
                    remainders,
                    encoding: kernel.encoding,
                    rounding_key: update.rounding_key,
                    first_element,
                    buffers: [params_buffer, grads_buffer],
                };
                update_stretch(arch, kernel, update, first_element, elements, memory)
            }
        };
    }
    let middle = elements.div_ceil(block) / 2 * block;
    let (before, after) = slices.split_at(middle);
    let (before, after) = rayon::join(
        || update_in_halves(arch, kernel, update, before),
        || update_in_halves(arch, kernel, update, after),
    );
    before.max(after)
}

/// Runs pass 1 over a block of a tensor. It is not generic over the caller's types, so that the kernels are compiled with this crate and not
/// with every crate that takes a step.
#[expect(clippy::too_many_arguments, reason = "a tensor and all that its kernel reads")]
fn reduce_block(
    arch: Arch,
    kernel: &Kernel,
    tensor: &TensorMemory,
    number: usize,
    groups: &[GroupConstants],
    states: &[GroupState],
    params: Slice,
    grads: Slice,
) -> ScopeSums {
    let block = &tensor.blocks[number];
    let (start, end) = (block.params_start as usize, (block.params_start + block.elements) as usize);
    let group = block.group as usize;
    if !tensor.present || absence_of(&groups[group]) != 0 {
        return no_totals();
    }
    let of = Reduce {
        arch,
        kernel,
        constants: &groups[group],
        state: &states[group],
        block,
        params: params.range(start..end),
        remainders: tensor.memory.remainders.as_ref().range(start..end),
        codes: {
            let codes = [&tensor.memory.momentum_codes, &tensor.memory.squares_codes];
            let scales = tensor.memory.scales.get(start / STATE_BLOCK..end.div_ceil(STATE_BLOCK));
            (codes.map(|codes| codes.get(start..end).unwrap_or_default()), scales.unwrap_or_default())
        },
        slices: BlockSlices {
            params: &[],
            grads: &[],
            momentum: tensor.memory.momentum.get(start..end).unwrap_or_default(),
            squares: match kernel.rule.traits().largest_squares {
                true => &tensor.memory.largest_squares[start..end],
                false => tensor.memory.squares.get(start..end).unwrap_or_default(),
            },
            counters: tensor.memory.counters.get(start..end).unwrap_or_default(),
            vector: if kernel.compares_iterates() {
                &tensor.averages[start..end]
            } else {
                tensor.memory.vector.get(start..end).unwrap_or_default()
            },
            sums: tensor.memory.streams[0].get(start..end).unwrap_or_default(),
        },
    };
    match grads.range(start..end) {
        Slice::F32(grads) => of.over(grads).run(),
        Slice::F16(grads) => of.over(grads).run(),
        Slice::Bf16(grads) => of.over(grads).run(),
    }
}

/// Pass 4, for one tensor after another.
struct UpdatePass<'a> {
    arch: Arch,
    updates: &'a [Update],
    configs: &'a [GroupConfig],
    parallel: bool,
}

impl UpdatePass<'_> {
    /// Updates a tensor. Returns [`RawRecord::overflow_key`]. Like [`reduce_block`] it is not generic over the caller's types.
    fn run(&self, tensor: &mut TensorMemory, mut params: SliceMut, grads: Slice) -> u32 {
        let UpdatePass { arch, updates, configs, parallel } = *self;
        let TensorMemory { present, kernel, blocks, memory, matrix, limited, rows, averages, step_sums, .. } = tensor;
        let (Some(kernel), Some(block)) = (&*kernel, blocks.first()) else {
            return 0;
        };
        let update = &updates[block.group as usize];
        if update.skip == skips::SKIP_ALL {
            0
        } else if !*present {
            for sums in step_sums {
                sums.step = Squares::default();
            }
            0
        } else {
            if let (Some(matrix), 0) = (&mut *matrix, update.skip) {
                let pass = Prepare { kernel, update, momentum: &memory.momentum, prepared: &mut matrix.1.directions };
                over_tensor(arch, kernel, &mut params, grads, memory.remainders.as_mut(), pass);
                orthogonalize(&matrix.0, kernel.iterations, &mut matrix.1, parallel);
            }
            let mut update = update;
            let mut limited_update;
            if let (Some((tensor, work)), 0) = (&mut *limited, update.skip) {
                let moments = memory.factors.each_mut().map(Vec::as_mut_slice);
                let pass = Limit { kernel, update, tensor, memory: work, moments, squares: &memory.squares };
                limited_update = *update;
                limited_update.learning_rate *=
                    over_tensor(arch, kernel, &mut params, grads, memory.remainders.as_mut(), pass);
                update = &limited_update;
            }
            let factors = limited.as_ref().filter(|_| kernel.rule.traits().factored);
            let factors = factors.map(|(limited, work)| Factors {
                tensor: limited,
                moments: memory.factors.each_ref().map(Vec::as_slice),
                means: &work.means,
                first: 0,
            });
            if let (Some((shape, touched)), 0) = (&mut *rows, update.skip) {
                mark(shape.columns, grads, touched);
            }
            let factors_of_rates = configs[block.group as usize].rate_factors.as_ref();
            let rows = rows.as_ref().map(|(shape, touched)| Rows {
                columns: shape.columns,
                of_rows: match factors_of_rates {
                    Some(RateFactors::Rows(factors)) => factors,
                    _ => &[],
                },
                of_columns: match factors_of_rates {
                    Some(RateFactors::Columns(factors)) => factors,
                    _ => &[],
                },
                touched,
                first: 0,
            });
            let directions = matrix.as_mut().map(|(_, memory)| memory.directions.as_mut_slice());
            update_in_halves(
                arch,
                kernel,
                update,
                StretchSlices {
                    params,
                    grads,
                    remainders: memory.remainders.as_mut(),
                    first_element: block.first_element,
                    memory: MemorySlices {
                        momentum: &mut memory.momentum,
                        squares: directions.unwrap_or(&mut memory.squares),
                        factors,
                        rows,
                        largest_squares: &mut memory.largest_squares,
                        codes: Codes {
                            momentum: &mut memory.momentum_codes,
                            squares: &mut memory.squares_codes,
                            scales: &mut memory.scales,
                            first_element: block.first_element,
                        },
                        counters: &mut memory.counters,
                        vector: &mut memory.vector,
                        averages,
                        step_sums,
                        streams: memory.streams.each_mut().map(Vec::as_mut_slice),
                    },
                },
            )
        }
    }
}

impl CpuOptimizer {
    /// Runs pass 1 over all blocks, with the kernel of the step or of a look. Blocks without this kernel keep their sums.
    pub(super) fn reduce(
        &mut self,
        params: &[impl Values],
        grads: &[impl Values],
        kernel_of: fn(&TensorMemory) -> Option<&Kernel>,
    ) {
        let (tensors, groups, states) = (&self.tensors, &self.plan.groups, &self.states);
        if !tensors.iter().any(|tensor| kernel_of(tensor).is_some()) {
            return;
        }
        let arch = self.arch;
        let sweep = |(partial, &(index, number)): (&mut ScopeSums, &(usize, usize))| {
            let tensor = &tensors[index];
            if let Some(kernel) = kernel_of(tensor) {
                let (params, grads) = (params[index].values(), grads[index].values());
                *partial = reduce_block(arch, kernel, tensor, number, groups, states, params, grads);
            }
        };
        if self.parallel {
            self.partials.par_iter_mut().zip(self.rows.par_iter()).for_each(sweep);
        } else {
            self.partials.iter_mut().zip(&self.rows).for_each(sweep);
        }
    }

    /// Runs pass 4 over all blocks. Writes to the step's record which element was out of range, if any.
    pub(super) fn update(&mut self, params: &mut [impl ValuesMut], grads: &[impl Values]) {
        let pass = UpdatePass {
            arch: self.arch,
            updates: &self.updates,
            configs: &self.plan.configs,
            parallel: self.parallel,
        };
        let key = if self.parallel {
            let tensors = self.tensors.par_iter_mut().zip(params.par_iter_mut()).zip(grads.par_iter());
            let keys = tensors.map(|((tensor, params), grads)| pass.run(tensor, params.values_mut(), grads.values()));
            keys.reduce(|| 0, u32::max)
        } else {
            let tensors = self.tensors.iter_mut().zip(params.iter_mut()).zip(grads.iter());
            let keys = tensors.map(|((tensor, params), grads)| pass.run(tensor, params.values_mut(), grads.values()));
            keys.fold(0, u32::max)
        };
        if key != 0 {
            // Pass 3 has already advanced the slot in the ring.
            let slot = self.states[0].record_slot as usize - 1;
            self.records[slot * self.plan.groups.len()].overflow_key = key;
        }
    }
}
