//! The plan that `build` makes once: scopes, windows, blocks, offsets. Both paths follow the same plan.
//!
//! - A **scope** is what one norm is taken over: a group, or several that share their norm.
//! - A **block** is a stretch of elements that one workgroup walks; the list of blocks is the segment table that makes many
//!   tensors cost like one.
//! - A **window** is one dispatch of passes 1 and 4: blocks of one kernel whose parameters, and whose gradients, lie within one
//!   binding.

use std::collections::HashMap;

use crate::averaging::Averaging;
use crate::element::{self, Element, Rounding};
use crate::error::Error;
use crate::group::{GroupConfig, ResolvedGroup};
use crate::layout::{Block, GroupConstants, GroupState, NO_TENSOR, ScopeTable, StepUnit, group_flags, slots};
use crate::rule::{LARGEST_SQUARED, RuleKind};
use crate::safeguards::Safeguards;
use crate::shard::Shard;

/// Elements that one lane operation of a kernel handles.
pub(crate) const QUAD: u32 = 4;

/// Location of a tensor. Buffers are numbered by the caller of [`Plan::new`]; offsets and lengths are in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) params: Element,
    pub(crate) params_buffer: usize,
    pub(crate) params_start: u64,
    pub(crate) grads: Element,
    pub(crate) grads_buffer: usize,
    pub(crate) grads_start: u64,
    pub(crate) elements: u64,
}

/// Sizes by which blocks are cut, from the tuning and the device's limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    /// Elements of a full block; a multiple of 4.
    pub(crate) block_elements: u32,
    /// Partials each block leaves.
    pub(crate) partials_per_block: u32,
    /// Elements one binding can hold.
    pub(crate) binding_elements: u64,
    /// Alignment of a binding's start, in elements; a multiple of 4.
    pub(crate) binding_alignment: u64,
    /// Workgroups one dispatch can have.
    pub(crate) dispatch_blocks: u32,
    /// Partials that pass 2 can add up for one scope.
    pub(crate) scope_partials: u64,
    /// True if parameters and gradients can be loaded four at a time only where both start at a multiple of four.
    pub(crate) quads_need_alignment: bool,
    /// True if every tensor has windows of its own, so that only bindings depend on its location.
    pub(crate) apart: bool,
}

/// Access to a window's parameters and gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    /// Four at a time; starts and lengths are multiples of 4.
    Quads,
    /// One at a time: heads, tails and tensors that do not lie on a multiple of 4.
    Scalars,
}

/// Vector against which pass 1 measures the alignment, or what it measures instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Alignment {
    /// No alignment is measured.
    None,
    /// The momentum of the rule.
    Momentum,
    /// Sign counters and the sign of the last step, one byte per parameter.
    Counters,
    /// y - z of schedule-free training, which is kept anyway.
    Iterates,
    /// The last gradient. Its difference from the present one is measured instead of an alignment.
    LastGradient,
    /// The first parameters. The distance from them is measured instead of an alignment.
    FirstParameters,
    /// Three streams of parameters. Only the gradient is measured.
    Streams,
}

/// How new parameters are encoded: [`Rounding`] without its numbers, or as they are where they are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Encoding {
    Exact,
    Masters,
    Nearest,
    Stochastic,
}

impl Encoding {
    fn of(params: Element, rounding: Rounding) -> Self {
        match rounding {
            _ if !params.is_half() => Encoding::Exact,
            Rounding::Masters => Encoding::Masters,
            Rounding::Nearest => Encoding::Nearest,
            Rounding::Stochastic { .. } => Encoding::Stochastic,
        }
    }
}

/// Everything passes 1 and 4 are specialised by at compile time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Kernel {
    pub(crate) rule: RuleKind,
    pub(crate) alignment: Alignment,
    /// Coupled weight decay: pass 1 reads the parameters.
    pub(crate) coupled_decay: bool,
    /// The clip needs the norm of the gradient without weight decay.
    pub(crate) raw_norm: bool,
    /// `‖w₀‖` is measured until the first step.
    pub(crate) initial_norm: bool,
    /// An average of the parameters is kept, or what follows it in schedule-free training.
    pub(crate) averages: bool,
    /// True if z of schedule-free training is kept, and the parameters lie between z and the average.
    pub(crate) schedule_free: bool,
    /// The step and the parameters are measured.
    pub(crate) step_sums: bool,
    /// The gradients are multiplied by a scale of the loss.
    pub(crate) loss_scale: bool,
    /// Gradients are cleared when they have been read for the last time.
    pub(crate) clears_gradients: bool,
    /// Element type of the parameters. This and the next two depend on the tensor, the others on its group.
    pub(crate) params: Element,
    /// Element type of the gradients.
    pub(crate) grads: Element,
    /// Encoding of new parameters.
    pub(crate) encoding: Encoding,
}

