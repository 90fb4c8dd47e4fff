//! The dispatches over elements, window by window, and the buffers that they bind.

use super::averages::{ScheduleFree, WindowAverages};
use super::*;
use crate::gpu::buffers::{filled, part, whole, zeroed};
use crate::gpu::context::Gpu;
use crate::gpu::factored::{self, FactorMemory};
use crate::gpu::orthogonalize::{self, MatrixMemory};
use crate::gpu::pass::Pipeline;
use crate::gpu::rows::{self, RowMemory};
use crate::gpu::swap_averages::Exchange;
use crate::gpu::{reduce_gradient, swap_averages, update_parameters};
use crate::layout::Block;
use crate::plan::{Access, Kernel, MemoryKind, Plan, Window};

/// Buffers of the whole optimizer that sweeps read or write.
#[derive(Debug, Clone)]
pub(super) struct Tables {
    pub(super) step_partials: wgpu::Buffer,
    pub(super) records: wgpu::Buffer,
    pub(super) groups: wgpu::Buffer,
    pub(super) states: wgpu::Buffer,
    pub(super) updates: wgpu::Buffer,
    pub(super) partials: wgpu::Buffer,
}

/// Buffers of a window that do not depend on where its parameters are.
#[derive(Debug)]
pub(in crate::gpu) struct WindowMemory {
    /// A buffer of each kind that the window's kernel keeps, and one for all kinds of the rule.
    pub(in crate::gpu) kinds: Vec<(MemoryKind, wgpu::Buffer)>,
    /// Buffers and tables of passes that the rule owns.
    matrices: Option<MatrixMemory>,
    factors: Option<FactorMemory>,
    /// Factors and flags of rows.
    rows: Option<RowMemory>,
}

impl WindowMemory {
    pub(super) fn new(gpu: &Gpu, plan: &Plan, window: &Window) -> Self {
        let kept = |kind: &MemoryKind| window.kernel.keeps(*kind);
        // The kinds of the rule follow one another in the buffer of the first.
        let of_the_rule: Vec<MemoryKind> = MemoryKind::OF_THE_RULE.iter().copied().filter(kept).collect();
        let has_buffer = |kind: &MemoryKind| !of_the_rule.iter().skip(1).any(|behind| behind == kind);
        let kinds = window.kernel.memories().filter(has_buffer).map(|kind| {
            let all = if of_the_rule.contains(&kind) { &of_the_rule[..] } else { &[kind] };
            // Factored moments are followed by their means, which each step computes anew.
            let means = if kind == MemoryKind::RowSecondMoment { 4 * window.room.means } else { 0 };
            let bytes = all.iter().map(|&kind| window.memory_bytes(kind)).sum::<u64>() + means;
            (kind, zeroed::<u8>(gpu, kind.name(), bytes))
        });
        WindowMemory {
            kinds: kinds.collect(),
            matrices: MatrixMemory::new(gpu, window),
            factors: FactorMemory::new(gpu, window),
            rows: RowMemory::new(gpu, plan, window),
        }
    }

    /// Returns the buffer of the first of these kinds that exists.
    pub(super) fn find(&self, wanted: &[MemoryKind]) -> Option<&wgpu::Buffer> {
        let mut kinds = self.kinds.iter();
        let (_, buffer) = kinds.find(|(kind, _)| wanted.contains(kind))?;
        Some(buffer)
    }

    /// Returns the buffer of a kind that is kept, and the kind's first byte in it.
    #[cfg(feature = "checkpoint")]
    pub(super) fn place_of(&self, window: &Window, kind: MemoryKind) -> Option<(&wgpu::Buffer, u64)> {
        if !MemoryKind::OF_THE_RULE.contains(&kind) {
            return Some((self.find(&[kind])?, 0));
        }
        let before = MemoryKind::OF_THE_RULE.iter().copied().take_while(|&other| other != kind);
        let start = before.filter(|&other| window.kernel.keeps(other)).map(|other| window.memory_bytes(other)).sum();
        Some((self.find(MemoryKind::OF_THE_RULE)?, start))
    }
}

