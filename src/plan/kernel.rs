//! What passes 1 and 4 are compiled for, and the memories that they keep.

use super::{Place, QUAD};
#[cfg(feature = "checkpoint")]
use super::{Stack, TensorInfo};
use crate::element::{Element, Rounding};
use crate::group::GroupConfig;
use crate::layout::slots;
use crate::rule::RuleKind;
use crate::state::{self, State};

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
    /// As `Iterates`, and the sum of the gradient's magnitudes.
    Magnitudes,
    /// The last gradient. Its difference from the present one is measured instead of an alignment.
    LastGradient,
    /// In a step the momentum, if there is one, for its norm. The last gradient is kept for a look.
    NextLook,
    /// In a look the last gradient, which is of the same batch.
    Look,
    /// The first parameters. The distance from them is measured instead of an alignment.
    FirstParameters,
    /// The first parameters, to which the way is measured along the gradient, and a weighted sum of gradients: for Prodigy.
    Estimate,
    /// The way from the first parameters, as Mechanic multiplies it.
    Displacement,
    /// Three streams of parameters. Only the gradient is measured.
    Streams,
}

/// What of a tensor has a rate of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RateAxis {
    Rows,
    Columns,
}

/// How new parameters are encoded: [`Rounding`] without its numbers, or as they are where they are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Encoding {
    Exact,
    /// Masters of f32, with remainders of 16 bits.
    Masters,
    /// Masters of 24 bits, with remainders of 8 bits.
    ShortMasters,
    Nearest,
    Stochastic,
}