impl Kernel {
    /// SGD of f32 at a fixed rate.
    pub(crate) const PLAIN: Kernel = Kernel {
        rule: RuleKind::Sgd,
        alignment: Alignment::None,
        coupled_decay: false,
        raw_norm: false,
        initial_norm: false,
        averages: false,
        schedule_free: false,
        step_sums: false,
        loss_scale: false,
        clears_gradients: false,
        params: Element::F32,
        grads: Element::F32,
        encoding: Encoding::Exact,
    };

    pub(crate) fn reads_momentum(self) -> bool {
        self.alignment == Alignment::Momentum
    }

    /// Returns this key with the element types and the rounding of a tensor at `place`.
    pub(crate) fn at(self, place: &Place, rounding: Rounding) -> Self {
        Kernel { params: place.params, grads: place.grads, encoding: Encoding::of(place.params, rounding), ..self }
    }

    /// Returns true if remainders of master weights are kept.
    pub(crate) fn has_remainders(self) -> bool {
        self.encoding == Encoding::Masters
    }

    /// Returns true if pass 1 reads the parameters, in a step before which the optimizer has `started` or not.
    pub(crate) fn measures_parameters(self, started: bool) -> bool {
        self.coupled_decay || self.has_first_parameters() || self.compares_iterates() || self.initial_norm && !started
    }

    /// Returns true if the alignment is measured against y - z of schedule-free training.
    pub(crate) fn compares_iterates(self) -> bool {
        self.alignment == Alignment::Iterates
    }

    pub(crate) fn has_counters(self) -> bool {
        self.alignment == Alignment::Counters
    }

    /// Returns the number of vectors of the parameters' length that the regime keeps.
    pub(crate) fn vectors(self) -> u32 {
        match self.alignment {
            Alignment::None | Alignment::Momentum | Alignment::Counters | Alignment::Iterates => 0,
            Alignment::LastGradient | Alignment::FirstParameters => 1,
            Alignment::Streams => slots::STREAM_SLOTS,
        }
    }

    /// Returns the largest number of vectors of the parameters' length in one binding.
    fn vectors_in_one_binding(self) -> u32 {
        self.vectors().max(self.momentum_vectors()).max(1)
    }

    /// Returns the number of vectors of the parameters' length in the momentum's buffer.
    pub(crate) fn momentum_vectors(self) -> u32 {
        u32::from(self.rule.traits().momentum) + u32::from(self.rule.traits().squares)
    }

    /// Returns true if pass 1 measures something against the regime's memory, beside the norm and the momentum's alignment.
    pub(crate) fn measures_memory(self) -> bool {
        self.has_counters() || self.compares_iterates() || self.has_last_gradient() || self.has_first_parameters()
    }

    pub(crate) fn has_first_parameters(self) -> bool {
        self.alignment == Alignment::FirstParameters
    }

    pub(crate) fn has_streams(self) -> bool {
        self.alignment == Alignment::Streams
    }

    pub(crate) fn has_last_gradient(self) -> bool {
        self.alignment == Alignment::LastGradient
    }
}

/// A memory with an entry for every parameter. These are all that a step remembers of a parameter, so that whoever allocates, saves or
/// restores them goes through this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum MemoryKind {
    /// m of the rule.
    Momentum,
    /// v of the rule, which on the device lies in the momentum's buffer, behind it, or has a buffer of its own where there is none.
    SecondMoment,
    /// Counters of gradient signs, and the sign of the last step.
    Counters,
    /// The last gradient as the regime saw it.
    LastGradient,
    /// The parameters before the first step.
    FirstParameters,
    /// The copies of the parameters that AutoSgd keeps, slot after slot.
    Streams,
    /// The average of the parameters.
    Averages,
    /// z of schedule-free training, in the average's place.
    BaseIterates,
    /// Remainders of the master weights of 16-bit parameters.
    Remainders,
}

impl MemoryKind {
    pub(crate) const ALL: [MemoryKind; 9] = [
        MemoryKind::Momentum,
        MemoryKind::SecondMoment,
        MemoryKind::Counters,
        MemoryKind::LastGradient,
        MemoryKind::FirstParameters,
        MemoryKind::Streams,
        MemoryKind::Averages,
        MemoryKind::BaseIterates,
        MemoryKind::Remainders,
    ];

