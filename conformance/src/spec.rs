//! A case stated once, to be run on every path: groups with their settings and initial parameters, and where the tensors lie.

use crate::oracle::Oracle;
use crate::stored::rounded;
use wgpu_optim::internals::layout::GroupState;
use wgpu_optim::{
    AutoSgd, Averaging, DoG, DoWG, Element, Group, Regime, Rounding, Rule, Schedule, State, TrustRatio, WeightDecay,
};

/// One group: everything a caller can say of it, and its tensors' parameters before the first step.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// Its update rule.
    pub rule: Rule,
    /// Its regime.
    pub regime: Regime,
    /// Its weight decay.
    pub decay: WeightDecay,
    /// Its clip by norm; infinite for none.
    pub clip: f32,
    /// Whether it climbs.
    pub maximize: bool,
    /// The name of the norm that it shares with other groups, if any.
    pub norm: Option<String>,
    /// Its schedule.
    pub schedule: Schedule,
    /// Its averaging.
    pub averaging: Averaging,
    /// The coefficient of its trust ratio, if it has one.
    pub trust: Option<f32>,
    /// Whether its records have the telemetry.
    pub telemetry: bool,
    /// Whether each tensor has a rate of its own.
    pub per_tensor: bool,
    /// What its parameters are stored as.
    pub params: Element,
    /// What its gradients are stored as.
    pub grads: Element,
    /// How parameters of 16 bits take a step.
    pub rounding: Rounding,
    /// How the rule's memory is kept.
    pub state: State,
    /// In f32, but numbers that the parameters can be stored as.
    pub tensors: Vec<Vec<f32>>,
    /// The lengths of the tensors' dimensions; those that are missing are [`shape_for`] the rule.
    pub shapes: Vec<Vec<usize>>,
}

/// A shape for a tensor of which nothing is said: as near to a square as can be for rules that need matrices, else none.
pub fn shape_for(rule: &Rule, elements: usize) -> Vec<usize> {
    if !rule.needs_matrices() {
        return Vec::new();
    }
    let fits = |rows: &usize| elements.is_multiple_of(*rows);
    let rows = (1..=elements.isqrt()).rev().find(fits).unwrap_or(1);
    vec![rows, elements / rows]
}

impl Spec {
    /// A group of f32 with nothing said of it but this, and the averaging that its regime requires.
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

    /// With this name.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// With a norm that it shares with the others of this name.
    pub fn sharing(mut self, norm: &str) -> Self {
        self.norm = Some(norm.to_owned());
        self
    }

    /// With parameters and gradients in other elements; the parameters are rounded.
    pub fn stored(mut self, params: Element, grads: Element, rounding: Rounding) -> Self {
        for tensor in &mut self.tensors {
            *tensor = rounded(params, tensor);
        }
        (self.params, self.grads, self.rounding) = (params, grads, rounding);
        self
    }

    /// The group, without its tensors.
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
            .telemetry(self.telemetry);
        let group = match self.trust {
            Some(coefficient) => group.trust_ratio(TrustRatio { coefficient }),
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

    /// The lengths of a tensor's dimensions.
    pub fn shape(&self, index: usize) -> Vec<usize> {
        let elements = self.tensors[index].len();
        // A case that is made smaller cuts tensors.
        let given = self.shapes.get(index).filter(|shape| shape.iter().product::<usize>() == elements);
        given.cloned().unwrap_or_else(|| shape_for(&self.rule, elements))
    }

    /// The lengths of all tensors' dimensions.
    pub fn all_shapes(&self) -> Vec<Vec<usize>> {
        (0..self.tensors.len()).map(|index| self.shape(index)).collect()
    }

    /// The right answer for it, with its tensors end to end.
    pub fn oracle(&self) -> Oracle {
        let mut oracle = Oracle::new(self.rule, self.regime, &self.tensors.concat());
        oracle.shapes = self.all_shapes();
        oracle.decay = self.decay;
        oracle.clip = f64::from(self.clip);
        oracle.maximize = self.maximize;
        oracle.schedule = self.schedule.clone();
        oracle.averaging = self.averaging;
        oracle.trust = self.trust.map(f64::from);
        oracle
    }

    /// The name of one of its tensors.
    pub fn tensor_name(&self, index: usize) -> String {
        format!("{}/{index}", self.name)
    }
}

/// DoG from a distance whose steps are not lost in the rounding of the parameters, as those of the usual 1e-6 are.
pub const DOG: Regime = Regime::DoG(DoG { initial_distance: 1e-2 });

/// Every regime, with constants that show something in a few steps.
pub fn regimes() -> impl Iterator<Item = Regime> {
    Regime::all().into_iter().map(|regime| match regime {
        Regime::DoG(_) => DOG,
        Regime::DoWG(_) => Regime::DoWG(DoWG { initial_distance: 1e-2 }),
        // Some stream wins after five rounds.
        Regime::AutoSgd(_) => Regime::AutoSgd(AutoSgd { rounds: 4, ..AutoSgd::default() }),
        regime => regime,
    })
}

/// Where a tensor lies on the device: buffer and first element, of its parameters and of its gradients. All of a buffer are stored alike.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Of the parameters.
    pub params: (usize, usize),
    /// Of the gradients.
    pub grads: (usize, usize),
}

/// Tensors one after the other in an arena of parameters and an arena of gradients, `gap` elements apart, from `start`.
pub fn packed(specs: &[Spec], start: usize, gap: usize) -> Vec<Place> {
    let mut at = start;
    specs
        .iter()
        .flat_map(|spec| spec.tensors.iter().map(move |tensor| (spec, tensor.len())))
        .map(|(spec, len)| {
            // Two elements of 16 bits share a word.
            let words = [spec.params, spec.grads] == [Element::F32; 2];
            at = at.next_multiple_of(if words { 1 } else { 2 });
            let place = Place { params: (0, at), grads: (1, at) };
            at += len + gap;
            place
        })
        .collect()
}

/// Each tensor in two buffers of its own.
pub fn separate(specs: &[Spec]) -> Vec<Place> {
    (0..lengths(specs).count()).map(|i| Place { params: (2 * i, 0), grads: (2 * i + 1, 0) }).collect()
}

/// The lengths of all tensors.
pub fn lengths(specs: &[Spec]) -> impl Iterator<Item = usize> + '_ {
    specs.iter().flat_map(|spec| spec.tensors.iter().map(Vec::len))
}

/// What a skipped step may change in a state: what is counted of steps, and nothing else.
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