/// Returns the buffers that are bound in the place of a memory that is not kept. There are two, because one may be read while the other is written.
pub(super) fn no_memory(gpu: &Gpu) -> [wgpu::Buffer; 2] {
    [(); 2].map(|()| zeroed::<u8>(gpu, "no memory", 0))
}

/// Index of a sweep's bind group with the window's own buffers.
pub(super) const OWN_BUFFERS: usize = 1;

/// Buffers of a sweep in the bind group [`OWN_BUFFERS`].
struct OwnBuffers<'a> {
    blocks: &'a wgpu::Buffer,
    params: wgpu::BufferBinding<'a>,
    grads: wgpu::BufferBinding<'a>,
    momentum: &'a wgpu::Buffer,
    /// Buffer with which pass 1 compares the gradient: `memory`, or z of schedule-free training, which pass 4 has in another bind group.
    compared: &'a wgpu::Buffer,
    memory: &'a wgpu::Buffer,
    remainders: &'a wgpu::Buffer,
    /// Output of the first pass of a rule with passes over matrices.
    prepared: &'a wgpu::Buffer,
    /// Output of a rule's own passes that the update reads: directions, or limited tensors, which the rule's passes over elements read too.
    made: &'a wgpu::Buffer,
    /// Factors of rows or columns, and flags of rows.
    rows: &'a wgpu::Buffer,
}

impl<'a> OwnBuffers<'a> {
    /// Returns the bindings of the pass that measures, or of those that write.
    fn bindings(&self, sweep: Sweep) -> [wgpu::BufferBinding<'a>; 8] {
        [
            whole(self.blocks),
            self.params.clone(),
            self.grads.clone(),
            whole(self.momentum),
            whole(if sweep == Sweep::Reduce { self.compared } else { self.memory }),
            whole(self.remainders),
            whole(if sweep == Sweep::Prepare { self.prepared } else { self.made }),
            whole(self.rows),
        ]
    }
}