impl Encoding {
    fn of(params: Element, rounding: Rounding, short: bool) -> Self {
        match rounding {
            _ if !params.is_half() => Encoding::Exact,
            Rounding::Masters if short => Encoding::ShortMasters,
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
    /// The rule's memory is kept in 8 bits.
    pub(crate) bits8: bool,
    /// Iterations over the matrices of a rule that owns passes; 0 for other rules.
    pub(crate) iterations: u32,
    /// Their matrices are in f16 where the device has it.
    pub(crate) half_iterates: bool,
    /// Rows or columns that have rates of their own.
    pub(crate) rates: Option<RateAxis>,
    /// Rows without a gradient are left alone.
    pub(crate) lazy_rows: bool,
    /// Pass 1 runs, because something uses its sums.
    pub(crate) is_measured: bool,
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
        bits8: false,
        iterations: 0,
        half_iterates: false,
        rates: None,
        lazy_rows: false,
        is_measured: true,
        params: Element::F32,
        grads: Element::F32,
        encoding: Encoding::Exact,
    };

    pub(crate) fn reads_momentum(self) -> bool {
        self.alignment == Alignment::Momentum || self.has_looks() && self.rule.traits().momentum
    }

    /// Returns this key with the element types and the rounding of a tensor of a group at `place`, and the rule's kind for its shape.
    pub(crate) fn at(self, place: &Place, rule: RuleKind, config: &GroupConfig) -> Self {
        // An exchange of parameters and averages must be without loss.
        let short = config.state == State::Bits8 && !self.averages;
        let encoding = Encoding::of(place.params, config.rounding, short);
        Kernel { rule, params: place.params, grads: place.grads, encoding, ..self }
    }

    /// Returns the kernel if pass 1 runs with it.
    pub(crate) fn measured(self) -> Option<Self> {
        self.is_measured.then_some(self)
    }

    /// Returns true if remainders of master weights are kept, in 16 bits or in 8.
    pub(crate) fn has_remainders(self) -> bool {
        self.encoding == Encoding::Masters || self.has_short_remainders()
    }

    /// Returns true if remainders of master weights are kept in 8 bits.
    pub(crate) fn has_short_remainders(self) -> bool {
        self.encoding == Encoding::ShortMasters
    }

    /// Returns true if pass 1 reads the parameters, in a step before which the optimizer has `started` or not.
    pub(crate) fn measures_parameters(self, started: bool) -> bool {
        let compares =
            self.has_first_parameters() || self.has_estimate() || self.has_displacement() || self.compares_iterates();
        self.coupled_decay || compares || self.initial_norm && !started
    }

    /// Returns true if the gradient is compared with y - z of schedule-free training.
    pub(crate) fn compares_iterates(self) -> bool {
        matches!(self.alignment, Alignment::Iterates | Alignment::Magnitudes)
    }

    pub(crate) fn has_counters(self) -> bool {
        self.alignment == Alignment::Counters
    }

    /// Returns the number of vectors of the parameters' length that the regime keeps.
    pub(crate) fn vectors(self) -> u32 {
        match self.alignment {
            Alignment::None
            | Alignment::Momentum
            | Alignment::Counters
            | Alignment::Iterates
            | Alignment::Magnitudes => 0,
            Alignment::LastGradient
            | Alignment::NextLook
            | Alignment::Look
            | Alignment::FirstParameters
            | Alignment::Displacement => 1,
            Alignment::Estimate => slots::ESTIMATE_SLOTS,
            Alignment::Streams => slots::STREAM_SLOTS,
        }
    }

    /// Returns the largest number of vectors of the parameters' length in one binding.
    pub(super) fn vectors_in_one_binding(self) -> u32 {
        // In 8 bits all of a rule's memory is shorter than one of them.
        let of_the_rule = if self.bits8 { 1 } else { self.rule.traits().vectors() };
        self.vectors().max(of_the_rule).max(1)
    }

    /// Returns the number of elements of which blocks begin at multiples, in tensors and in memories.
    pub(super) fn block_multiple(self) -> u32 {
        if self.bits8 { state::BLOCK } else { QUAD }
    }

    /// Returns true if pass 1 measures something against the regime's memory, beside the norm and the momentum's alignment.
    pub(crate) fn measures_memory(self) -> bool {
        self.has_counters()
            || self.compares_iterates()
            || self.measures_secant()
            || self.has_first_parameters()
            || self.has_estimate()
            || self.has_displacement()
    }

    /// Returns true if pass 4 writes a memory of the regime.
    #[cfg(feature = "gpu")]
    pub(crate) fn has_memory(self) -> bool {
        self.has_counters()
            || self.has_last_gradient()
            || self.has_first_parameters()
            || self.has_estimate()
            || self.has_displacement()
            || self.has_streams()
    }

    /// Returns true if pass 4 tells the rows of a tensor apart.
    pub(crate) fn has_rows(self) -> bool {
        self.rates.is_some() || self.lazy_rows
    }

    pub(crate) fn has_first_parameters(self) -> bool {
        self.alignment == Alignment::FirstParameters
    }

    pub(crate) fn has_estimate(self) -> bool {
        self.alignment == Alignment::Estimate
    }

    pub(crate) fn has_displacement(self) -> bool {
        self.alignment == Alignment::Displacement
    }

    pub(crate) fn has_streams(self) -> bool {
        self.alignment == Alignment::Streams
    }

    pub(crate) fn has_last_gradient(self) -> bool {
        self.measures_secant() || self.has_looks()
    }

    /// Returns true if pass 1 compares the gradient with the last one.
    pub(crate) fn measures_secant(self) -> bool {
        matches!(self.alignment, Alignment::LastGradient | Alignment::Look)
    }

    /// Returns true if a look follows each step.
    pub(crate) fn has_looks(self) -> bool {
        self.alignment == Alignment::NextLook
    }

    /// Returns the key of pass 1 of a look, if there are looks.
    pub(crate) fn of_look(self) -> Option<Self> {
        let look = Kernel { alignment: Alignment::Look, raw_norm: false, initial_norm: false, ..self };
        self.has_looks().then_some(look)
    }
}

/// A memory of a tensor, mostly with an entry for every parameter. These are all that a step remembers, so that whoever allocates, saves or
/// restores them goes through this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum MemoryKind {
    /// m of the rule.
    Momentum,
    /// v of the rule, which on the device lies in the momentum's buffer, behind it, or has a buffer of its own where there is none.
    SecondMoment,
    /// The largest v so far of the rule, which on the device lies behind v.
    LargestSecondMoment,
    /// The mean of v of each row of a tensor's matrices.
    RowSecondMoment,
    /// The mean of v of each column, which on the device lies behind those of the rows.
    ColumnSecondMoment,
    /// m in 8 bits, which on the device lies as m does.
    MomentumCodes,
    /// v in 8 bits, which on the device lies as v does.
    SecondMomentCodes,
    /// The scales of both, a word for every block of 32 parameters, which on the device lie behind them.
    Scales,
    /// Counters of gradient signs, and the sign of the last step.
    Counters,
    /// The last gradient as the regime saw it.
    LastGradient,
    /// The parameters before the first step.
    FirstParameters,
    /// The parameters before the first step and the weighted sum of gradients that Prodigy keeps, one after the other.
    Estimate,
    /// How far Mechanic has moved the parameters.
    Displacement,
    /// The copies of the parameters that AutoSgd keeps, slot after slot.
    Streams,
    /// The average of the parameters.
    Averages,
    /// z of schedule-free training, in the average's place.
    BaseIterates,
    /// Remainders of the master weights of 16-bit parameters.
    Remainders,
    /// The same in 8 bits.
    RemainderCodes,
}

