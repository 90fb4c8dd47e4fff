//! Cases that are specified once and run on every path: groups with their settings and initial parameters, and the
//! placement of their tensors.

use crate::oracle::Oracle;
use crate::stored::rounded;
use wgpu_optim::internals::layout::GroupState;
use wgpu_optim::{
    AutoSgd, Averaging, DoG, DoWG, Element, Group, Mechanic, Prodigy, RateFactors, Regime, Rounding, Rule, Schedule,
    State, TrustRatio, WeightDecay,
};

/// One group: its settings, and its tensors' parameters before the first step.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Name of the group.
    pub name: String,
    /// Update rule.
    pub rule: Rule,
    /// Regime.
    pub regime: Regime,
    /// Weight decay.
    pub decay: WeightDecay,
    /// Clip by norm, infinite for none.
    pub clip: f32,
    /// True if the group maximizes.
    pub maximize: bool,
    /// Name of the norm that the group shares with other groups, if any.
    pub norm: Option<String>,
    /// Schedule.
    pub schedule: Schedule,
    /// Averaging.
    pub averaging: Averaging,
    /// Coefficient of the trust ratio, if the group has one.
    pub trust: Option<f32>,
    /// Smallest value of the trust ratio.
    pub trust_least: Option<f32>,
    /// True if the trust ratio only lowers the rate.
    pub trust_caps: bool,
    /// Factors of the rate for rows or columns.
    pub rate_factors: Option<RateFactors>,
    /// True if rows without a gradient are skipped.
    pub lazy_rows: bool,
    /// True if the records include telemetry.
    pub telemetry: bool,
    /// True if each tensor has its own learning rate.
    pub per_tensor: bool,
    /// Element type of the parameters.
    pub params: Element,
    /// Element type of the gradients.
    pub grads: Element,
    /// Rounding of 16-bit parameters.
    pub rounding: Rounding,
    /// Storage of the rule's memory.
    pub state: State,
    /// Initial parameters in f32, rounded to the element type of the parameters.
    pub tensors: Vec<Vec<f32>>,
    /// Dimensions of the tensors. Missing ones are given by [`shape_for`] the rule.
    pub shapes: Vec<Vec<usize>>,
}

/// Returns the default shape of a tensor: as square as possible for rules that need matrices, one dimension for other
/// rules that work on whole tensors, and no dimensions otherwise.
pub fn shape_for(rule: &Rule, elements: usize) -> Vec<usize> {
    if !rule.needs_matrices() {
        return if rule.owns_passes() { vec![elements] } else { Vec::new() };
    }
    let fits = |rows: &usize| elements.is_multiple_of(*rows);
    let rows = (1..=elements.isqrt()).rev().find(fits).unwrap_or(1);
    vec![rows, elements / rows]
}

impl Spec {
    /// Returns an f32 group with default settings, and with the averaging that its regime requires.
    pub fn new(rule: Rule, regime: Regime, tensors: Vec<Vec<f32>>) -> Self {
        Spec {
            name: "group".to_owned(),
            rule,
            regime,
            decay: WeightDecay::Coupled(0.0),
            clip: f32::INFINITY,
            maximize: false,
            norm: None,
            schedule: Schedule::Constant,
            averaging: if regime.needs_schedule_free() { Averaging::ScheduleFree } else { Averaging::Off },
            trust: None,
            trust_least: None,
            trust_caps: false,
            rate_factors: None,
            lazy_rows: false,
            telemetry: false,
            per_tensor: false,
            params: Element::F32,
            grads: Element::F32,
            rounding: Rounding::Masters,
            state: State::F32,
            tensors,
            shapes: Vec::new(),
        }
    }

    /// Returns the group with this name.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Returns the group with a norm that it shares with other groups.
    pub fn sharing(mut self, norm: &str) -> Self {
        self.norm = Some(norm.to_owned());
        self
    }

    /// Returns the group with other element types. The parameters are rounded.
    pub fn stored(mut self, params: Element, grads: Element, rounding: Rounding) -> Self {
        for tensor in &mut self.tensors {
            *tensor = rounded(params, tensor);
        }
        (self.params, self.grads, self.rounding) = (params, grads, rounding);
        self
    }

    /// Returns the group without its tensors.
    pub fn group<T>(&self) -> Group<T> {
        let group = Group::new(self.name.clone())
            .rule(self.rule)
            .regime(self.regime)
            .clip_norm(self.clip)
            .maximize(self.maximize)
            .schedule(self.schedule.clone())
            .averaging(self.averaging)
            .rounding(self.rounding)
            .state(self.state)
            .telemetry(self.telemetry)
            .lazy_rows(self.lazy_rows && self.has_rows());
        let group = match self.factors() {
            Some(factors) => group.rate_factors(factors.clone()),
            None => group,
        };
        let group = match self.trust {
            Some(coefficient) => {
                group.trust_ratio(TrustRatio { coefficient, least: self.trust_least, cap: self.trust_caps })
            }
            None => group,
        };
        let group = if self.per_tensor { group.per_tensor() } else { group };
        let group = match self.decay {
            WeightDecay::Coupled(lambda) => group.weight_decay(lambda),
            WeightDecay::Decoupled(lambda) => group.decoupled_weight_decay(lambda),
        };
        match &self.norm {
            Some(norm) => group.share_norm(norm.clone()),
            None => group,
        }
    }

    /// Returns the dimensions of a tensor.
    pub fn shape(&self, index: usize) -> Vec<usize> {
        let elements = self.tensors[index].len();
        // Shrinking a case cuts its tensors, so that a given shape may no longer fit.
        let given = self.shapes.get(index).filter(|shape| shape.iter().product::<usize>() == elements);
        given.cloned().unwrap_or_else(|| shape_for(&self.rule, elements))
    }