/// The kernel of a step in one dispatch, and the optimizer's buffers that it binds.
pub(super) type WholeKernel<'a> = (Pipeline, &'a [wgpu::BufferBinding<'a>]);

/// The dispatches of passes 1 and 4, and the data of their windows.
#[derive(Debug, Clone, Default)]
pub(super) struct Sweeps {
    pub(super) reduce: Vec<Dispatch>,
    /// The passes of rules and pass 4, or the whole step.
    pub(super) update: Vec<Dispatch>,
    pub(super) averages: Vec<WindowAverages>,
    /// The blocks of each window.
    pub(super) blocks: Vec<wgpu::Buffer>,
}

pub(super) fn sweeps(
    passes: Passes,
    windows: &[Window],
    buffers: &[wgpu::Buffer],
    memories: &[WindowMemory],
    tables: &Tables,
    whole_step: Option<&WholeKernel>,
) -> Sweeps {
    let gpu = passes.gpu;
    let mut sweeps = Sweeps::default();
    let nothing = no_memory(gpu);
    for (index, window) in windows.iter().enumerate() {
        let WindowMemory { matrices, factors, rows, .. } = &memories[window.memory];
        let memory = &memories[window.memory];
        let momentum = memory.find(MemoryKind::OF_THE_RULE).unwrap_or(&nothing[0]);
        let regimes = memory.find(MemoryKind::OF_THE_REGIME).unwrap_or(&nothing[1]);
        let base_iterates =
            window.kernel.compares_iterates().then(|| memory.find(&[MemoryKind::BaseIterates])).flatten();
        let remainders = memory.find(&[MemoryKind::Remainders, MemoryKind::RemainderCodes]);
        let prepared = matrices.as_ref().map(|memory| memory.prepared(window.kernel.iterations));
        let directions = matrices.as_ref().map(|memory| &memory.directions);
        let made = directions.or(factors.as_ref().map(|memory| &memory.tensors));
        let blocks = filled::<Block>(gpu, "blocks", &window.blocks);
        let own_buffers = OwnBuffers {
            blocks: &blocks,
            params: part(&buffers[window.params.buffer], window.params),
            grads: part(&buffers[window.grads.buffer], window.grads),
            momentum,
            compared: base_iterates.unwrap_or(regimes),
            memory: regimes,
            remainders: remainders.unwrap_or(&nothing[1]),
            prepared: prepared.unwrap_or(&nothing[0]),
            made: made.unwrap_or(&nothing[0]),
            rows: rows.as_ref().map_or(&nothing[0], |memory| &memory.table),
        };
        let own_of = |sweep| own_buffers.bindings(sweep);
        sweeps.blocks.push(blocks.clone());
        let own = own_of(Sweep::Update);
        let averaged = memory.find(&[MemoryKind::Averages, MemoryKind::BaseIterates]);
        let averages = averaged.map(|buffer| passes.averages(index, window, tables, &own, buffer));
        sweeps.averages.extend(averages);
        if let Some((pipeline, of_groups)) = whole_step {
            let averaged: Vec<_> = averaged.map(whole).into_iter().collect();
            sweeps.update.push(bound(gpu, PassName::WholeStep, pipeline, &[of_groups, &own, &averaged], 1));
            continue;
        }
        let measured = [whole(&tables.groups), whole(&tables.states), whole(&tables.partials)];
        let reduce = window.kernel.measured();
        let reduce = reduce.map(|_| passes.dispatch(Sweep::Reduce, window, &[&measured, &own_of(Sweep::Reduce)]));
        sweeps.reduce.extend(reduce);
        let update = &mut sweeps.update;
        let updates = [whole(&tables.updates)];
        if let Some(memory) = matrices {
            let groups: [&[_]; 3] = [&updates, &own_of(Sweep::Prepare), &[whole(&memory.squares)]];
            update.push(passes.dispatch(Sweep::Prepare, window, &groups));
            update.extend(orthogonalize::dispatches(gpu, window, memory, &tables.updates, &blocks));
        }
        if let Some(memory) = factors {
            let [between, after] = factored::dispatches(gpu, window, memory, &tables.updates, &blocks, momentum);
            if memory.tiles.workgroups > 0 {
                let tables = [whole(&tables.updates), whole(&memory.tiles.table)];
                let groups: [&[_]; 3] = [&tables, &own_of(Sweep::Sums), &[whole(&memory.partials)]];
                let sums = passes.dispatch(Sweep::Sums, window, &groups);
                update.push(Dispatch { workgroups: memory.tiles.workgroups, ..sums });
            }
            update.extend(between);
            let groups: [&[_]; 3] = [&updates, &own_of(Sweep::Lengths), &[whole(&memory.squares)]];
            update.push(passes.dispatch(Sweep::Lengths, window, &groups));
            update.extend(after);
        }
        if let Some(stretches) = rows.as_ref().and_then(|memory| memory.stretches.as_ref()) {
            let tables = [whole(&tables.updates), whole(&stretches.table)];
            let marks = passes.dispatch(Sweep::Mark, window, &[&tables, &own_of(Sweep::Mark)]);
            update.push(Dispatch { workgroups: stretches.workgroups, ..marks });
        }
        update.push(passes.update(window, tables, &own, averaged));
    }
    sweeps
}

/// Returns a pass with the buffers of its bind groups. Bind groups that its kernel does not have are ignored.
fn bound(
    gpu: &Gpu,
    pass: PassName,
    pipeline: &Pipeline,
    groups: &[&[wgpu::BufferBinding]],
    workgroups: u32,
) -> Dispatch {
    let groups = groups.iter().take(pipeline.groups()).enumerate();
    Dispatch {
        pass,
        bind_groups: groups.map(|(index, buffers)| pipeline.bind(gpu.device(), index, buffers)).collect(),
        pipeline: pipeline.pipeline.clone(),
        workgroups,
    }
}

/// A pass over a window's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Sweep {
    Reduce,
    /// The first of the passes over matrices that a rule owns.
    Prepare,
    /// Sums of rows and columns, the first of the passes of a rule with factored second moments.
    Sums,
    /// The length of the direction, for a rule that limits it.
    Lengths,
    /// Marks the rows with gradients, for a group that skips the others.
    Mark,
    Update,
    /// Exchanges parameters and averages.
    Exchange,
    /// Restores parameters that were exchanged with averages that are not stored.
    Back,
    /// Fills averages that have not started, or copies averages that are not stored.
    Settle,
}