    /// Returns the name in checkpoints and in labels of buffers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            MemoryKind::Momentum => "momentum",
            MemoryKind::SecondMoment => "second_moment",
            MemoryKind::Counters => "direction_counters",
            MemoryKind::LastGradient => "last_gradient",
            MemoryKind::FirstParameters => "first_parameters",
            MemoryKind::Streams => "streams",
            MemoryKind::Averages => "averages",
            MemoryKind::BaseIterates => "base_iterates",
            MemoryKind::Remainders => "remainders",
        }
    }

    /// Bytes of an entry: 1, the 2 of an i16, or the 4 of an f32.
    pub(crate) fn element_bytes(self) -> u32 {
        match self {
            MemoryKind::Counters => 1,
            MemoryKind::Remainders => 2,
            MemoryKind::Momentum
            | MemoryKind::SecondMoment
            | MemoryKind::LastGradient
            | MemoryKind::FirstParameters
            | MemoryKind::Streams
            | MemoryKind::Averages
            | MemoryKind::BaseIterates => 4,
        }
    }

    /// Returns the number of entries for each parameter. They lie as far apart as there are parameters.
    pub(crate) fn slots(self) -> u32 {
        match self {
            MemoryKind::Streams => slots::STREAM_SLOTS,
            _ => 1,
        }
    }
}

impl Kernel {
    pub(crate) fn keeps(self, kind: MemoryKind) -> bool {
        match kind {
            MemoryKind::Momentum => self.rule.traits().momentum,
            MemoryKind::SecondMoment => self.rule.traits().squares,
            MemoryKind::Counters => self.has_counters(),
            MemoryKind::LastGradient => self.has_last_gradient(),
            MemoryKind::FirstParameters => self.has_first_parameters(),
            MemoryKind::Streams => self.has_streams(),
            MemoryKind::Averages => self.averages && !self.schedule_free,
            MemoryKind::BaseIterates => self.schedule_free,
            MemoryKind::Remainders => self.has_remainders(),
        }
    }

    /// Returns the memories that the kernel keeps, in the order of [`MemoryKind::ALL`].
    pub(crate) fn memories(self) -> impl Iterator<Item = MemoryKind> {
        MemoryKind::ALL.into_iter().filter(move |&kind| self.keeps(kind))
    }
}

/// A stretch of one buffer, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) buffer: usize,
    pub(crate) element: Element,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// One dispatch of passes 1 and 4.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    pub(crate) kernel: Kernel,
    pub(crate) access: Access,
    pub(crate) params: Region,
    pub(crate) grads: Region,
    /// Quads of momentum or direction memory.
    pub(crate) state_quads: u32,
    pub(crate) blocks: Vec<Block>,
}

/// Elements of a tensor that lie side by side in a window's memories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// The first, as an element of such a memory.
    pub(crate) in_memory: u64,
    /// The first, as an element of the tensor.
    pub(crate) in_tensor: u64,
    pub(crate) elements: u64,
}

impl Window {
    /// Bytes that a memory of its parameters takes: whole quads.
    pub(crate) fn memory_bytes(&self, kind: MemoryKind) -> u64 {
        u64::from(self.state_quads) * u64::from(QUAD * kind.element_bytes() * kind.slots())
    }

    /// Where in the window's memory what belongs to a tensor lies; empty where the window has none of it.
    pub(crate) fn stretches_of(&self, tensor: &TensorInfo) -> Vec<Stretch> {
        let mut stretches: Vec<Stretch> = Vec::new();
        // Blocks come in the order of their elements.
        let end_of = |block: &Block| u64::from(block.first_element) + u64::from(block.elements);
        let skipped = self.blocks.partition_point(|block| end_of(block) <= tensor.first_element);
        for block in &self.blocks[skipped..] {
            let first = u64::from(block.first_element);
            let start = first.max(tensor.first_element);
            let end = end_of(block).min(tensor.first_element + tensor.elements);
            if start >= end {
                break;
            }
            let next = Stretch {
                in_memory: u64::from(block.state_quad) * u64::from(QUAD) + (start - first),
                in_tensor: start - tensor.first_element,
                elements: end - start,
            };
            match stretches.last_mut() {
                Some(last)
                    if last.in_memory + last.elements == next.in_memory
                        && last.in_tensor + last.elements == next.in_tensor =>
                {
                    last.elements += next.elements;
                }
                _ => stretches.push(next),
            }
        }
        stretches
    }
}

/// A tensor's name and where its elements are counted from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// The index of its group.
    pub group: usize,
    /// Its first element among all elements of the optimizer, in the order of declaration.
    pub first_element: u64,
    /// Its length in elements.
    pub elements: u64,
}

/// The whole plan.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) safeguards: Safeguards,
    pub(crate) accumulation: Accumulation,
    pub(crate) configs: Vec<GroupConfig>,
    pub(crate) groups: Vec<GroupConstants>,
    /// Specialisation of each group's passes.
    #[cfg(feature = "checkpoint")]
    pub(crate) kernels: Vec<Kernel>,
    pub(crate) scopes: Vec<ScopeTable>,
    pub(crate) windows: Vec<Window>,
    pub(crate) tensors: Vec<TensorInfo>,
    /// Location of each tensor.
    pub(crate) places: Vec<Place>,
    /// Partials of all scopes.
    pub(crate) partials: u32,
    /// Units that pass 5 adds up: tensors with telemetry, then groups with a trust ratio.
    pub(crate) units: Vec<StepUnit>,
    /// Which of the parameters these are, where other ranks have the rest.
    pub(crate) shard: Option<Shard>,
}

