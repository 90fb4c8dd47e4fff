//! The dispatches that go over elements, window by window, and what they are bound to.

use super::averages::{ScheduleFree, WindowAverages};
use super::*;
use crate::gpu::buffers::{filled, part, whole, zeroed};
use crate::gpu::context::Gpu;
use crate::gpu::factored::{self, FactorMemory};
use crate::gpu::optimizer::rebind::Movable;
use crate::gpu::orthogonalize::{self, MatrixMemory};
use crate::gpu::pass::Pipeline;
use crate::gpu::rows::{self, RowMemory};
use crate::gpu::swap_averages::Exchange;
use crate::gpu::{reduce_gradient, swap_averages, update_parameters};
use crate::layout::Block;
use crate::plan::{Access, Kernel, MemoryKind, Plan, Window};

/// The buffers of whole optimizers that sweeps read or write.
#[derive(Clone, Copy)]
pub(super) struct Tables<'a> {
    pub(super) step_partials: &'a wgpu::Buffer,
    pub(super) records: &'a wgpu::Buffer,
    pub(super) groups: &'a wgpu::Buffer,
    pub(super) states: &'a wgpu::Buffer,
    pub(super) updates: &'a wgpu::Buffer,
    pub(super) partials: &'a wgpu::Buffer,
}

/// What is remembered of a window's parameters.
#[derive(Debug)]
pub(in crate::gpu) struct WindowMemory {
    /// A buffer of each kind that the window's kernel keeps, and one for all kinds of the rule.
    pub(in crate::gpu) kinds: Vec<(MemoryKind, wgpu::Buffer)>,
}

impl WindowMemory {
    pub(super) fn new(gpu: &Gpu, window: &Window) -> Self {
        let kept = |kind: &MemoryKind| window.kernel.keeps(*kind);
        // Kinds of the rule lie one behind the other in the buffer of the first.
        let of_the_rule: Vec<MemoryKind> = MemoryKind::OF_THE_RULE.iter().copied().filter(kept).collect();
        let has_buffer = |kind: &MemoryKind| !of_the_rule.iter().skip(1).any(|behind| behind == kind);
        let kinds = window.kernel.memories().filter(has_buffer).map(|kind| {
            let all = if of_the_rule.contains(&kind) { &of_the_rule[..] } else { &[kind] };
            // Behind factored moments lie their means, which are made anew in each step.
            let means = if kind == MemoryKind::RowSecondMoment { 4 * window.room.means } else { 0 };
            let bytes = all.iter().map(|&kind| window.memory_bytes(kind)).sum::<u64>() + means;
            (kind, zeroed::<u8>(gpu, kind.name(), bytes))
        });
        WindowMemory { kinds: kinds.collect() }
    }

    /// The first of these kinds that there is.
    pub(super) fn find(&self, wanted: &[MemoryKind]) -> Option<&wgpu::Buffer> {
        let mut kinds = self.kinds.iter();
        let (_, buffer) = kinds.find(|(kind, _)| wanted.contains(kind))?;
        Some(buffer)
    }

    /// A kind that is kept: the buffer, and its first byte there.
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

/// What is bound where nothing is kept. Two, since one of them may be read while the other is written.
pub(super) fn no_memory(gpu: &Gpu) -> [wgpu::Buffer; 2] {
    [(); 2].map(|()| zeroed::<u8>(gpu, "no memory", 0))
}

/// The bind group of a sweep that has the window's own buffers.
pub(super) const OWN_BUFFERS: usize = 1;

/// What a sweep binds there beside parameters and gradients.
#[derive(Debug)]
pub(super) struct OwnBuffers {
    pub(super) blocks: wgpu::Buffer,
    pub(super) momentum: wgpu::Buffer,
    /// What pass 1 compares the gradient with: the next, or z of schedule-free training, which pass 4 has in a bind group of its own.
    pub(super) compared: wgpu::Buffer,
    pub(super) memory: wgpu::Buffer,
    pub(super) remainders: wgpu::Buffer,
    /// Of a rule that owns passes over matrices: what the first of them writes.
    pub(super) prepared: wgpu::Buffer,
    /// What the update reads of a rule's own passes: directions, or limited tensors, which those over elements read too.
    pub(super) made: wgpu::Buffer,
    /// Factors of rows or columns, and flags of rows.
    pub(super) rows: wgpu::Buffer,
}

impl OwnBuffers {
    /// Of the pass that measures, or of those that write.
    pub(super) fn bindings<'a>(
        &'a self,
        sweep: Sweep,
        params: wgpu::BufferBinding<'a>,
        grads: wgpu::BufferBinding<'a>,
    ) -> [wgpu::BufferBinding<'a>; 8] {
        [
            whole(&self.blocks),
            params,
            grads,
            whole(&self.momentum),
            whole(if sweep == Sweep::Reduce { &self.compared } else { &self.memory }),
            whole(&self.remainders),
            whole(if sweep == Sweep::Prepare { &self.prepared } else { &self.made }),
            whole(&self.rows),
        ]
    }
}

