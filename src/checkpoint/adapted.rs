//! Adapts a checkpoint of one optimizer to another, by the names of groups and tensors.

use std::ops::Range;

use bytemuck::Pod;

use super::about;
use super::draft::{dtype_of, masters, params_dtype};
use super::*;
use crate::averaging::Averaging;
use crate::cpu::count_steps::{steps_moved, steps_taken};
use crate::cpu::half::{Half, lengthened, shortened};
use crate::cpu::state::{Codes, decode_momentum, decode_squares};
use crate::element::Element;
use crate::layout::{LOSS_ELEMENT, NO_ELEMENT, RawTensorRecord, Update, group_flags};
use crate::plan::MemoryKind;
use crate::regime::{Kernel, Regime};
use crate::rule::Rule;
use crate::schedule::Schedule;

/// A checkpoint that fits an optimizer.
pub(crate) struct Fitted<'a> {
    pub(crate) checkpoint: Cow<'a, Checkpoint>,
    /// New tensors, whose parameters are not in the checkpoint.
    pub(crate) new_tensors: HashSet<usize>,
    pub(crate) differences: Vec<Difference>,
}

/// Memory of a rule: whether it keeps momentum, second moments and the largest second moments, whether the momentum begins with the gradient
/// itself, whether the second moments are a sum instead of a mean, and whether the direction is limited.
type Moments = (bool, bool, bool, bool, bool, bool);

/// Group in the file.
struct Old {
    kernel: &'static Kernel,
    moments: Moments,
    is_scale_free: bool,
}

/// Groups of the file from which the parts of a group's state come, or `None` if a part starts anew.
#[derive(Clone, Copy)]
struct Sources {
    /// The group's origin.
    origin: Option<usize>,
    /// Source of the counts and flags that belong to the moments.
    moments: Option<usize>,
    /// Source of the norm's state.
    norm: Option<usize>,
    /// True if the learning rate continues from that of `norm`.
    rate: bool,
    /// True if the next step is the first one for the memory per parameter.
    first: bool,
    /// True if z of schedule-free training continues.
    base_iterates: bool,
    averages: Average,
}

#[derive(Clone, Copy, PartialEq)]
enum Average {
    GoesOn,
    /// The average starts at its `start`, a later step.
    Later,
    FromParameters,
}

/// Kinds of memory that a regime needs from its first step on.
const FROM_THE_FIRST_STEP: [MemoryKind; 5] = [
    MemoryKind::LastGradient,
    MemoryKind::FirstParameters,
    MemoryKind::Estimate,
    MemoryKind::Displacement,
    MemoryKind::Streams,
];

/// Returns the kind of memory with the same content in 8 bits or in more.
fn in_other_bits(kind: MemoryKind) -> Option<MemoryKind> {
    match kind {
        MemoryKind::Momentum => Some(MemoryKind::MomentumCodes),
        MemoryKind::MomentumCodes => Some(MemoryKind::Momentum),
        MemoryKind::SecondMoment => Some(MemoryKind::SecondMomentCodes),
        MemoryKind::SecondMomentCodes => Some(MemoryKind::SecondMoment),
        MemoryKind::Remainders => Some(MemoryKind::RemainderCodes),
        MemoryKind::RemainderCodes => Some(MemoryKind::Remainders),
        _ => None,
    }
}

/// The code of 2 in f16 and bf16.
const TWO: u32 = 0x4000;

/// Converts remainders of the other kind to this kind. If the file has no parameters, remainders of f16 are treated as those of normal
/// numbers. The error is at most a quarter of a unit in the parameter's last place.
fn change_remainders<H: Half>(kind: MemoryKind, stored: &[u8], long: &[u8], short: &[u8], slot: &mut [u8]) {
    let mut halves: Vec<H> = bytemuck::pod_collect_to_vec(stored);
    if kind == MemoryKind::Remainders {
        halves.resize(short.len(), H::from_code(TWO));
        let long = lengthened(&halves, bytemuck::cast_slice(short));
        slot.copy_from_slice(bytemuck::cast_slice(&long));
    } else {
        let long: Vec<i16> = bytemuck::pod_collect_to_vec(long);
        halves.resize(long.len(), H::from_code(TWO));
        slot.copy_from_slice(bytemuck::cast_slice(&shortened(&halves, &long)));
    }
}

/// Settings with a learning rate given by the caller.
const GIVEN_RATES: [&str; 2] = ["regime.learning_rate", "regime.initial_rate"];

/// The rows of a table in the file.
struct Rows<'a> {
    about: &'a About,
    table: Table,
    words: Vec<u32>,
    row_words: usize,
    /// For two kernels, the position in a row of the file of each word of a row of this version.
    places: HashMap<[&'static str; 2], Vec<Option<usize>>>,
}

impl<'a> Rows<'a> {
    fn new(checkpoint: &'a Checkpoint, table: Table) -> Self {
        let words = bytemuck::pod_collect_to_vec(checkpoint.bytes(Slot::Table(table)));
        let row_words = checkpoint.about.fields_of(table).len().max(1);
        Rows { about: &checkpoint.about, table, words, row_words, places: HashMap::new() }
    }

