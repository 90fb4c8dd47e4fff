//! What is measured: rules, regimes, modes, tensors, and how many bytes each must move. `wgpu-optim bench` and `cargo bench` both
//! take their lists from here.

use std::ops::Range;

use wgpu_optim::{Averaging, Element, Group, NonFinitePolicy, OptimizerBuilder, Regime, Rounding, Rule, Seesaw, State};

/// The rules that are measured where none is named.
pub fn rules() -> [Rule; 6] {
    [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd(), Rule::signum(0.9), Rule::adamw(), Rule::lion()]
}

/// Every rule that can be measured, by name.
pub fn every_rule() -> Vec<Rule> {
    [Rule::all(), Rule::of_matrices()].concat()
}

/// Every regime that can be measured, by name: first [`regimes`].
pub fn every_regime() -> Vec<Regime> {
    let measured = regimes();
    let others = Regime::all().into_iter().filter(|other| measured.iter().all(|regime| regime.name() != other.name()));
    measured.into_iter().chain(others).collect()
}

/// The regimes that are measured where none is named.
///
/// The benchmark's gradient never changes, so it always agrees with itself. With the usual gain Seesaw would raise the rate to its
/// limit and carry the parameters off; a tiny one runs the same kernels over numbers that stay moderate.
pub fn regimes() -> [Regime; 3] {
    [
        Regime::fixed(1e-7),
        Regime::norm_ratio(),
        Regime::Seesaw(Seesaw { gain: 1e-9, early_steps: 0.0, ..Seesaw::default() }),
    ]
}

/// A way to take the step: how the optimizer is asked for it.
#[derive(Debug, Clone, Copy)]
pub struct Mode {
    /// As tables, `--mode` and `--json` name it.
    pub name: &'static str,
    /// What parameters and gradients are stored as.
    pub element: Element,
    /// How parameters of 16 bits take a step.
    pub rounding: Rounding,
    /// Schedule-free, or without an average.
    pub averaging: Averaging,
    /// How the rule's memory is kept.
    pub state: State,
    /// Whether gradients are looked at where no norm is needed.
    pub policy: NonFinitePolicy,
}

const F32: Mode = Mode {
    name: "f32",
    element: Element::F32,
    rounding: Rounding::Masters,
    averaging: Averaging::Off,
    state: State::F32,
    policy: NonFinitePolicy::Skip,
};

/// The modes that can be measured.
pub const MODES: &[Mode] = &[
    F32,
    Mode { name: "unchecked", policy: NonFinitePolicy::Unchecked, ..F32 },
    Mode { name: "bf16", element: Element::Bf16, ..F32 },
    Mode { name: "f16", element: Element::F16, ..F32 },
    Mode { name: "bf16-stochastic", element: Element::Bf16, rounding: Rounding::Stochastic { seed: 1 }, ..F32 },
    Mode { name: "schedule-free", averaging: Averaging::ScheduleFree, ..F32 },
    Mode { name: "8bit", state: State::Bits8, ..F32 },
    Mode { name: "bf16-8bit", element: Element::Bf16, state: State::Bits8, ..F32 },
];

impl Mode {
    /// Whether it is measured where no mode is named: those of 16 bits, of 8-bit state and schedule-free training are not, or a run would take
    /// more than twice as long.
    pub fn is_default(&self) -> bool {
        self.element == Element::F32 && self.averaging == Averaging::Off && self.state == State::F32
    }

    /// The rule as it is in this mode, if it can be had: in schedule-free training AdamW is without momentum, and the others that have
    /// one are not there.
    pub fn rule(&self, rule: Rule) -> Option<Rule> {
        match rule {
            // Without memory nothing of it is in 8 bits.
            rule if self.state == State::Bits8 && !(rule.fits_8_bits() && rule.vectors() > 0) => None,
            rule if self.averaging.fits(&rule) => Some(rule),
            Rule::AdamW(_) => Some(Rule::adamw_without_momentum()),
            _ => None,
        }
    }

    /// Whether the mode can be had with this rule and regime, and is another than without: gradients are read once only at a fixed rate.
    pub fn fits(&self, rule: Rule, regime: Regime) -> bool {
        let averaging = self.averaging_under(regime);
        let differs = self.policy != NonFinitePolicy::Unchecked || matches!(regime, Regime::Fixed(_));
        differs && regime.fits(&rule) && averaging.fits(&rule) && regime.fits_averaging(&averaging)
    }

    /// The averaging, which a regime may demand.
    fn averaging_under(&self, regime: Regime) -> Averaging {
        if regime.needs_schedule_free() { Averaging::ScheduleFree } else { self.averaging }
    }

    /// What is kept of a parameter for its average, which pass 4 reads and writes.
    pub fn average_bytes(&self, regime: Regime) -> f64 {
        match self.averaging_under(regime) {
            Averaging::Off => 0.0,
            _ => 4.0,
        }
    }