impl MemoryKind {
    /// Those of the rule, then those of the regime, then the others.
    pub(crate) const ALL: [MemoryKind; 18] = [
        MemoryKind::Momentum,
        MemoryKind::SecondMoment,
        MemoryKind::LargestSecondMoment,
        MemoryKind::RowSecondMoment,
        MemoryKind::ColumnSecondMoment,
        MemoryKind::MomentumCodes,
        MemoryKind::SecondMomentCodes,
        MemoryKind::Scales,
        MemoryKind::Counters,
        MemoryKind::LastGradient,
        MemoryKind::FirstParameters,
        MemoryKind::Estimate,
        MemoryKind::Displacement,
        MemoryKind::Streams,
        MemoryKind::Averages,
        MemoryKind::BaseIterates,
        MemoryKind::Remainders,
        MemoryKind::RemainderCodes,
    ];

    /// What a rule remembers, in the order in which it lies in one buffer of the device.
    #[cfg(feature = "gpu")]
    pub(crate) const OF_THE_RULE: &[MemoryKind] = Self::ALL.split_at(8).0;

    /// What a regime remembers, of which there is one kind at most.
    #[cfg(feature = "gpu")]
    pub(crate) const OF_THE_REGIME: &[MemoryKind] = Self::ALL.split_at(8).1.split_at(6).0;