    /// Returns a row with the words that both versions and both regimes have. The other words are those of `base`.
    fn row<T: Pod>(&mut self, index: usize, base: T, [old, new]: [&'static Kernel; 2]) -> T {
        let Rows { about, table, .. } = *self;
        let places = self.places.entry([old.name, new.name]).or_insert_with(|| {
            let found = about.fields_of_row(table, old);
            let fields = match table {
                Table::States => about::with_regime(table.fields(), about::state_of(new)),
                _ => table.fields(),
            };
            let place = |field| found.iter().position(|other| *other == field);
            fields.into_iter().map(place).collect()
        });
        let mut row = base;
        if let Some(found) = self.words.chunks_exact(self.row_words).nth(index) {
            let words: &mut [u32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut row));
            for (word, place) in words.iter_mut().zip(places) {
                if let Some(place) = *place {
                    *word = found[place];
                }
            }
        }
        row
    }
}

/// A checkpoint, and the optimizer to which it is adapted.
struct Adaptation<'a> {
    file: &'a Checkpoint,
    plan: &'a Plan,
    here: &'a About,
    old: Vec<Old>,
    /// For each tensor, the same tensor in the file.
    tensors: Vec<Option<usize>>,
    sources: Vec<Sources>,
    states: Rows<'a>,
    updates: Rows<'a>,
    first_states: Vec<GroupState>,
    lines: Vec<Difference>,
}

impl Checkpoint {
    /// Returns the checkpoint adapted to an optimizer with this plan. The differences between the two are given.
    pub(super) fn adapted(
        &self,
        plan: &Plan,
        here: &About,
        parameters: Parameters,
        found: &[Found],
    ) -> Result<Fitted<'static>, Error> {
        let damaged = |problem| damaged(&self.origin, problem);
        if self.about.groups.is_empty() {
            return Err(damaged("it has no groups".to_owned()));
        }
        self.check_entries().map_err(damaged)?;
        self.check_parameters(parameters)?;
        let old: Result<Vec<Old>, String> = (0..self.about.groups.len()).map(|group| self.old_group(group)).collect();
        let old = old.map_err(damaged)?;
        let mut tables = vec![Table::States, Table::Updates];
        tables.extend([Table::Controls].into_iter().filter(|&table| self.about.has(table)));
        tables.extend(self.metadata.info(Table::TensorRecords.name()).map(|_| Table::TensorRecords));
        for table in tables {
            self.about.check_fields(table, old.iter().map(|old| old.kernel)).map_err(|found| self.differs(&found))?;
        }
        let named = about::by_name(self.about.tensors.iter().map(|tensor| &tensor.name));
        let tensors = here.tensors.iter().map(|tensor| named.get(tensor.name.as_str()).copied()).collect();
        let mut adaptation = Adaptation {
            file: self,
            plan,
            here,
            old,
            tensors,
            sources: Vec::new(),
            states: Rows::new(self, Table::States),
            updates: Rows::new(self, Table::Updates),
            first_states: plan.first_states(),
            lines: found.iter().map(Difference::from).collect(),
        };
        adaptation.find_sources()?;
        adaptation.explain();
        let mut draft = Draft::new(plan, parameters, self.notes())?;
        adaptation.fill(&mut draft);
        let mut checkpoint = draft.finish();
        checkpoint.origin.clone_from(&self.origin);
        let new_tensors = (0..plan.tensors.len()).filter(|&tensor| adaptation.tensors[tensor].is_none()).collect();
        Ok(Fitted { checkpoint: Cow::Owned(checkpoint), new_tensors, differences: adaptation.lines })
    }

    /// Checks that all entries have known names, and their types and shapes.
    fn check_entries(&self) -> Result<(), String> {
        let mut known = HashSet::new();
        let mut check = |name: String, dtype, shape: Option<Vec<usize>>, must_be_there: bool| {
            match self.metadata.info(&name) {
                Some(info) if info.dtype != dtype || shape.as_ref().is_some_and(|shape| info.shape != *shape) => {
                    return Err(format!("\"{name}\" is {} of shape {:?}", info.dtype, info.shape));
                }
                None if must_be_there => return Err(format!("\"{name}\" is missing in it")),
                _ => {}
            }
            known.insert(name);
            Ok(())
        };
        let groups = self.about.groups.len();
        for table in [Table::States, Table::Updates, Table::Controls] {
            let shape = vec![groups, self.about.fields_of(table).len()];
            check(table.name().to_owned(), Dtype::U32, Some(shape), self.about.has(table))?;
        }
        let records = Table::TensorRecords;
        let rows = self.recorded_tensors().len();
        let shape = vec![rows, self.about.fields_of(records).len()];
        check(records.name().to_owned(), Dtype::U32, Some(shape), rows > 0)?;
        for tensor in &self.about.tensors {
            for kind in MemoryKind::ALL {
                // A file does not contain the rows and columns of a tensor.
                let shape = (!kind.is_factored()).then(|| kind.shape_of_elements(tensor.elements));
                let is_there = |kind| self.metadata.info(&memory_name(kind, &tensor.name)).is_some();
                let has_codes = is_there(MemoryKind::MomentumCodes) || is_there(MemoryKind::SecondMomentCodes);
                let must_be_there = kind == MemoryKind::Scales && has_codes;
                check(memory_name(kind, &tensor.name), dtype_of(kind), shape, must_be_there)?;
            }
            let dtype = Element::named(&tensor.params).map(params_dtype);
            let dtype = dtype.ok_or_else(|| format!("parameters of {} are not known", tensor.params))?;
            let shape = vec![tensor.elements as usize];
            check(parameters_name(&tensor.name), dtype, Some(shape), self.about.parameters)?;
        }
        match self.names().into_iter().find(|name| !known.contains(name)) {
            Some(foreign) => Err(format!("\"{foreign}\" does not belong in it")),
            None => Ok(()),
        }
    }

    /// Returns the tensors that have a row in the table of tensor records, in the order of the table.
    fn recorded_tensors(&self) -> Vec<usize> {
        let has_telemetry = |group: &about::AboutGroup| group.settings.get("telemetry").is_some_and(|on| on == "true");
        let tensors = self.about.tensors.iter().enumerate();
        let recorded = tensors.filter(|(_, tensor)| self.about.groups.get(tensor.group).is_some_and(has_telemetry));
        recorded.map(|(index, _)| index).collect()
    }

    fn old_group(&self, group: usize) -> Result<Old, String> {
        let about = &self.about.groups[group];
        let setting = |key: &str| about.settings.get(key).map_or("", String::as_str);
        let unknown = |what: &str| {
            let name = setting(what);
            format!("the {what} \"{name}\" of its group \"{}\" is not known", about.name)
        };
        let regime = Regime::all().into_iter().find(|regime| about::kind_of(regime) == setting(about::REGIME));
        let rule = Rule::examples().into_iter().find(|rule| about::kind_of(rule) == setting(about::RULE));
        let (regime, rule) = (regime.ok_or_else(|| unknown(about::REGIME))?, rule.ok_or_else(|| unknown(about::RULE))?);
        let traits = rule.traits();
        // A rule's memory depends on its numbers, so the entries of the file decide.
        let keeps = |kind, usual| {
            let tensor = self.about.tensors.iter().find(|tensor| tensor.group == group);
            tensor.map_or(usual, |tensor| self.metadata.info(&memory_name(kind, &tensor.name)).is_some())
        };
        let momentum = keeps(MemoryKind::Momentum, traits.momentum) || keeps(MemoryKind::MomentumCodes, false);
        let squares = keeps(MemoryKind::SecondMoment, traits.squares)
            || keeps(MemoryKind::SecondMomentCodes, false)
            || keeps(MemoryKind::RowSecondMoment, false);
        let largest = keeps(MemoryKind::LargestSecondMoment, traits.largest_squares);
        Ok(Old {
            kernel: regime.regime().kernel(),
            moments: (momentum, squares, largest, traits.momentum_from_gradient, rule.sums_squares(), traits.limited),
            is_scale_free: rule.is_scale_free(),
        })
    }
}