/// Location of an element that pass 3 has reported.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Location {
    /// Tensor of the element, and its index there; `None` if another rank has it.
    pub(crate) tensor: Option<(usize, u64)>,
    /// The rank that has it, and its index there, where there are ranks.
    pub(crate) rank: Option<(u32, u64)>,
}

/// Gradient accumulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accumulation {
    /// Gradients that the caller adds up in one.
    pub(crate) micro_batches: u32,
    /// True if pass 4 sets the gradients to zero.
    pub(crate) clears: bool,
}

/// A scope while the plan is being made.
struct Scope<'a> {
    groups: Vec<usize>,
    name: Option<&'a str>,
}

impl Plan {
    /// The groups' states before the first step.
    pub(crate) fn first_states(&self) -> Vec<GroupState> {
        let groups = self.groups.iter().zip(&self.configs);
        groups.map(|(group, config)| GroupState::initial(group, config.regime.regime().first_state())).collect()
    }

    /// Decides everything. Tensor places are checked for length and overlap elsewhere ([`check_overlaps`]).
    pub(crate) fn new(
        groups: Vec<ResolvedGroup<Place>>,
        safeguards: Safeguards,
        accumulation: Accumulation,
        geometry: &Geometry,
    ) -> Result<Self, Error> {
        for group in &groups {
            for (name, place) in &group.tensors {
                element::check(name, place.params, group.config.averaging.is_on(), group.config.rounding)?;
            }
        }
        let total: u64 = groups.iter().flat_map(|group| group.tensors.iter().map(|(_, place)| place.elements)).sum();
        if total >= u64::from(u32::MAX) {
            return Err(Error::Limit {
                what: "the number of parameters of one optimizer".to_owned(),
                value: total,
                limit: u64::from(u32::MAX) - 1,
                way_out: "split them over several optimizers",
            });
        }

        let configs: Vec<GroupConfig> = groups.iter().map(|group| group.config.clone()).collect();
        let elements_of_group: Vec<u64> =
            groups.iter().map(|group| group.tensors.iter().map(|(_, place)| place.elements).sum()).collect();
        let scopes = scopes_of(&configs);
        let mut constants = Vec::with_capacity(configs.len());
        let mut kernels = Vec::with_capacity(configs.len());
        let mut scope_of_group = vec![0; configs.len()];
        for (index, scope) in scopes.iter().enumerate() {
            for &group in &scope.groups {
                scope_of_group[group] = index;
            }
        }
        for (index, config) in configs.iter().enumerate() {
            let scope = &scopes[scope_of_group[index]];
            let mut kernel = kernel_of(config, scope, &configs)?;
            kernel.loss_scale = safeguards.loss_scaler.is_some();
            kernel.clears_gradients = accumulation.clears;
            let elements: u64 = scope.groups.iter().map(|&g| elements_of_group[g]).sum();
            let mut group = constants_of(config, kernel, scope_of_group[index], scope, &configs, elements);
            safeguards.write_to(&mut group);
            group.gradient_factor = group.sign / accumulation.micro_batches as f32;
            constants.push(group);
            kernels.push(kernel);
        }

        let mut tensors = Vec::new();
        let mut places = Vec::new();
        let mut windows = Windows::new(geometry);
        let mut first_element = 0;
        for (index, group) in groups.into_iter().enumerate() {
            let mut spans: Vec<Span> = Vec::new();
            for (name, place) in group.tensors {
                tensors.push(TensorInfo { name, group: index, first_element, elements: place.elements });
                places.push(place);
                match spans.last_mut() {
                    // What is recorded tensor by tensor is cut at their boundaries.
                    Some(span) if !group.config.telemetry && !geometry.apart && span.continues_with(&place) => {
                        span.place.elements += place.elements;
                    }
                    _ if place.elements > 0 => spans.push(Span { place, first_element }),
                    _ => {}
                }
                first_element += place.elements;
            }
            for span in &spans {
                let kernel = kernels[index].at(&span.place, group.config.rounding);
                windows.add_span(index, kernel, span);
            }
        }
        let mut windows = windows.finish();

        let (table, partials) = number_rows(&scopes, &scope_of_group, &mut windows, geometry)?;
        let units = units_of(&configs, &tensors, &windows);
        Ok(Plan {
            safeguards,
            accumulation,
            configs,
            groups: constants,
            #[cfg(feature = "checkpoint")]
            kernels,
            scopes: table,
            windows,
            tensors,
            places,
            partials,
            units,
            shard: None,
        })
    }