    /// Returns true if every tensor has rows. Tensors of a shrunk case may have none.
    fn has_rows(&self) -> bool {
        self.all_shapes().iter().all(|shape| shape.len() >= 2)
    }

    /// Returns the factors of rows or columns, if they match the tensors.
    fn factors(&self) -> Option<&RateFactors> {
        if !self.has_rows() {
            return None;
        }
        let lengths = |of: fn(&[usize]) -> usize| self.all_shapes().iter().map(|shape| of(shape)).collect::<Vec<_>>();
        let (factors, lengths) = match self.rate_factors.as_ref()? {
            RateFactors::Rows(factors) => (factors, lengths(|shape| shape[0])),
            RateFactors::Columns(factors) => (factors, lengths(|shape| shape[1..].iter().product())),
            _ => return None,
        };
        let fits = lengths.iter().all(|&length| length == factors.len());
        self.rate_factors.as_ref().filter(|_| fits)
    }

    /// Returns the dimensions of all tensors.
    pub fn all_shapes(&self) -> Vec<Vec<usize>> {
        (0..self.tensors.len()).map(|index| self.shape(index)).collect()
    }

    /// Returns the reference of the group, with its tensors concatenated.
    pub fn oracle(&self) -> Oracle {
        let mut oracle = Oracle::new(self.rule, self.regime, &self.tensors.concat());
        oracle.shapes = self.all_shapes();
        oracle.decay = self.decay;
        oracle.clip = f64::from(self.clip);
        oracle.maximize = self.maximize;
        oracle.schedule = self.schedule.clone();
        oracle.averaging = self.averaging;
        for index in 0..self.tensors.len() {
            let shape = self.shape(index);
            let columns: usize = shape.iter().skip(1).product();
            let elements = 0..self.tensors[index].len();
            match self.factors() {
                Some(RateFactors::Rows(factors)) => {
                    oracle.rate_factors.extend(elements.clone().map(|i| f64::from(factors[i / columns])));
                }
                Some(RateFactors::Columns(factors)) => {
                    oracle.rate_factors.extend(elements.clone().map(|i| f64::from(factors[i % columns])));
                }
                _ => {}
            }
            if self.lazy_rows && self.has_rows() {
                oracle.lazy_columns.extend(elements.map(|_| columns));
            }
        }
        oracle.trust = self.trust.map(f64::from);
        oracle.trust_least = self.trust_least.map(f64::from);
        oracle.trust_caps = self.trust_caps;
        oracle
    }

    /// Returns the name of a tensor.
    pub fn tensor_name(&self, index: usize) -> String {
        format!("{}/{index}", self.name)
    }
}

/// DoG with an initial distance whose steps are not lost in the rounding of the parameters. Those of the default 1e-6
/// are.
pub const DOG: Regime = Regime::DoG(DoG { initial_distance: 1e-2 });

/// Returns every regime, with constants that have an effect within a few steps.
pub fn regimes() -> impl Iterator<Item = Regime> {
    Regime::all().into_iter().map(|regime| match regime {
        Regime::DoG(_) => DOG,
        Regime::DoWG(_) => Regime::DoWG(DoWG { initial_distance: 1e-2 }),
        // In f32 an estimate of 1e-6 is lost in rounding, as for DoG.
        Regime::Prodigy(_) => Regime::Prodigy(Prodigy { initial_estimate: 1e-2, ..Prodigy::default() }),
        // The scale grows within a few steps.
        Regime::Mechanic(_) => Regime::Mechanic(Mechanic { initial_scale: 1e-2, ..Mechanic::default() }),
        // A stream wins after five rounds.
        Regime::AutoSgd(_) => Regime::AutoSgd(AutoSgd { rounds: 4, ..AutoSgd::default() }),
        regime => regime,
    })
}

/// Placement of a tensor on the device: buffer and first element of its parameters and of its gradients. All tensors in
/// a buffer have the same element type.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Buffer and first element of the parameters.
    pub params: (usize, usize),
    /// Buffer and first element of the gradients.
    pub grads: (usize, usize),
}

/// Places tensors one after the other in one buffer of parameters and one of gradients, from `start` and `gap` elements
/// apart.
pub fn packed(specs: &[Spec], start: usize, gap: usize) -> Vec<Place> {
    let mut at = start;
    specs
        .iter()
        .flat_map(|spec| spec.tensors.iter().map(move |tensor| (spec, tensor.len())))
        .map(|(spec, len)| {
            // Two 16-bit elements share a word.
            let words = [spec.params, spec.grads] == [Element::F32; 2];
            at = at.next_multiple_of(if words { 1 } else { 2 });
            let place = Place { params: (0, at), grads: (1, at) };
            at += len + gap;
            place
        })
        .collect()
}

/// Places each tensor in two buffers of its own.
pub fn separate(specs: &[Spec]) -> Vec<Place> {
    (0..lengths(specs).count()).map(|i| Place { params: (2 * i, 0), grads: (2 * i + 1, 0) }).collect()
}

/// Returns the lengths of all tensors.
pub fn lengths(specs: &[Spec]) -> impl Iterator<Item = usize> + '_ {
    specs.iter().flat_map(|spec| spec.tensors.iter().map(Vec::len))
}

/// Returns the states without the step counts, which are all that a skipped step may change.
pub fn without_counts(states: &[GroupState]) -> Vec<GroupState> {
    states
        .iter()
        .map(|&state| GroupState {
            steps_low: 0,
            steps_high: 0,
            record_slot: 0,
            skipped: 0,
            skips_in_row: 0,
            last_nonfinite: 0,
            last_first_nonfinite: 0,
            ..state
        })
        .collect()
}