    /// What is kept of a parameter beside itself because it is stored in 16 bits.
    pub fn remainder_bytes(&self) -> f64 {
        match (self.element, self.rounding) {
            // In 8 bits where no average is to come back from the parameters' place.
            (Element::F16 | Element::Bf16, Rounding::Masters)
                if self.state == State::Bits8 && self.averaging == Averaging::Off =>
            {
                1.0
            }
            (Element::F16 | Element::Bf16, Rounding::Masters) => 2.0,
            _ => 0.0,
        }
    }

    /// Whether the alignment is measured against y - z of schedule-free training, which is kept anyway.
    fn compares_iterates(&self, rule: Rule, regime: Regime) -> bool {
        regime.needs_alignment()
            && self.averaging == Averaging::ScheduleFree
            && !rule.has_momentum()
            && !rule.has_second_moment()
    }

    /// What the optimizer remembers of a parameter, beside its average and its remainder: the vectors of rule and regime, and the
    /// counters of the alignment where nothing else is compared with the gradient. What rules with passes of their own keep between them is left
    /// out.
    pub fn state_bytes_per_param(&self, rule: Rule, regime: Regime) -> f64 {
        let counters = regime.needs_alignment() && !rule.has_momentum() && !self.compares_iterates(rule, regime);
        let vectors = f64::from(rule.vectors());
        let moments = match self.state {
            // A word for every 32 parameters.
            State::Bits8 if vectors > 0.0 => vectors + 4.0 / 32.0,
            _ => 4.0 * vectors,
        };
        moments + f64::from(u8::from(counters)) + regime_bytes(regime)
    }

    /// Bytes per parameter that a step of this rule and regime cannot do without.
    ///
    /// Pass 1, if it runs, reads g and what the regime compares it with; pass 4 reads g and reads and writes w with its remainder and its
    /// average, and the memory of rule and regime. The last gradient is only written. Passes that a rule owns read g, once more each, and what
    /// they keep between them is left out, as products of matrices are.
    pub fn bytes_per_param(&self, rule: Rule, regime: Regime) -> f64 {
        let memory = self.state_bytes_per_param(rule, regime) - regime_bytes(regime);
        let element = self.element.bytes() as f64;
        let aligned = match (regime.needs_alignment(), rule.has_momentum()) {
            (false, _) => 0.0,
            (true, true) if self.state == State::Bits8 => 1.0 + 4.0 / 32.0,
            (true, true) => 4.0,
            (true, false) if self.compares_iterates(rule, regime) => {
                element + self.remainder_bytes() + self.average_bytes(regime)
            }
            (true, false) => 1.0,
        };
        let parameter = element + self.remainder_bytes();
        let vectors = 4.0 * f64::from(rule.vectors());
        // What the regime has pass 1 compare the gradient with, and what pass 4 moves of it.
        let (compared, followed) = match regime {
            _ if regime.needs_looks() => (if rule.has_momentum() { 4.0 } else { 0.0 }, 4.0),
            _ if regime.needs_last_gradient() => (4.0 + vectors, 4.0),
            _ if regime.needs_schedule_free() => (parameter + self.average_bytes(regime), 0.0),
            // Pass 4 writes the first parameters once, and the sum of gradients in every step.
            _ if regime.needs_estimate() => (parameter + 8.0, 8.0),
            _ if regime.needs_first_parameters() => (parameter + 4.0, 0.0),
            _ if regime.needs_displacement() => (4.0, 8.0),
            // A step puts one stream aside and takes the next.
            _ if regime.needs_streams() => (0.0, 8.0),
            _ => (0.0, 0.0),
        };
        let is_measured = self.policy != NonFinitePolicy::Unchecked || !matches!(regime, Regime::Fixed(_));
        let pass_1 = if is_measured { element + aligned + compared } else { 0.0 };
        let own = match (rule.owns_passes(), rule.needs_matrices()) {
            (false, _) => 0.0,
            // Sums of rows and columns, and the length of the direction.
            (true, false) => 2.0 * element,
            // The matrix is made of gradient and momentum, and the direction is read.
            (true, true) => element + 4.0 + 4.0 + 4.0,
        };
        let kept = parameter + self.average_bytes(regime) + memory;
        let pass_4 = element + 2.0 * kept + followed;
        pass_1 + own + pass_4
    }
}

/// What a regime remembers of a parameter.
fn regime_bytes(regime: Regime) -> f64 {
    let vectors = match regime {
        _ if regime.needs_streams() => 3,
        _ if regime.needs_estimate() => 2,
        _ if regime.needs_last_gradient() || regime.needs_first_parameters() || regime.needs_displacement() => 1,
        _ => 0,
    };
    4.0 * f64::from(vectors)
}