    /// Returns this plan for one rank of a sharded optimizer, with the shard's settings and a rounding seed for each rank.
    pub(crate) fn sharded(mut self, rank_of_ranks: Option<(u32, u32)>) -> Self {
        self.shard = rank_of_ranks.map(|(rank, ranks)| Shard::new(rank, ranks, &self));
        if let Some((rank, _)) = rank_of_ranks {
            for group in &mut self.groups {
                group.rounding_seed = element::seed_of_rank(group.rounding_seed, rank);
            }
        }
        self
    }

    /// Returns the key for which the passes over a tensor are compiled.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn kernel_of(&self, tensor: usize) -> Kernel {
        let group = self.tensors[tensor].group;
        self.kernels[group].at(&self.places[tensor], self.configs[group].rounding)
    }

    /// Returns the location of an element, which is counted among those of all ranks if there are several.
    pub(crate) fn locate(&self, element: u32) -> Location {
        let element = u64::from(element);
        let Some(shard) = &self.shard else {
            return Location { tensor: self.locate_here(element), rank: None };
        };
        let rank = shard.locate(element);
        let here = rank.filter(|&(rank, _)| rank == shard.rank);
        Location { tensor: here.and_then(|(_, element)| self.locate_here(element)), rank }
    }

    /// The tensor that an element belongs to, and the element's index in it.
    pub(crate) fn locate_here(&self, element: u64) -> Option<(usize, u64)> {
        let after = self.tensors.partition_point(|tensor| tensor.first_element <= element);
        // Empty tensors share their first element with the one that follows them.
        let index = after.checked_sub(1)?;
        let offset = element - self.tensors[index].first_element;
        (offset < self.tensors[index].elements).then_some((index, offset))
    }
}

/// Neighbouring tensors of one group, seen as one.
struct Span {
    place: Place,
    first_element: u64,
}

impl Span {
    fn continues_with(&self, next: &Place) -> bool {
        let this = &self.place;
        (next.params, next.grads) == (this.params, this.grads)
            && next.params_buffer == this.params_buffer
            && next.grads_buffer == this.grads_buffer
            && next.params_start == this.params_start + this.elements
            && next.grads_start == this.grads_start + this.elements
    }

    /// Cuts the span into a head, a body that can be loaded in quads, and a tail.
    fn pieces(&self, geometry: &Geometry) -> [(Access, u64, u64); 3] {
        let quad = u64::from(QUAD);
        let Place { params_start, grads_start, elements, .. } = self.place;
        if !geometry.quads_need_alignment {
            return [(Access::Quads, 0, elements), (Access::Scalars, 0, 0), (Access::Scalars, 0, 0)];
        }
        if params_start % quad != grads_start % quad {
            return [(Access::Scalars, 0, elements), (Access::Quads, 0, 0), (Access::Scalars, 0, 0)];
        }
        let head = ((quad - params_start % quad) % quad).min(elements);
        let body_end = head + (elements - head) / quad * quad;
        [(Access::Scalars, 0, head), (Access::Quads, head, body_end), (Access::Scalars, body_end, elements)]
    }
}

/// Fills windows greedily, in the order of declaration.
struct Windows<'a> {
    geometry: &'a Geometry,
    newest: HashMap<(Kernel, Access, usize, usize), usize>,
    filling: Vec<FillingWindow>,
}

/// A window whose regions may still grow, so that its blocks' starts are kept absolute.
struct FillingWindow {
    window: Window,
    starts: Vec<(u64, u64)>,
}

impl<'a> Windows<'a> {
    fn new(geometry: &'a Geometry) -> Self {
        Windows { geometry, newest: HashMap::new(), filling: Vec::new() }
    }

    fn add_span(&mut self, group: usize, kernel: Kernel, span: &Span) {
        // What is kept of a block must fit into a binding, too.
        let quad = u64::from(QUAD);
        if self.geometry.apart {
            self.newest.clear();
        }
        let vectors = u64::from(kernel.vectors_in_one_binding());
        let kept = self.geometry.binding_elements / vectors / quad * quad;
        let block_elements = u64::from(self.geometry.block_elements).min(kept);
        for (access, start, end) in span.pieces(self.geometry) {
            let mut at = start;
            while at < end {
                let elements = (end - at).min(block_elements);
                self.add_block(group, kernel, access, span, at, elements);
                at += elements;
            }
        }
    }

