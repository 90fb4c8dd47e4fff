//! The key for which passes 1 and 4 are compiled, and the memories that they keep.

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
    /// Four at a time. Starts and lengths are multiples of 4.
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
    /// For Prodigy: the first parameters, whose displacement is measured along the gradient, and a weighted sum of gradients.
    Estimate,
    /// The displacement from the first parameters before Mechanic scales it.
    Displacement,
    /// Three streams of parameters. Only the gradient is measured.
    Streams,
}

/// Part of a tensor that has its own learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RateAxis {
    Rows,
    Columns,
}

/// Encoding of new parameters: [`Rounding`] without its numbers, or `Exact` for f32 parameters.
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

/// Everything by which passes 1 and 4 are specialised at compile time.
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
    /// An average of the parameters is kept, or z of schedule-free training in its place.
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
    /// Number of iterations over the matrices of a rule with its own passes. It is 0 for other rules.
    pub(crate) iterations: u32,
    /// The matrices of these iterations are in f16 if the device supports it.
    pub(crate) half_iterates: bool,
    /// Rows or columns that have rates of their own.
    pub(crate) rates: Option<RateAxis>,
    /// Rows without a gradient are left alone.
    pub(crate) lazy_rows: bool,
    /// Pass 1 runs, because something uses its sums.
    pub(crate) is_measured: bool,
    /// Element type of the parameters. This and the next two fields depend on the tensor, the others on its group.
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

    /// Returns this key for a tensor at `place`: with its element types and encoding, and the rule's kind for its shape.
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

    /// Returns true if pass 1 reads the parameters. `started` tells whether the optimizer has taken a step before.
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
        // In 8 bits all of a rule's memory is shorter than one such vector.
        let of_the_rule = if self.bits8 { 1 } else { self.rule.traits().vectors() };
        self.vectors().max(of_the_rule).max(1)
    }

    /// Returns the number of elements at whose multiples blocks begin, in tensors and in memories.
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

    /// Returns true if pass 4 distinguishes the rows of a tensor.
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

/// A memory of a tensor. Most kinds have an entry for every parameter. A step keeps nothing else, so code that allocates, saves or restores
/// the memories iterates over this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum MemoryKind {
    /// m of the rule.
    Momentum,
    /// v of the rule. On the device it follows the momentum in the same buffer, or has its own buffer if there is no momentum.
    SecondMoment,
    /// The largest v of the rule so far. On the device it follows v.
    LargestSecondMoment,
    /// The mean of v of each row of a tensor's matrices.
    RowSecondMoment,
    /// The mean of v of each column. On the device it follows the means of the rows.
    ColumnSecondMoment,
    /// m in 8 bits, in the place of m on the device.
    MomentumCodes,
    /// v in 8 bits, in the place of v on the device.
    SecondMomentCodes,
    /// The scales of m and v in 8 bits: a word for every block of 32 parameters. On the device they follow the codes.
    Scales,
    /// Counters of gradient signs, and the sign of the last step.
    Counters,
    /// The last gradient as the regime saw it.
    LastGradient,
    /// The parameters before the first step.
    FirstParameters,
    /// The parameters before the first step and the weighted sum of gradients that Prodigy keeps, one after the other.
    Estimate,
    /// The displacement of the parameters by Mechanic.
    Displacement,
    /// The copies of the parameters that AutoSgd keeps, slot after slot.
    Streams,
    /// The average of the parameters.
    Averages,
    /// z of schedule-free training, in the average's place.
    BaseIterates,
    /// Remainders of the master weights of 16-bit parameters.
    Remainders,
    /// Remainders in 8 bits.
    RemainderCodes,
}

impl MemoryKind {
    /// The kinds of the rule, then those of the regime, then the others.
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

    /// Memories of a rule, in their order in one buffer of the device.
    #[cfg(feature = "gpu")]
    pub(crate) const OF_THE_RULE: &[MemoryKind] = Self::ALL.split_at(8).0;

    /// Memories of a regime. A kernel has at most one of them.
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

    /// Returns the bytes of an entry: 1, 2 for an i16, or 4.
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

    /// Returns the shape of a tensor's memory: entries, or slots by entries.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn shape(self, tensor: &TensorInfo) -> Vec<usize> {
        let stack = Stack::of(&tensor.shape);
        match (self, stack) {
            (MemoryKind::RowSecondMoment, Some(stack)) => vec![stack.matrices as usize, stack.rows as usize],
            (MemoryKind::ColumnSecondMoment, Some(stack)) => vec![stack.matrices as usize, stack.columns as usize],
            _ => self.shape_of_elements(tensor.elements),
        }
    }

    /// Returns the shape of a memory with an entry for each element.
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

    /// Returns the number of entries for each parameter. Their distance is the number of parameters.
    pub(crate) fn slots(self) -> u32 {
        match self {
            MemoryKind::Streams => slots::STREAM_SLOTS,
            MemoryKind::Estimate => slots::ESTIMATE_SLOTS,
            _ => 1,
        }
    }

    /// Returns the number of entries in a slot for this number of parameters.
    pub(crate) fn entries(self, parameters: u64) -> u64 {
        match self {
            MemoryKind::Scales => parameters.div_ceil(u64::from(state::BLOCK)),
            _ => parameters,
        }
    }

    /// Returns the bytes of a slot for this number of parameters.
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