impl Sweep {
    pub(super) fn pass(self) -> PassName {
        match self {
            Sweep::Reduce => PassName::ReduceGradient,
            Sweep::Prepare | Sweep::Sums | Sweep::Lengths | Sweep::Mark => PassName::Prepare,
            Sweep::Update => PassName::UpdateParameters,
            Sweep::Exchange | Sweep::Back | Sweep::Settle => PassName::SwapAverages,
        }
    }
}

/// Compiles the sweeps over windows and binds their buffers.
#[derive(Clone, Copy)]
pub(super) struct Passes<'a> {
    pub(super) gpu: &'a Gpu,
    /// True if parameters and gradients may later move into one buffer.
    pub(super) rebindable: bool,
}

impl Passes<'_> {
    /// Returns pass 4, with the window's averages if it keeps any.
    pub(super) fn update(
        self,
        window: &Window,
        tables: &Tables,
        own: &[wgpu::BufferBinding],
        averages: Option<&wgpu::Buffer>,
    ) -> Dispatch {
        let told = whole(if window.kernel.step_sums { &tables.step_partials } else { &tables.records });
        // Without averages, the kernel does not have this binding, and the buffer is not bound.
        let averages = averages.map_or(told.clone(), whole);
        self.dispatch(Sweep::Update, window, &[&[whole(&tables.updates)], own, &[averages, told]])
    }

    /// Returns the averages that a window keeps in this buffer.
    pub(super) fn averages(
        self,
        index: usize,
        window: &Window,
        tables: &Tables,
        own: &[wgpu::BufferBinding],
        buffer: &wgpu::Buffer,
    ) -> WindowAverages {
        let updates = [whole(&tables.updates)];
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
        WindowAverages { window: index, buffer: buffer.clone(), exchange, settle, schedule_free }
    }

    /// Returns a sweep over a window, with the buffers of its bind groups.
    pub(super) fn dispatch(self, sweep: Sweep, window: &Window, groups: &[&[wgpu::BufferBinding]]) -> Dispatch {
        bound(self.gpu, sweep.pass(), &self.compiled(sweep, window), groups, window.blocks.len() as u32)
    }

    pub(super) fn reduce(self, kernel: Kernel, access: Access) -> Pipeline {
        reduce_gradient::pipeline(self.gpu, &self.gpu.tuning(), kernel, access)
    }

    pub(super) fn compiled(self, sweep: Sweep, window: &Window) -> Pipeline {
        let (kernel, access) = (window.kernel, window.access);
        let (gpu, tuning) = (self.gpu, self.gpu.tuning());
        let exchange = match (sweep, kernel.schedule_free) {
            (Sweep::Reduce, _) => return self.reduce(kernel, access),
            (Sweep::Prepare, _) => return orthogonalize::prepare_pipeline(gpu, &tuning, kernel, access),
            (Sweep::Sums, _) => return factored::sums_pipeline(gpu, kernel, access),
            (Sweep::Lengths, _) => return factored::lengths_pipeline(gpu, &tuning, kernel, access),
            (Sweep::Mark, _) => return rows::mark_pipeline(gpu, kernel, access),
            (Sweep::Update, _) => {
                // Only the update writes parameters while it reads gradients, so only its kernel depends on a shared buffer.
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