    fn add_block(&mut self, group: usize, kernel: Kernel, access: Access, span: &Span, at: u64, elements: u64) {
        let place = &span.place;
        let starts = (place.params_start + at, place.grads_start + at);
        let params = self.region(place.params_buffer, place.params, starts.0, elements);
        let grads = self.region(place.grads_buffer, place.grads, starts.1, elements);
        let quads = elements.div_ceil(u64::from(QUAD)) as u32;
        let key = (kernel, access, place.params_buffer, place.grads_buffer);
        let index = match self.newest.get(&key) {
            Some(&index) if self.fits(&self.filling[index].window, params, grads, quads) => index,
            _ => {
                self.filling.push(FillingWindow {
                    window: Window { kernel, access, params, grads, state_quads: 0, blocks: Vec::new() },
                    starts: Vec::new(),
                });
                self.newest.insert(key, self.filling.len() - 1);
                self.filling.len() - 1
            }
        };
        let FillingWindow { window, starts: all } = &mut self.filling[index];
        window.params = union(window.params, params);
        window.grads = union(window.grads, grads);
        window.blocks.push(Block {
            params_start: 0, // set by `finish`
            grads_start: 0,  // set by `finish`
            state_quad: window.state_quads,
            elements: elements as u32,
            group: group as u32,
            row: 0, // set by `number_rows`
            first_element: (span.first_element + at) as u32,
        });
        all.push(starts);
        window.state_quads += quads;
    }

    fn region(&self, buffer: usize, element: Element, start: u64, elements: u64) -> Region {
        // In elements of this kind; the geometry counts in f32.
        let alignment = self.geometry.binding_alignment * Element::F32.bytes() / element.bytes();
        Region { buffer, element, start: start / alignment * alignment, end: start + elements }
    }

    fn fits(&self, window: &Window, params: Region, grads: Region, quads: u32) -> bool {
        let limit = self.geometry.binding_elements;
        let vectors = u64::from(window.kernel.vectors_in_one_binding());
        let state_elements = (u64::from(window.state_quads) + u64::from(quads)) * u64::from(QUAD) * vectors;
        union(window.params, params).elements() <= limit
            && union(window.grads, grads).elements() <= limit
            && state_elements <= limit
            && window.blocks.len() < self.geometry.dispatch_blocks as usize
    }

    /// Makes the blocks' starts relative to their window.
    fn finish(self) -> Vec<Window> {
        self.filling
            .into_iter()
            .map(|FillingWindow { mut window, starts }| {
                for (block, (params, grads)) in window.blocks.iter_mut().zip(starts) {
                    block.params_start = (params - window.params.start) as u32;
                    block.grads_start = (grads - window.grads.start) as u32;
                }
                window
            })
            .collect()
    }
}

impl Region {
    pub(crate) fn elements(&self) -> u64 {
        self.end - self.start
    }

    /// Its first byte in the buffer.
    pub(crate) fn start_bytes(&self) -> u64 {
        self.start * self.element.bytes()
    }

    /// Its length in bytes: whole words.
    pub(crate) fn bytes(&self) -> u64 {
        (self.elements() * self.element.bytes()).next_multiple_of(4)
    }
}

fn union(a: Region, b: Region) -> Region {
    Region { buffer: a.buffer, element: a.element, start: a.start.min(b.start), end: a.end.max(b.end) }
}

/// Collects the groups of each norm, in the order of declaration.
fn scopes_of(configs: &[GroupConfig]) -> Vec<Scope<'_>> {
    let mut scopes: Vec<Scope> = Vec::new();
    for (group, config) in configs.iter().enumerate() {
        let name = config.scope.as_deref();
        match scopes.iter_mut().find(|scope| name.is_some() && scope.name == name) {
            Some(scope) => scope.groups.push(group),
            None => scopes.push(Scope { groups: vec![group], name }),
        }
    }
    scopes
}

/// Returns the key for which a group's passes are compiled. The scope decides what is measured, because every group of it contributes.
fn kernel_of(config: &GroupConfig, scope: &Scope, configs: &[GroupConfig]) -> Result<Kernel, Error> {
    let members = || scope.groups.iter().map(|&group| &configs[group]);
    let measured = members().any(|member| member.regime.needs_alignment());
    let secant = members().any(|member| member.regime.needs_last_gradient());
    let distance = members().any(|member| member.regime.needs_first_parameters());
    let alignment = match (secant, distance, measured, config.rule.has_momentum()) {
        // All groups have streams or none has (`OptimizerBuilder::resolve`).
        _ if config.regime.needs_streams() => Alignment::Streams,
        (true, ..) => Alignment::LastGradient,
        (_, true, ..) => Alignment::FirstParameters,
        (.., false, _) => Alignment::None,
        (.., true, true) => Alignment::Momentum,
        // All groups of a scope add up the same products.
        _ if members().all(GroupConfig::can_compare_iterates) => Alignment::Iterates,
        (.., true, false) => Alignment::Counters,
    };
    if (secant || distance)
        && let Some(other) = members().find(|member| {
            member.regime.needs_last_gradient() != config.regime.needs_last_gradient()
                || member.regime.needs_first_parameters() != config.regime.needs_first_parameters()
                || secant && member.rule.kind() != config.rule.kind()
        })
    {
        return Err(Error::MixedMemory {
            first: config.name.clone(),
            second: other.name.clone(),
            scope: scope.name.unwrap_or_default().to_owned(),
        });
    }
    if measured && let Some(other) = members().find(|member| member.rule.has_momentum() != config.rule.has_momentum()) {
        let (first, second) = if config.rule.has_momentum() { (config, other) } else { (other, config) };
        return Err(Error::MixedScope {
            first: first.name.clone(),
            second: second.name.clone(),
            scope: scope.name.unwrap_or_default().to_owned(),
        });
    }
    let coupled_decay = config.weight_decay.coupled() > 0.0;
    Ok(Kernel {
        rule: config.rule.kind(),
        alignment,
        coupled_decay,
        raw_norm: needs_raw_norm(members()),
        initial_norm: members().any(|member| member.regime.needs_initial_norm() || member.trust_ratio.is_some()),
        averages: config.averaging.is_on(),
        schedule_free: config.averaging == Averaging::ScheduleFree,
        step_sums: config.measures_step(),
        // What is left is set by `Plan::new` and `Kernel::at`.
        ..Kernel::PLAIN
    })
}

