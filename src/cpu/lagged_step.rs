//! The one sweep of [`StepMode::Lagged`](crate::StepMode::Lagged): twin of `shaders/lagged_step.wgsl`.
//!
//! A block is measured, then updated while it is in the cache, so that memory is gone over once and both halves are the two-pass
//! step's own.

use crate::cpu::reduce_gradient::{BlockSlices, reduce_gradient};
use crate::cpu::update_parameters::{MemorySlices, Wide, update_parameters};
use crate::layout::{Block, GroupConstants, GroupState, ScopeSums, Update};
use crate::plan::Kernel;

/// Elements that are updated in a buffer of their own before they take the place of their gradients.
const TILE: usize = 1024;

/// What the sweep knows of a tensor's group.
pub(crate) struct Lagged<'a> {
    pub(crate) kernel: Kernel,
    pub(crate) constants: &'a GroupConstants,
    pub(crate) state: &'a GroupState,
    pub(crate) update: &'a Update,
}

/// What the sweep of some blocks, side by side, reads and writes.
pub(crate) struct LaggedSlices<'a> {
    pub(crate) blocks: &'a [Block],
    /// One for each block.
    pub(crate) partials: &'a mut [ScopeSums],
    pub(crate) params: &'a [f32],
    /// The new parameters afterwards.
    pub(crate) grads: &'a mut [f32],
    /// Empty where the rule has none, as the next five.
    pub(crate) momentum: &'a [f32],
    pub(crate) next_momentum: &'a mut [f32],
    pub(crate) squares: &'a [f32],
    pub(crate) next_squares: &'a mut [f32],
    pub(crate) counters: &'a [u8],
    pub(crate) next_counters: &'a mut [u8],
}

impl LaggedSlices<'_> {
    /// Splits off the first `blocks`, which have `elements`.
    pub(crate) fn split_at(self, blocks: usize, elements: usize) -> (Self, Self) {
        // Either as long as the parameters or empty.
        let momentum = elements.min(self.momentum.len());
        let squares = elements.min(self.squares.len());
        let counters = elements.min(self.counters.len());
        let blocks = self.blocks.split_at(blocks);
        let partials = self.partials.split_at_mut(blocks.0.len());
        let params = self.params.split_at(elements);
        let grads = self.grads.split_at_mut(elements);
        let next_momentum = self.next_momentum.split_at_mut(momentum);
        let momentum = self.momentum.split_at(momentum);
        let next_squares = self.next_squares.split_at_mut(squares);
        let squares = self.squares.split_at(squares);
        let next_counters = self.next_counters.split_at_mut(counters);
        let counters = self.counters.split_at(counters);
        (
            LaggedSlices {
                blocks: blocks.0,
                partials: partials.0,
                params: params.0,
                grads: grads.0,
                momentum: momentum.0,
                next_momentum: next_momentum.0,
                squares: squares.0,
                next_squares: next_squares.0,
                counters: counters.0,
                next_counters: next_counters.0,
            },
            LaggedSlices {
                blocks: blocks.1,
                partials: partials.1,
                params: params.1,
                grads: grads.1,
                momentum: momentum.1,
                next_momentum: next_momentum.1,
                squares: squares.1,
                next_squares: next_squares.1,
                counters: counters.1,
                next_counters: next_counters.1,
            },
        )
    }
}

/// Measures and updates every block. Inlined, as everything it calls, so that the caller chooses the vector instructions.
#[inline(always)]
pub(crate) fn lagged_step(of: &Lagged, slices: LaggedSlices) {
    let kernel = of.kernel;
    // That the step before was skipped says nothing about this one.
    let update = Update {
        skip: 0,
        ..*of.update
    };
    let mut buffer = [0.0; TILE];
    let mut block_start = 0;
    for (block, partial) in slices.blocks.iter().zip(slices.partials) {
        let block_end = block_start + block.elements as usize;
        let all = block_start..block_end;
        let block_slices = BlockSlices {
            params: &slices.params[all.clone()],
            grads: &slices.grads[all.clone()],
            momentum: slices.momentum.get(all.clone()).unwrap_or_default(),
            // No lagged step measures against them.
            squares: &[],
            counters: slices.counters.get(all).unwrap_or_default(),
            vector: &[],
        };
        *partial = reduce_gradient(kernel, of.constants, of.state, block, block_slices);

        for start in (block_start..block_end).step_by(TILE) {
            let tile = start..block_end.min(start + TILE);
            let new = &mut buffer[..tile.len()];
            new.copy_from_slice(&slices.params[tile.clone()]);
            let next_momentum = carry_over(slices.momentum, slices.next_momentum, tile.clone());
            let next_squares = carry_over(slices.squares, slices.next_squares, tile.clone());
            let next_counters = carry_over(slices.counters, slices.next_counters, tile.clone());
            let elements = Wide {
                params: new,
                grads: &slices.grads[tile.clone()],
            };
            // No averages: it is not known yet whether the step holds.
            let memory = MemorySlices {
                momentum: next_momentum,
                squares: next_squares,
                counters: next_counters,
                ..Default::default()
            };
            update_parameters(kernel, &update, elements, memory);
            slices.grads[tile].copy_from_slice(new);
        }
        block_start = block_end;
    }
}

/// Copies a stretch of memory into the next memory; nothing where there is none.
#[inline(always)]
fn carry_over<'a, T: Copy>(
    memory: &[T],
    next: &'a mut [T],
    stretch: std::ops::Range<usize>,
) -> &'a mut [T] {
    match (memory.get(stretch.clone()), next.get_mut(stretch)) {
        (Some(memory), Some(next)) => {
            next.copy_from_slice(memory);
            next
        }
        _ => &mut [],
    }
}