/// The kernel of a step in one dispatch, and what it binds of the whole optimizer.
pub(super) type WholeKernel<'a> = (Pipeline, &'a [wgpu::BufferBinding<'a>]);

/// The dispatches of passes 1 and 4, and what belongs to their windows.
#[derive(Default)]
pub(super) struct Sweeps {
    pub(super) reduce: Vec<Dispatch>,
    /// The passes that rules own, and pass 4; or the whole step.
    pub(super) update: Vec<Dispatch>,
    pub(super) averages: Vec<WindowAverages>,
    /// The blocks of each window.
    pub(super) blocks: Vec<wgpu::Buffer>,
    /// Of an optimizer that can be rebound.
    pub(super) movables: Vec<Movable>,
}

pub(super) fn sweeps(
    gpu: &Gpu,
    plan: &Plan,
    buffers: &[wgpu::Buffer],
    memories: &[WindowMemory],
    tables: Tables,
    rebindable: bool,
    whole_step: Option<&WholeKernel>,
) -> Sweeps {
    let passes = Passes { gpu, rebindable };
    let mut sweeps = Sweeps::default();
    let nothing = no_memory(gpu);
    for (index, (window, memory)) in plan.windows.iter().zip(memories).enumerate() {
        let momentum = memory.find(MemoryKind::OF_THE_RULE);
        let regimes = memory.find(MemoryKind::OF_THE_REGIME).unwrap_or(&nothing[1]);
        let base_iterates =
            window.kernel.compares_iterates().then(|| memory.find(&[MemoryKind::BaseIterates])).flatten();
        let remainders = memory.find(&[MemoryKind::Remainders, MemoryKind::RemainderCodes]);
        let matrices = MatrixMemory::new(gpu, window);
        let prepared = matrices.as_ref().map(|memory| memory.prepared(window.kernel.iterations));
        let directions = matrices.as_ref().map(|memory| &memory.directions);
        let factors = FactorMemory::new(gpu, window);
        let rows = RowMemory::new(gpu, plan, window);
        let made = directions.or(factors.as_ref().map(|memory| &memory.tensors));
        let buffers_of_window = OwnBuffers {
            prepared: prepared.unwrap_or(&nothing[0]).clone(),
            made: made.unwrap_or(&nothing[0]).clone(),
            rows: rows.as_ref().map_or(&nothing[0], |memory| &memory.table).clone(),
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
        sweeps.blocks.push(buffers_of_window.blocks.clone());
        let own = own_of(Sweep::Update);
        let averaged = memory.find(&[MemoryKind::Averages, MemoryKind::BaseIterates]);
        let averages = averaged.map(|buffer| passes.averages(index, window, tables, &own, buffer));
        if let Some((pipeline, of_groups)) = whole_step {
            sweeps.averages.extend(averages);
            let averaged: Vec<_> = averaged.map(whole).into_iter().collect();
            sweeps.update.push(bound(gpu, PassName::WholeStep, pipeline, &[of_groups, &own, &averaged], 1));
            continue;
        }
        let measured = [whole(tables.groups), whole(tables.states), whole(tables.partials)];
        let reduce = window.kernel.measured();
        let reduce = reduce.map(|_| passes.dispatch(Sweep::Reduce, window, &[&measured, &own_of(Sweep::Reduce)]));
        let update = passes.update(window, tables, &own, averaged);
        let mut before_update = Vec::new();
        let mut own_sweeps = Vec::new();
        let updates = [whole(tables.updates)];
        if let Some(memory) = &matrices {
            own_sweeps.push(Sweep::Prepare);
            let groups: [&[_]; 3] = [&updates, &own_of(Sweep::Prepare), &[whole(&memory.squares)]];
            before_update.push(passes.dispatch(Sweep::Prepare, window, &groups));
            let blocks = &buffers_of_window.blocks;
            before_update.extend(orthogonalize::dispatches(gpu, window, memory, tables.updates, blocks));
        }
        if let Some(memory) = &factors {
            let (blocks, moments) = (&buffers_of_window.blocks, &buffers_of_window.momentum);
            let [between, after] = factored::dispatches(gpu, window, memory, tables.updates, blocks, moments);
            if memory.tiles.workgroups > 0 {
                own_sweeps.push(Sweep::Sums);
                let tables = [whole(tables.updates), whole(&memory.tiles.table)];
                let groups: [&[_]; 3] = [&tables, &own_of(Sweep::Sums), &[whole(&memory.partials)]];
                let sums = passes.dispatch(Sweep::Sums, window, &groups);
                before_update.push(Dispatch { workgroups: memory.tiles.workgroups, ..sums });
            }
            before_update.extend(between);
            own_sweeps.push(Sweep::Lengths);
            let groups: [&[_]; 3] = [&updates, &own_of(Sweep::Lengths), &[whole(&memory.squares)]];
            before_update.push(passes.dispatch(Sweep::Lengths, window, &groups));
            before_update.extend(after);
        }
        if let Some(stretches) = rows.as_ref().and_then(|memory| memory.stretches.as_ref()) {
            own_sweeps.push(Sweep::Mark);
            let tables = [whole(tables.updates), whole(&stretches.table)];
            let marks = passes.dispatch(Sweep::Mark, window, &[&tables, &own_of(Sweep::Mark)]);
            before_update.push(Dispatch { workgroups: stretches.workgroups, ..marks });
        }
        if rebindable {
            let group = |dispatch: &Dispatch| dispatch.bind_groups[OWN_BUFFERS].clone();
            let bound = rebind::Sweeps {
                before_update: before_update.iter().filter(|one| one.pass == PassName::Prepare).map(group).collect(),
                reduce: reduce.as_ref().map(group),
                update: group(&update),
                averages: averages.as_ref().map(|own| [group(&own.exchange), group(&own.settle)]),
            };
            let pipeline = |sweep| passes.compiled(sweep, window);
            let pipelines = rebind::Sweeps {
                before_update: own_sweeps.iter().map(|&sweep| pipeline(sweep)).collect(),
                reduce: window.kernel.measured().map(|_| pipeline(Sweep::Reduce)),
                update: pipeline(Sweep::Update),
                averages: window.kernel.averages.then(|| [Sweep::Exchange, Sweep::Settle].map(pipeline)),
            };
            let own = buffers_of_window;
            let movable = Movable::new(plan, window, buffers, own, own_sweeps, pipelines, bound);
            sweeps.movables.push(movable);
        }
        sweeps.reduce.extend(reduce);
        sweeps.update.extend(before_update);
        sweeps.update.push(update);
        sweeps.averages.extend(averages);
    }
    sweeps
}

/// A pass with the buffers of its bind groups, as many as its kernel has.
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
    /// The length of the direction, of a rule that limits it.
    Lengths,
    /// Which rows have gradients, of a group that leaves the others alone.
    Mark,
    Update,
    /// Exchanges parameters and averages.
    Exchange,
    /// Brings parameters back that were exchanged with averages which are nowhere kept.
    Back,
    /// Fills averages that have not started, or copies those that are nowhere kept.
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

/// The sweeps over windows, bound to what they work on.
#[derive(Clone, Copy)]
pub(super) struct Passes<'a> {
    pub(super) gpu: &'a Gpu,
    /// Whether parameters and gradients may come to lie in one buffer, wherever they are now.
    pub(super) rebindable: bool,
}

impl Passes<'_> {
    /// Pass 4, with the window's averages where it keeps some.
    pub(super) fn update(
        self,
        window: &Window,
        tables: Tables,
        own: &[wgpu::BufferBinding],
        averages: Option<&wgpu::Buffer>,
    ) -> Dispatch {
        let told = whole(if window.kernel.step_sums { tables.step_partials } else { tables.records });
        // Where there are no averages, nothing is bound in their place.
        let averages = averages.map_or(told.clone(), whole);
        self.dispatch(Sweep::Update, window, &[&[whole(tables.updates)], own, &[averages, told]])
    }

    /// The averages that a window keeps in this buffer.
    pub(super) fn averages(
        self,
        index: usize,
        window: &Window,
        tables: Tables,
        own: &[wgpu::BufferBinding],
        buffer: &wgpu::Buffer,
    ) -> WindowAverages {
        let updates = [whole(tables.updates)];
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

    /// A sweep over a window, with the buffers of its bind groups.
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