/// A clip goes by the gradient's own norm, as in PyTorch, where the regime goes by that of the regularised loss: they differ as
/// soon as one group of the scope clips and one, perhaps another, has coupled decay.
fn needs_raw_norm<'a>(mut members: impl Iterator<Item = &'a GroupConfig> + Clone) -> bool {
    members.clone().any(|member| member.clip_norm.is_finite())
        && members.any(|member| member.weight_decay.coupled() > 0.0)
}

fn constants_of(
    config: &GroupConfig,
    kernel: Kernel,
    scope_index: usize,
    scope: &Scope,
    configs: &[GroupConfig],
    scope_elements: u64,
) -> GroupConstants {
    let members = || scope.groups.iter().map(|&group| &configs[group]);
    let flag = |set: bool, bit: u32| if set { bit } else { 0 };
    let regime = config.regime.regime();
    let clip = |config: &GroupConfig| config.clip_norm.min(f32::MAX);
    let sqrt_elements = (scope_elements as f64).sqrt() as f32;
    let reach = |config: &GroupConfig| match config.rule.has_second_moment() {
        true => clip(config).min(LARGEST_SQUARED * sqrt_elements.max(1.0)),
        false => clip(config),
    };
    GroupConstants {
        scope: scope_index as u32,
        flags: flag(config.rule.is_scale_free(), group_flags::SIGN_RULE)
            | flag(regime.initial_rate().is_some(), group_flags::INITIAL_RATE)
            | flag(config.rule.traits().momentum_from_gradient, group_flags::MOMENTUM_FROM_GRADIENT)
            | flag(kernel.alignment == Alignment::Counters, group_flags::BRAKE)
            | flag(kernel.compares_iterates(), group_flags::ITERATES)
            | flag(kernel.raw_norm, group_flags::RAW_NORM_CLIP),
        sign: if config.maximize { -1.0 } else { 1.0 },
        gradient_factor: 0.0, // set by `Plan::new`
        coupled_decay: config.weight_decay.coupled(),
        decoupled_decay: config.weight_decay.decoupled(),
        clip_norm: clip(config),
        halt_after: 0, // set by `Safeguards::write_to`, as the next four
        loss_scale_first: 0,
        loss_scale_least: 0,
        loss_scale_most: 0,
        growth_interval: 0,
        rule: config.rule.numbers(),
        smoothing: regime.smoothing(),
        norm_floor: regime.norm_floor(),
        first_step: regime.first_step(&config.rule, &config.averaging),
        initial_rate: regime.initial_rate().unwrap_or(0.0),
        regime: regime.kernel().number(),
        regime_constants: regime.constants(&config.rule),
        schedule: config.schedule.kind(),
        schedule_rise: config.schedule.rise(),
        schedule_steps: config.schedule.steps(),
        schedule_first: config.schedule.first(),
        schedule_last: config.schedule.last(),
        average: config.averaging.kind(),
        average_start: config.averaging.start(),
        average_gain: config.averaging.gain(),
        trust_coefficient: config.trust_ratio.map_or(0.0, |trust| trust.coefficient),
        sqrt_elements,
        scope_momentum: members().map(|member| member.rule.momentum()).fold(0.0, f32::max),
        scope_clip: members().map(reach).fold(0.0, f32::max),
        rounding_seed: config.rounding.seed(),
    }
}