impl Adaptation<'_> {
    /// Returns the state of a group of the file. Words that only this version or the new regime has are those before the first step of a group here.
    fn state(&mut self, old: usize, group: usize) -> GroupState {
        let kernels = [self.old[old].kernel, self.kernel(group)];
        self.states.row(old, self.first_states[group], kernels)
    }

    fn kernel(&self, group: usize) -> &'static Kernel {
        self.plan.configs[group].regime.regime().kernel()
    }

    /// Returns the number of steps that moved a group of the file.
    fn steps_of(&mut self, old: usize) -> u32 {
        steps_moved(&self.state(old, 0))
    }

    /// Returns the tensors of a group here.
    fn tensors_of(&self, group: usize) -> Range<usize> {
        let tensors = &self.plan.tensors;
        let start = tensors.partition_point(|tensor| tensor.group < group);
        start..start + tensors[start..].partition_point(|tensor| tensor.group == group)
    }

    /// Returns the group in the file of a tensor here.
    fn old_group_of(&self, tensor: usize) -> Option<usize> {
        let old = &self.file.about.tensors[self.tensors[tensor]?];
        (old.group < self.old.len()).then_some(old.group)
    }

    fn moments(&self, group: usize) -> Moments {
        let rule = self.plan.configs[group].rule;
        let traits = rule.traits();
        let sums = rule.sums_squares();
        (traits.momentum, traits.squares, traits.largest_squares, traits.momentum_from_gradient, sums, traits.limited)
    }

    /// Returns true if a group's rule keeps the moments that a group of the file has.
    fn has_same_moments(&self, old: usize, group: usize) -> bool {
        self.old[old].moments == self.moments(group)
    }

    /// Returns true if the file has a memory of this kind for a tensor here, or the same memory in other bits.
    fn has_some_entry(&self, tensor: usize, kind: MemoryKind) -> bool {
        self.has_entry(tensor, kind) || in_other_bits(kind).is_some_and(|other| self.has_entry(tensor, other))
    }

    /// Returns true if the file has a memory of this kind for a tensor here.
    fn has_entry(&self, tensor: usize, kind: MemoryKind) -> bool {
        let info = |kind, name: &str| self.file.metadata.info(&memory_name(kind, name)).is_some();
        self.tensors[tensor].is_some_and(|old| {
            let name = &self.file.about.tensors[old].name;
            // The average of schedule-free training follows from its base iterates.
            info(kind, name) && !(kind == MemoryKind::Averages && info(MemoryKind::BaseIterates, name))
        })
    }

    /// Returns true if a memory has the same shape in the file and here.
    fn has_same_shape(&self, tensor: usize, kind: MemoryKind) -> bool {
        let here = kind.shape(&self.plan.tensors[tensor]);
        self.tensors[tensor].is_some_and(|old| {
            let info = self.file.metadata.info(&memory_name(kind, &self.file.about.tensors[old].name));
            info.is_some_and(|info| info.shape == here)
        })
    }

    /// Returns true if all non-empty tensors of a group have a memory of a kind in the file.
    fn all_have(&self, group: usize, kind: MemoryKind) -> bool {
        self.tensors_of(group).all(|tensor| self.plan.tensors[tensor].elements == 0 || self.has_entry(tensor, kind))
    }

    fn is_same(&self, old: usize, group: usize, key: &str) -> bool {
        about::is_same(&self.file.about.groups[old].settings, &self.here.groups[group].settings, key)
    }

    fn settings_agree(&self, old: usize, group: usize, key: &str) -> bool {
        let of = |about: &About, group: usize| about.groups[group].settings.get(key).cloned();
        of(&self.file.about, old) == of(self.here, group)
    }

    /// Returns true if a group can continue with a learning rate of the file.
    fn rate_goes_on(&self, old: usize, group: usize) -> bool {
        let config = &self.plan.configs[group];
        let is_given = config.regime.initial_rate().is_some();
        let has_trust = self.file.about.groups[old].settings.contains_key("trust_ratio.coefficient");
        self.settings_agree(old, group, about::REGIME)
            && !(is_given && GIVEN_RATES.iter().any(|key| !self.settings_agree(old, group, key)))
            && self.old[old].is_scale_free == config.rule.is_scale_free()
            && has_trust == config.trust_ratio.is_some()
    }

    fn find_sources(&mut self) -> Result<(), Error> {
        let origins = self.file.about.origins(self.here);
        let mut of_norm = HashMap::new();
        for (index, group) in self.file.about.groups.iter().enumerate() {
            let norm = group.settings.get(about::NORM).filter(|norm| *norm != about::OWN_NORM);
            let rule = group.settings.get(about::RULE);
            if let (Some(norm), Some(rule)) = (norm, rule) {
                of_norm.entry((norm.clone(), rule.clone())).or_insert(index);
            }
        }
        for (group, origin) in origins.into_iter().enumerate() {
            let tensors = self.tensors_of(group);
            let mut groups: Vec<Option<usize>> = tensors.map(|tensor| self.old_group_of(tensor)).collect();
            groups.sort_unstable();
            groups.dedup();
            let only = if let [only] = groups[..] { only } else { None };
            let moments = origin.or(only).filter(|&old| self.has_same_moments(old, group));
            let norm = match origin {
                Some(old) => Some(old).filter(|&old| self.is_same(old, group, about::NORM)),
                None => {
                    let setting = |key: &str| self.here.groups[group].settings.get(key).cloned().unwrap_or_default();
                    of_norm.get(&(setting(about::NORM), setting(about::RULE))).copied()
                }
            };
            let rate = norm.is_some_and(|old| self.rate_goes_on(old, group)) && (origin.is_none() || moments.is_some());
            let averages = Average::Later;
            self.sources.push(Sources { origin, moments, norm, rate, first: false, base_iterates: false, averages });
        }
        // Groups under one norm share a rate or determine their rates together. They start anew together.
        let mut starts_anew = vec![false; self.plan.scopes.len()];
        for (sources, constants) in self.sources.iter().zip(&self.plan.groups) {
            starts_anew[constants.scope as usize] |= !sources.rate;
        }
        for (sources, constants) in self.sources.iter_mut().zip(&self.plan.groups) {
            sources.rate &= !starts_anew[constants.scope as usize];
        }
        for group in 0..self.sources.len() {
            self.find_memories(group)?;
        }
        Ok(())
    }

    fn find_memories(&mut self, group: usize) -> Result<(), Error> {
        let config = &self.plan.configs[group];
        let mut sources = self.sources[group];
        let kernel = self.plan.kernels[group];
        let (momentum, squares, ..) = self.moments(group);
        let has_trust = config.trust_ratio.is_some();
        let had_trust = |old: usize| self.file.about.groups[old].settings.contains_key("trust_ratio.coefficient");
        let lacks = |kind| kernel.keeps(kind) && !(sources.rate && self.all_have(group, kind));
        sources.first = sources.origin.or(sources.moments).is_none()
            || (momentum || squares) && sources.moments.is_none()
            || FROM_THE_FIRST_STEP.into_iter().any(lacks)
            || has_trust && !sources.origin.is_some_and(had_trust);
        sources.base_iterates = kernel.schedule_free
            && !sources.first
            && self.all_have(group, MemoryKind::BaseIterates)
            && sources.origin.is_some();
        sources.first |= kernel.schedule_free && !sources.base_iterates;
        // At a first step the trust ratio uses the norm of the parameters before it, which is measured until there is a rate.
        sources.rate &= !(sources.first && has_trust);
        self.sources[group] = sources;

        let steps = self.steps_here(group);
        if squares {
            for tensor in self.tensors_of(group) {
                let old = self.old_group_of(tensor).filter(|&old| self.has_same_moments(old, group));
                let own = old.map_or(0, |old| self.steps_of(old));
                if own != steps && self.plan.tensors[tensor].elements > 0 {
                    return Err(Error::from(CheckpointError::OtherAge {
                        checkpoint: self.file.origin.clone(),
                        tensor: self.plan.tensors[tensor].name.clone(),
                        steps: own,
                        group: config.name.clone(),
                        group_steps: steps,
                        rule: config.rule.name(),
                    }));
                }
            }
        }
        if !kernel.averages || kernel.schedule_free {
            return Ok(());
        }
        let has_average = match sources.origin {
            Some(old) => self.update(old).average_weight > 0.0,
            None => false,
        };
        let counts_go_on = sources.moments.is_some() || !squares;
        self.sources[group].averages = if has_average && counts_go_on && self.all_have(group, MemoryKind::Averages) {
            Average::GoesOn
        } else if config.averaging.start() >= steps {
            Average::Later
        } else {
            let has_parameters =
                self.tensors_of(group).all(|tensor| self.tensors[tensor].is_some()) && self.file.about.parameters;
            if !has_parameters || matches!(config.averaging, Averaging::Running { .. }) {
                return Err(Error::from(CheckpointError::AverageBegun {
                    checkpoint: self.file.origin.clone(),
                    group: config.name.clone(),
                    averaging: config.averaging.name(),
                    start: config.averaging.start(),
                    steps,
                    may_have_parameters: !has_parameters && !matches!(config.averaging, Averaging::Running { .. }),
                }));
            }
            Average::FromParameters
        };
        Ok(())
    }

    /// Returns the adapted number of steps that have moved a group here.
    fn steps_here(&mut self, group: usize) -> u32 {
        let left_out = self.left_out(group);
        let taken = steps_taken(&self.state(0, 0));
        if taken == u32::MAX { taken } else { taken.wrapping_sub(left_out) }
    }

    /// Returns the adapted number of steps that did not move a group here. If its count starts anew, these are all steps.
    fn left_out(&mut self, group: usize) -> u32 {
        let Sources { origin, moments, .. } = self.sources[group];
        let (_, squares, ..) = self.moments(group);
        match moments.or(origin.filter(|_| !squares)) {
            Some(old) => self.state(old, group).left_out,
            None => steps_taken(&self.state(0, 0)),
        }
    }

    /// Returns the update of a group of the file.
    fn update(&mut self, old: usize) -> Update {
        let kernel = self.old[old].kernel;
        self.updates.row(old, <Update as bytemuck::Zeroable>::zeroed(), [kernel, kernel])
    }

    /// Returns true if a memory of a tensor is carried over.
    fn carries(&self, tensor: usize, kind: MemoryKind) -> bool {
        let group = self.plan.tensors[tensor].group;
        let sources = &self.sources[group];
        // Scales are carried over with their codes.
        (kind == MemoryKind::Scales || self.has_some_entry(tensor, kind))
            && match kind {
                MemoryKind::Momentum
                | MemoryKind::SecondMoment
                | MemoryKind::LargestSecondMoment
                | MemoryKind::MomentumCodes
                | MemoryKind::SecondMomentCodes
                | MemoryKind::Scales => self.old_group_of(tensor).is_some_and(|old| self.has_same_moments(old, group)),
                MemoryKind::RowSecondMoment | MemoryKind::ColumnSecondMoment => {
                    let has_same_moments = |old| self.has_same_moments(old, group);
                    self.old_group_of(tensor).is_some_and(has_same_moments) && self.has_same_shape(tensor, kind)
                }
                MemoryKind::Counters => sources.rate,
                MemoryKind::LastGradient
                | MemoryKind::FirstParameters
                | MemoryKind::Estimate
                | MemoryKind::Displacement
                | MemoryKind::Streams => sources.rate && !sources.first,
                MemoryKind::Averages => sources.averages == Average::GoesOn,
                MemoryKind::BaseIterates => sources.base_iterates,
                MemoryKind::Remainders | MemoryKind::RemainderCodes => true,
            }
    }

    /// Reports the consequences of the differences.
    fn explain(&mut self) {
        let mut lines = Vec::new();
        for (group, sources) in self.sources.iter().enumerate() {
            let name = &self.here.groups[group].name;
            let old_name = |old: usize| &self.file.about.groups[old].name;
            let mut say = |what: String| lines.push(Difference(format!("group \"{name}\": {what}")));
            let Some(origin) = sources.origin else {
                if let (true, Some(norm)) = (sources.rate, sources.norm) {
                    say(format!(
                        "it takes over the learning rate of the norm that it shares with group \"{}\"",
                        old_name(norm)
                    ));
                }
                continue;
            };
            if old_name(origin) != name {
                say(format!("it goes on from group \"{}\", which had the same tensors", old_name(origin)));
            }
            if !sources.rate {
                say("the learning rate starts anew".to_owned());
            }
            for kind in MemoryKind::ALL.into_iter().filter(|kind| *kind != MemoryKind::Scales) {
                let mut tensors = self.tensors_of(group);
                let keeps = |tensor| self.plan.kernel_of(tensor).keeps(kind);
                let was_there = |tensor: usize| self.tensors[tensor].is_some();
                // A conversion is reported for the kind that the memory becomes.
                let other = in_other_bits(kind);
                let (named, bits) = match (kind, other) {
                    (MemoryKind::Momentum | MemoryKind::SecondMoment, _) => (kind, "f32"),
                    (MemoryKind::Remainders, _) => (kind, "16 bits"),
                    (_, other) => (other.unwrap_or(kind), "8 bits"),
                };
                let words = named.name().replace('_', " ");
                let becomes = |tensor| other.is_some_and(|other| self.plan.kernel_of(tensor).keeps(other));
                let changes = |tensor| !self.has_entry(tensor, kind) && self.has_some_entry(tensor, kind);
                if tensors.clone().any(|tensor| keeps(tensor) && self.carries(tensor, kind) && changes(tensor)) {
                    say(format!("what is kept of {words} goes on in {bits}"));
                } else if tensors
                    .clone()
                    .any(|tensor| self.has_entry(tensor, kind) && !keeps(tensor) && !becomes(tensor))
                {
                    say(format!("what is kept of {words} is dropped"));
                } else if tensors.any(|tensor| was_there(tensor) && keeps(tensor) && !self.carries(tensor, kind)) {
                    let from_parameters = kind == MemoryKind::Averages && sources.averages == Average::FromParameters;
                    let how = if from_parameters { "from the parameters" } else { "anew" };
                    say(format!("what is kept of {words} starts {how}"));
                }
            }
        }
        self.lines.append(&mut lines);
    }

    fn fill(&mut self, draft: &mut Draft) {
        let states: Vec<GroupState> = self.new_states();
        draft.bytes(Slot::Table(Table::States)).copy_from_slice(bytemuck::cast_slice(&states));
        let updates: Vec<Update> = (0..self.sources.len()).map(|group| self.new_update(group)).collect();
        draft.bytes(Slot::Table(Table::Updates)).copy_from_slice(bytemuck::cast_slice(&updates));
        let controls: Vec<GroupControls> = self.new_controls();
        draft.bytes(Slot::Table(Table::Controls)).copy_from_slice(bytemuck::cast_slice(&controls));
        let records: Vec<RawTensorRecord> = self.new_records();
        draft.bytes(Slot::Table(Table::TensorRecords)).copy_from_slice(bytemuck::cast_slice(&records));
        for tensor in 0..self.tensors.len() {
            let Some(old) = self.tensors[tensor] else {
                continue;
            };
            let parameters = self.file.bytes(Slot::Parameters(old));
            let slot = draft.bytes(Slot::Parameters(tensor));
            if !slot.is_empty() {
                slot.copy_from_slice(parameters);
            }
            self.change_bits(tensor, old, draft);
            self.change_remainders(tensor, old, draft);
            for kind in self.plan.kernel_of(tensor).memories() {
                if self.carries(tensor, kind) && self.has_entry(tensor, kind) {
                    draft.bytes(Slot::Memory(tensor, kind)).copy_from_slice(self.file.bytes(Slot::Memory(old, kind)));
                }
            }
            let group = self.plan.tensors[tensor].group;
            let is_averaged = self.plan.kernel_of(tensor).keeps(MemoryKind::Averages);
            if is_averaged && self.sources[group].averages == Average::FromParameters {
                let remainders = [MemoryKind::Remainders, MemoryKind::RemainderCodes]
                    .map(|kind| self.file.bytes(Slot::Memory(old, kind)));
                let average = masters(self.plan.places[tensor].params, parameters, remainders);
                let slot = draft.bytes(Slot::Memory(tensor, MemoryKind::Averages));
                slot.copy_from_slice(bytemuck::cast_slice(&average));
            }
        }
    }

    /// Converts the moments of a tensor, whose number in the file is `old`, from f32 to 8 bits or the other way round. In 8 bits each moment gets
    /// the nearer of two codes.
    fn change_bits(&self, tensor: usize, old: usize, draft: &mut Draft) {
        let elements = self.plan.tensors[tensor].elements as usize;
        let goes_on = |kind| self.plan.kernel_of(tensor).keeps(kind) && self.carries(tensor, kind);
        let changes = |kind| goes_on(kind) && !self.has_entry(tensor, kind);
        let bytes = |kind| self.file.bytes(Slot::Memory(old, kind));
        let (to_floats, to_codes) = (
            [MemoryKind::Momentum, MemoryKind::SecondMoment].map(changes),
            [MemoryKind::MomentumCodes, MemoryKind::SecondMomentCodes].map(changes),
        );
        if to_floats.contains(&true) {
            let scales: Vec<u32> = bytemuck::pod_collect_to_vec(bytes(MemoryKind::Scales));
            let mut values = vec![0.0; elements];
            if to_floats[0] {
                decode_momentum(bytes(MemoryKind::MomentumCodes), &scales, &mut values);
                draft.bytes(Slot::Memory(tensor, MemoryKind::Momentum)).copy_from_slice(bytemuck::cast_slice(&values));
            }
            if to_floats[1] {
                decode_squares(bytes(MemoryKind::SecondMomentCodes), &scales, &mut values);
                let slot = draft.bytes(Slot::Memory(tensor, MemoryKind::SecondMoment));
                slot.copy_from_slice(bytemuck::cast_slice(&values));
            }
        }
        if to_codes.contains(&true) {
            let floats = |wanted: bool, kind| -> Vec<f32> {
                if wanted { bytemuck::pod_collect_to_vec(bytes(kind)) } else { Vec::new() }
            };
            let momentum = floats(to_codes[0], MemoryKind::Momentum);
            let squares = floats(to_codes[1], MemoryKind::SecondMoment);
            let mut codes = [momentum.len(), squares.len()].map(|length| vec![0; length]);
            let mut scales = vec![0; MemoryKind::Scales.entries(elements as u64) as usize];
            let [momentum_codes, squares_codes] = &mut codes;
            let mut encoded =
                Codes { momentum: momentum_codes, squares: squares_codes, scales: &mut scales, first_element: 0 };
            encoded.encode(0, &momentum, &squares, None);
            let [momentum_codes, squares_codes] = &codes;
            for (kind, bytes) in [
                (MemoryKind::MomentumCodes, momentum_codes.as_slice()),
                (MemoryKind::SecondMomentCodes, squares_codes),
                (MemoryKind::Scales, bytemuck::cast_slice(&scales)),
            ] {
                draft.bytes(Slot::Memory(tensor, kind)).copy_from_slice(bytes);
            }
        }
    }

    /// Converts the remainders of a tensor, whose number in the file is `old`, from 16 bits to 8 bits or the other way round.
    fn change_remainders(&self, tensor: usize, old: usize, draft: &mut Draft) {
        let kinds = [MemoryKind::Remainders, MemoryKind::RemainderCodes];
        let changes = |&kind: &MemoryKind| {
            self.plan.kernel_of(tensor).keeps(kind) && self.carries(tensor, kind) && !self.has_entry(tensor, kind)
        };
        let Some(kind) = kinds.into_iter().find(changes) else {
            return;
        };
        let [long, short] = kinds.map(|kind| self.file.bytes(Slot::Memory(old, kind)));
        let slot = draft.bytes(Slot::Memory(tensor, kind));
        let stored = self.file.bytes(Slot::Parameters(old));
        match self.plan.places[tensor].params {
            Element::F32 => {}
            Element::F16 => change_remainders::<f16>(kind, stored, long, short, slot),
            Element::Bf16 => change_remainders::<bf16>(kind, stored, long, short, slot),
        }
    }

    fn new_states(&mut self) -> Vec<GroupState> {
        let mut states: Vec<GroupState> = (0..self.sources.len()).map(|group| self.new_state(group)).collect();
        // Groups of a norm measure the momentum at one scale.
        let mut exponents = vec![i32::MIN; self.plan.scopes.len()];
        for (state, constants) in states.iter().zip(&self.plan.groups) {
            let exponent = &mut exponents[constants.scope as usize];
            *exponent = state.direction_exponent.max(*exponent);
        }
        for (state, constants) in states.iter_mut().zip(&self.plan.groups) {
            state.direction_exponent = exponents[constants.scope as usize];
        }
        states
    }

    fn new_state(&mut self, group: usize) -> GroupState {
        let Sources { origin, moments, norm, rate, first, base_iterates, .. } = self.sources[group];
        let constants = &self.plan.groups[group];
        let config = &self.plan.configs[group];
        let mut state = self.first_states[group];
        self.count_as_all(&mut state);
        state.left_out = self.left_out(group);
        if let Some(old) = norm.or(origin).or(moments) {
            state.direction_exponent = self.state(old, group).direction_exponent;
        }
        if let Some(old) = origin.map(|old| self.state(old, group)) {
            state.momentum_started = old.momentum_started;
            state.last_clip = old.last_clip;
            state.ln_control = old.ln_control;
            if config.schedule != Schedule::Constant {
                state.ln_schedule = old.ln_schedule;
            }
            if config.trust_ratio.is_some() {
                state.trust = old.trust;
                state.ln_trust = old.ln_trust;
                state.parameter_norm = old.parameter_norm;
            }
            if base_iterates {
                state.weight_sum = old.weight_sum;
            }
        }
        if let Some(old) = moments.map(|old| self.state(old, group)) {
            state.momentum_started = old.momentum_started;
            state.last_clip = old.last_clip;
            state.first_correction = old.first_correction;
            state.second_correction = old.second_correction;
        }
        if first {
            state.momentum_started = 0;
        }
        if let Some(old) = norm.map(|old| self.state(old, group)) {
            state.mean_ln_norm = old.mean_ln_norm;
            state.ln_norm_variance = old.ln_norm_variance;
            state.ln_norms = old.ln_norms;
            if rate {
                state.started = old.started;
                state.learning_rate = old.learning_rate;
                state.regime_rate = old.regime_rate;
                state.first_rate = old.first_rate;
                state.ln_first_rate = old.ln_first_rate;
                state.change = old.change;
                state.mean_square = old.mean_square;
                state.mean_norm = old.mean_norm;
                state.mean_steps = old.mean_steps;
                state.smoothing_power = old.smoothing_power;
                state.smoothed = old.smoothed;
                state.gradient_exponent = old.gradient_exponent;
                state.last_norm = old.last_norm;
                state.regime = old.regime;
            }
        }
        if constants.outlier_deviations <= 0.0 {
            (state.mean_ln_norm, state.ln_norm_variance, state.ln_norms) = (0.0, 0.0, 0);
        }
        state
    }

    /// Copies the counts that all groups share.
    fn count_as_all(&mut self, state: &mut GroupState) {
        let all = self.state(0, 0);
        state.steps_low = all.steps_low;
        state.steps_high = all.steps_high;
        state.record_slot = all.record_slot;
        state.skipped = all.skipped;
        state.skips_in_row = all.skips_in_row;
        state.halted = all.halted;
        state.last_nonfinite = all.last_nonfinite;
        state.last_first_nonfinite = self.moved_element(all.last_first_nonfinite);
        state.overflows_in_row = all.overflows_in_row;
        state.halt_overflow_key = match all.halt_overflow_key {
            0 => 0,
            key => NO_ELEMENT - self.moved_element(NO_ELEMENT - key),
        };
        let constants = &self.plan.groups[0];
        let has_scaler = self.plan.safeguards.loss_scaler.is_some();
        let had_scaler = self.file.about.settings.keys().any(|key| key.starts_with("loss_scaler."));
        if has_scaler && had_scaler {
            let (least, most) = (constants.loss_scale_least, constants.loss_scale_most);
            state.loss_scale_exponent = all.loss_scale_exponent.clamp(least, most);
            state.good_steps = all.good_steps.min(constants.growth_interval - 1);
        }
    }

    /// Returns the number here of an element of the file, or [`NO_ELEMENT`] if the element is not here.
    fn moved_element(&self, element: u32) -> u32 {
        if element >= LOSS_ELEMENT || self.plan.shard.is_some() {
            return element;
        }
        let mut first = 0u64;
        for (index, tensor) in self.file.about.tensors.iter().enumerate() {
            let offset = u64::from(element).saturating_sub(first);
            if u64::from(element) >= first && offset < tensor.elements {
                let here = self.tensors.iter().position(|&old| old == Some(index));
                return here.map_or(NO_ELEMENT, |here| (self.plan.tensors[here].first_element + offset) as u32);
            }
            first = first.saturating_add(tensor.elements);
        }
        element
    }

    fn new_update(&mut self, group: usize) -> Update {
        let Sources { origin, base_iterates, averages, .. } = self.sources[group];
        let mut update = match origin {
            Some(old) => self.update(old),
            None => <Update as bytemuck::Zeroable>::zeroed(),
        };
        update.average_weight = match averages {
            Average::GoesOn => update.average_weight,
            Average::Later if base_iterates => update.average_weight,
            Average::Later => 0.0,
            Average::FromParameters => 1.0,
        };
        update
    }

    fn new_controls(&self) -> Vec<GroupControls> {
        let mut rows = self.file.about.has(Table::Controls).then(|| Rows::new(self.file, Table::Controls));
        let kernel = Kernel::all()[0];
        let micro_batches_agree = about::is_same(&self.file.about.settings, &self.here.settings, about::MICRO_BATCHES);
        let groups = self.plan.groups.iter().enumerate();
        let new = |(group, constants): (usize, &crate::layout::GroupConstants)| {
            let built = constants.controls;
            let (Some(rows), Some(old)) = (&mut rows, self.sources[group].origin) else {
                return built;
            };
            let mut controls = rows.row(old, built, [kernel, kernel]);
            if !self.is_same(old, group, "weight_decay") {
                controls.weight_decay = built.weight_decay;
            }
            let couples = constants.flags & (group_flags::RAW_NORM_CLIP | group_flags::COUPLES_DECAY);
            let has_no_norm = couples == group_flags::COUPLES_DECAY || constants.flags & group_flags::NOT_MEASURED != 0;
            if !self.is_same(old, group, "clip_norm") || has_no_norm {
                controls.clip_norm = built.clip_norm;
            }
            controls.gradient_factor = match micro_batches_agree {
                true => controls.gradient_factor.abs() * constants.sign,
                false => built.gradient_factor,
            };
            controls.present = built.present;
            controls
        };
        groups.map(new).collect()
    }

    fn new_records(&self) -> Vec<RawTensorRecord> {
        let mut rows = Rows::new(self.file, Table::TensorRecords);
        let kernel = Kernel::all()[0];
        let recorded = self.file.recorded_tensors();
        let places: HashMap<usize, usize> =
            recorded.into_iter().enumerate().map(|(row, tensor)| (tensor, row)).collect();
        let units = self.plan.units.iter().filter(|unit| unit.tensor != NO_TENSOR);
        let new = |unit: &crate::layout::StepUnit| {
            let old = self.tensors[unit.tensor as usize].and_then(|old| places.get(&old));
            let row = |&row: &usize| {
                let record = rows.row(row, RawTensorRecord::default(), [kernel, kernel]);
                RawTensorRecord { tensor: unit.tensor, ..record }
            };
            old.map_or_else(RawTensorRecord::default, row)
        };
        units.map(new).collect()
    }
}
