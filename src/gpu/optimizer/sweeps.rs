//! The dispatches that go over elements, window by window, and what they are bound to.

use super::averages::{ScheduleFree, WindowAverages};
use super::*;
use crate::gpu::buffers::{filled, part, whole, zeroed};
use crate::gpu::context::Gpu;
use crate::gpu::optimizer::rebind::Movable;
use crate::gpu::pass::Pipeline;
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
pub(super) struct WindowMemory {
    /// A buffer of each kind that the window's kernel keeps. That of the momentum has the squares behind it.
    pub(super) kinds: Vec<(MemoryKind, wgpu::Buffer)>,
}

impl WindowMemory {
    pub(super) fn new(gpu: &Gpu, window: &Window) -> Self {
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
    pub(super) fn find(&self, wanted: &[MemoryKind]) -> Option<&wgpu::Buffer> {
        let mut kinds = self.kinds.iter();
        let (_, buffer) = kinds.find(|(kind, _)| wanted.contains(kind))?;
        Some(buffer)
    }

    /// A kind that is kept: the buffer, and its first byte there.
    #[cfg(feature = "checkpoint")]
    pub(super) fn place_of(&self, window: &Window, kind: MemoryKind) -> Option<(&wgpu::Buffer, u64)> {
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
pub(super) const OF_THE_RULE: [MemoryKind; 2] = [MemoryKind::Momentum, MemoryKind::SecondMoment];

/// What a regime remembers, of which there is one kind at most.
pub(super) const OF_THE_REGIME: [MemoryKind; 4] =
    [MemoryKind::Counters, MemoryKind::LastGradient, MemoryKind::FirstParameters, MemoryKind::Streams];

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
}

impl OwnBuffers {
    /// Of the pass that measures, or of those that write.
    pub(super) fn bindings<'a>(
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
pub(super) struct Sweeps {
    pub(super) reduce: Vec<Dispatch>,
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
        sweeps.blocks.push(buffers_of_window.blocks.clone());
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
pub(super) enum Sweep {
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
    pub(super) fn pass(self) -> PassName {
        match self {
            Sweep::Reduce => PassName::ReduceGradient,
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
    /// Pass 4, and the window's averages where it keeps some in this buffer.
    pub(super) fn update(
        self,
        index: usize,
        window: &Window,
        tables: Tables,
        own: &[wgpu::BufferBinding],
        averages: Option<&wgpu::Buffer>,
    ) -> (Dispatch, Option<WindowAverages>) {
        let updates = [whole(tables.updates)];
        let told = whole(if window.kernel.step_sums { tables.step_partials } else { tables.records });
        let Some(buffer) = averages else {
            // There are no averages, so that nothing is bound in their place.
            let update = self.dispatch(Sweep::Update, window, &[&updates, own, &[told.clone(), told]]);
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
        let update = self.dispatch(Sweep::Update, window, &[&updates, own, &[whole(buffer), told]]);
        let averages = WindowAverages { window: index, buffer: buffer.clone(), exchange, settle, schedule_free };
        (update, Some(averages))
    }

    /// A sweep over a window, with the buffers of its bind groups.
    pub(super) fn dispatch(self, sweep: Sweep, window: &Window, groups: &[&[wgpu::BufferBinding]]) -> Dispatch {
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

    pub(super) fn reduce(self, kernel: Kernel, access: Access) -> Pipeline {
        reduce_gradient::pipeline(self.gpu, &self.gpu.tuning(), kernel, access)
    }

    pub(super) fn compiled(self, sweep: Sweep, window: &Window) -> Pipeline {
        let (kernel, access) = (window.kernel, window.access);
        let (gpu, tuning) = (self.gpu, self.gpu.tuning());
        let exchange = match (sweep, kernel.schedule_free) {
            (Sweep::Reduce, _) => return self.reduce(kernel, access),
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