/// Gives every block its row in the partials, scope by scope.
fn number_rows(
    scopes: &[Scope],
    scope_of_group: &[usize],
    windows: &mut [Window],
    geometry: &Geometry,
) -> Result<(Vec<ScopeTable>, u32), Error> {
    let mut rows = vec![0u64; scopes.len()];
    for block in windows.iter().flat_map(|window| &window.blocks) {
        rows[scope_of_group[block.group as usize]] += 1;
    }
    let total: u64 = rows.iter().sum();
    let partials = total * u64::from(geometry.partials_per_block);
    let words = partials * u64::from(crate::layout::PARTIAL_WORDS);
    let limit = geometry.binding_elements.min(u64::from(u32::MAX));
    if words > limit {
        return Err(Error::Limit {
            what: "the number of words of partial sums".to_owned(),
            value: words,
            limit,
            way_out: "use larger blocks in the tuning, or pack many small tensors side by side in one buffer",
        });
    }
    let most = rows.iter().max().copied().unwrap_or(0) * u64::from(geometry.partials_per_block);
    if most > geometry.scope_partials {
        return Err(Error::Limit {
            what: "the number of partial sums of one norm".to_owned(),
            value: most,
            limit: geometry.scope_partials,
            way_out: "use larger blocks or a larger finish_workgroup_size in the tuning",
        });
    }
    let mut first = 0u32;
    let mut next: Vec<u32> = Vec::with_capacity(rows.len());
    for &rows in &rows {
        next.push(first);
        first += rows as u32;
    }
    let table = scopes
        .iter()
        .zip(next.iter().zip(&rows))
        .map(|(scope, (&first, &rows))| ScopeTable {
            first_partial: first * geometry.partials_per_block,
            partials: rows as u32 * geometry.partials_per_block,
            group: scope.groups[0] as u32,
        })
        .collect();
    // In the order of declaration, so that the blocks of a tensor lie side by side, whichever windows they are in.
    let mut blocks: Vec<&mut Block> = windows.iter_mut().flat_map(|window| &mut window.blocks).collect();
    blocks.sort_by_key(|block| block.first_element);
    for block in blocks {
        let row = &mut next[scope_of_group[block.group as usize]];
        block.row = *row;
        *row += 1;
    }
    Ok((table, partials as u32))
}

/// What pass 5 adds up.
fn units_of(configs: &[GroupConfig], tensors: &[TensorInfo], windows: &[Window]) -> Vec<StepUnit> {
    if !configs.iter().any(GroupConfig::measures_step) {
        return Vec::new();
    }
    let mut blocks: Vec<&Block> = windows.iter().flat_map(|window| &window.blocks).collect();
    blocks.sort_by_key(|block| block.first_element);
    let unit = |group: usize, tensor: u32, elements: std::ops::Range<u64>| {
        let at = |element: u64| blocks.partition_point(|block| u64::from(block.first_element) < element);
        let own = &blocks[at(elements.start)..at(elements.end)];
        StepUnit {
            first_row: own.first().map_or(0, |block| block.row),
            rows: own.len() as u32,
            group: group as u32,
            tensor,
        }
    };
    let recorded = (0u32..).zip(tensors).filter(|(_, tensor)| configs[tensor.group].telemetry);
    let mut units: Vec<StepUnit> = recorded
        .map(|(index, tensor)| {
            let elements = tensor.first_element..tensor.first_element + tensor.elements;
            unit(tensor.group, index, elements)
        })
        .collect();
    for (group, config) in configs.iter().enumerate() {
        if config.trust_ratio.is_some() {
            let own = || tensors.iter().filter(|tensor| tensor.group == group);
            let first = own().next().map_or(0, |tensor| tensor.first_element);
            let elements: u64 = own().map(|tensor| tensor.elements).sum();
            units.push(unit(group, NO_TENSOR, first..first + elements));
        }
    }
    units
}

/// Refuses parameters that overlap other parameters, and gradients that overlap parameters or other gradients.
pub(crate) fn check_overlaps<'a>(tensors: impl Iterator<Item = (&'a str, &'a Place)>) -> Result<(), Error> {
    let mut ranges: Vec<(usize, u64, u64, &str, &str)> = tensors
        .filter(|(_, place)| place.elements > 0)
        .flat_map(|(name, place)| {
            let range = |buffer, element: Element, start, role| {
                let bytes = |elements: u64| elements * element.bytes();
                (buffer, bytes(start), bytes(start + place.elements), role, name)
            };
            [
                range(place.params_buffer, place.params, place.params_start, "parameters"),
                range(place.grads_buffer, place.grads, place.grads_start, "gradients"),
            ]
        })
        .collect();
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let (buffer, _, end, role, name) = pair[0];
        let (next_buffer, next_start, next_end, next_role, next_name) = pair[1];
        if buffer == next_buffer && next_start < end {
            return Err(Error::Overlap {
                first: format!("the {role} of tensor \"{name}\""),
                second: format!("the {next_role} of tensor \"{next_name}\""),
                start: next_start,
                end: end.min(next_end),
            });
        }
    }
    Ok(())
}