/// A copy reads 4 bytes per element and writes 4.
pub const COPY_BYTES: f64 = 8.0;
/// The triad reads 8 bytes per element and writes 4.
pub const TRIAD_BYTES: f64 = 12.0;

/// The tensors of one optimizer: lengths in elements, by group. They lie side by side in one buffer; those of 16 bits each start with
/// a word.
pub type Tensors = Vec<Vec<usize>>;

/// One tensor in one group.
pub fn one_tensor(elements: usize) -> Tensors {
    vec![vec![elements]]
}

/// Tensors of [`many_tensors`].
pub const MANY: usize = 200;
/// Groups of [`many_tensors`].
pub const MANY_GROUPS: usize = 4;

/// [`MANY`] tensors in [`MANY_GROUPS`] groups, the largest 128 times the smallest; `None` below 4 elements each.
///
/// Lengths are multiples of four, so that everything can be loaded four at a time; or `odd`, so that hardly a tensor starts on a
/// multiple of four.
pub fn many_tensors(elements: usize, odd: bool) -> Option<Tensors> {
    if elements < 4 * MANY {
        return None;
    }
    let weight = |tensor: usize| 1usize << (tensor % 8);
    let weights: usize = (0..MANY).map(weight).sum();
    // What is left after the least that every tensor has.
    let free = elements - 4 * MANY;
    let mut lengths: Vec<usize> =
        (0..MANY).map(|tensor| 4 + free * weight(tensor) / weights / 4 * 4 - usize::from(odd)).collect();
    let rest = elements - lengths.iter().sum::<usize>();
    lengths[MANY - 1] += rest;
    Some(lengths.chunks(MANY / MANY_GROUPS).map(<[usize]>::to_vec).collect())
}

/// Elements of an array that so many, in whatever tensors, lie in: behind one of 16 bits and odd length there is half a word.
pub fn room(element: Element, elements: usize) -> usize {
    elements + MANY * (elements_per_word(element) - 1)
}

fn elements_per_word(element: Element) -> usize {
    4 / element.bytes() as usize
}

/// An optimizer to be built and measured.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its update rule.
    pub rule: Rule,
    /// Its regime.
    pub regime: Regime,
    /// How the step is taken.
    pub mode: Mode,
    /// Clip by norm; infinite for none.
    pub clip_norm: f32,
    /// What it optimizes.
    pub tensors: Tensors,
    /// True if its passes are dispatches of their own, however small it is.
    pub separate_passes: bool,
}

impl Spec {
    /// One flat tensor, no clip, the first mode.
    pub fn new(rule: Rule, regime: Regime, elements: usize) -> Self {
        let tensors = one_tensor(elements);
        Spec { rule, regime, mode: MODES[0], clip_norm: f32::INFINITY, tensors, separate_passes: false }
    }

    /// A builder of it. `tensor` adds a tensor to a group, given its name and where it starts and ends in
    /// the buffer that they all share.
    pub fn builder<T>(
        &self,
        mut tensor: impl FnMut(Group<T>, String, Range<usize>) -> Group<T>,
    ) -> OptimizerBuilder<T> {
        let mut builder = OptimizerBuilder::new(self.rule)
            .regime(self.regime)
            .rounding(self.mode.rounding)
            .state(self.mode.state)
            .nonfinite_policy(self.mode.policy)
            .averaging(self.mode.averaging_under(self.regime))
            .clip_norm(self.clip_norm);
        if self.separate_passes {
            builder = builder.separate_passes();
        }
        let mut ranges = self.ranges().into_iter();
        for (number, lengths) in self.tensors.iter().enumerate() {
            let mut group = Group::new(number.to_string());
            for range in ranges.by_ref().take(lengths.len()) {
                group = tensor(group, range.start.to_string(), range);
            }
            builder = builder.group(group);
        }
        builder
    }

    /// A factor for the learning rate. Regimes other than [`regimes`] could make so much of a gradient that never changes that parameters leave
    /// the range of f32: their steps are taken along all of their kernels, and move next to nothing.
    pub fn rate_factor(&self) -> f32 {
        if regimes().iter().any(|regime| regime.name() == self.regime.name()) { 1.0 } else { 1e-12 }
    }

    /// Where the tensors start and end, over all groups.
    pub fn ranges(&self) -> Vec<Range<usize>> {
        let word = elements_per_word(self.mode.element);
        let mut at = 0;
        let lengths = self.tensors.iter().flatten();
        lengths
            .map(|length| {
                let range = at..at + length;
                at = range.end.next_multiple_of(word);
                range
            })
            .collect()
    }
}

/// Small values, none of them zero or denormal, that many steps do not carry off.
pub fn values(elements: usize) -> Vec<f32> {
    (0..elements).map(|i| 1e-3 * ((i % 251) as f32 - 125.5)).collect()
}