    /// Returns the name in checkpoints and in labels of buffers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            MemoryKind::Momentum => "momentum",
            MemoryKind::SecondMoment => "second_moment",
            MemoryKind::LargestSecondMoment => "largest_second_moment",
            MemoryKind::RowSecondMoment => "row_second_moment",
            MemoryKind::ColumnSecondMoment => "column_second_moment",
            MemoryKind::MomentumCodes => "momentum_codes",
            MemoryKind::SecondMomentCodes => "second_moment_codes",
            MemoryKind::Scales => "state_scales",
            MemoryKind::Counters => "direction_counters",
            MemoryKind::LastGradient => "last_gradient",
            MemoryKind::FirstParameters => "first_parameters",
            MemoryKind::Estimate => "estimate",
            MemoryKind::Displacement => "displacement",
            MemoryKind::Streams => "streams",
            MemoryKind::Averages => "averages",
            MemoryKind::BaseIterates => "base_iterates",
            MemoryKind::Remainders => "remainders",
            MemoryKind::RemainderCodes => "remainder_codes",
        }
    }

    /// Bytes of an entry: 1, the 2 of an i16, or 4.
    pub(crate) fn element_bytes(self) -> u32 {
        match self {
            MemoryKind::Counters
            | MemoryKind::MomentumCodes
            | MemoryKind::SecondMomentCodes
            | MemoryKind::RemainderCodes => 1,
            MemoryKind::Remainders => 2,
            MemoryKind::Momentum
            | MemoryKind::SecondMoment
            | MemoryKind::LargestSecondMoment
            | MemoryKind::RowSecondMoment
            | MemoryKind::ColumnSecondMoment
            | MemoryKind::Scales
            | MemoryKind::LastGradient
            | MemoryKind::FirstParameters
            | MemoryKind::Estimate
            | MemoryKind::Displacement
            | MemoryKind::Streams
            | MemoryKind::Averages
            | MemoryKind::BaseIterates => 4,
        }
    }

    /// Returns the shape of what is kept of a tensor: entries, or slots by entries.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn shape(self, tensor: &TensorInfo) -> Vec<usize> {
        let stack = Stack::of(&tensor.shape);
        match (self, stack) {
            (MemoryKind::RowSecondMoment, Some(stack)) => vec![stack.matrices as usize, stack.rows as usize],
            (MemoryKind::ColumnSecondMoment, Some(stack)) => vec![stack.matrices as usize, stack.columns as usize],
            _ => self.shape_of_elements(tensor.elements),
        }
    }

    /// The same of a memory with an entry for each element.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn shape_of_elements(self, elements: u64) -> Vec<usize> {
        match self.slots() {
            1 => vec![self.entries(elements) as usize],
            slots => vec![slots as usize, elements as usize],
        }
    }

    /// Returns true if there is an entry for each row or column, and not for each parameter.
    pub(crate) fn is_factored(self) -> bool {
        matches!(self, MemoryKind::RowSecondMoment | MemoryKind::ColumnSecondMoment)
    }

    /// Returns the number of entries for each parameter. They lie as far apart as there are parameters.
    pub(crate) fn slots(self) -> u32 {
        match self {
            MemoryKind::Streams => slots::STREAM_SLOTS,
            MemoryKind::Estimate => slots::ESTIMATE_SLOTS,
            _ => 1,
        }
    }

    /// Returns the number of entries in a slot of so many parameters.
    pub(crate) fn entries(self, parameters: u64) -> u64 {
        match self {
            MemoryKind::Scales => parameters.div_ceil(u64::from(state::BLOCK)),
            _ => parameters,
        }
    }

    /// Returns the bytes of a slot of so many parameters.
    pub(crate) fn slot_bytes(self, parameters: u64) -> u64 {
        self.entries(parameters) * u64::from(self.element_bytes())
    }
}

impl Kernel {
    pub(crate) fn keeps(self, kind: MemoryKind) -> bool {
        match kind {
            MemoryKind::Momentum => self.rule.traits().momentum && !self.bits8,
            MemoryKind::SecondMoment => self.rule.traits().squares && !self.bits8,
            MemoryKind::LargestSecondMoment => self.rule.traits().largest_squares,
            MemoryKind::RowSecondMoment | MemoryKind::ColumnSecondMoment => self.rule.traits().factored,
            MemoryKind::MomentumCodes => self.rule.traits().momentum && self.bits8,
            MemoryKind::SecondMomentCodes => self.rule.traits().squares && self.bits8,
            MemoryKind::Scales => self.bits8,
            MemoryKind::Counters => self.has_counters(),
            MemoryKind::LastGradient => self.has_last_gradient(),
            MemoryKind::FirstParameters => self.has_first_parameters(),
            MemoryKind::Estimate => self.has_estimate(),
            MemoryKind::Displacement => self.has_displacement(),
            MemoryKind::Streams => self.has_streams(),
            MemoryKind::Averages => self.averages && !self.schedule_free,
            MemoryKind::BaseIterates => self.schedule_free,
            MemoryKind::Remainders => self.encoding == Encoding::Masters,
            MemoryKind::RemainderCodes => self.has_short_remainders(),
        }
    }

    /// Returns the memories that the kernel keeps, in the order of [`MemoryKind::ALL`].
    pub(crate) fn memories(self) -> impl Iterator<Item = MemoryKind> {
        MemoryKind::ALL.into_iter().filter(move |&kind| self.keeps(kind))
    }
}
