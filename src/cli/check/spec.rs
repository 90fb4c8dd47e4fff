//! A case stated once, to be run on every path: groups with their settings and initial parameters, and where the tensors lie.
#![allow(dead_code, reason = "check and each test file use their own part")]

use super::oracle::Oracle;
use super::stored::rounded;
use wgpu_optim::layout::GroupState;
use wgpu_optim::{
    Averaging, Element, Group, Regime, Rounding, Rule, Schedule, TrustRatio, WeightDecay,
};

/// One group: everything a caller can say of it, and its tensors' parameters before the first step.
#[derive(Debug, Clone)]
pub struct Spec {
    pub name: String,
    pub rule: Rule,
    pub regime: Regime,
    pub decay: WeightDecay,
    pub clip: f32,
    pub maximize: bool,
    pub norm: Option<String>,
    pub schedule: Schedule,
    pub averaging: Averaging,
    pub trust: Option<f32>,
    pub telemetry: bool,
    pub per_tensor: bool,
    /// What parameters and gradients are stored as.
    pub params: Element,
    pub grads: Element,
    pub rounding: Rounding,
    /// In f32, but numbers that the parameters can be stored as.
    pub tensors: Vec<Vec<f32>>,
}

impl Spec {
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
            averaging: Averaging::Off,
            trust: None,
            telemetry: false,
            per_tensor: false,
            params: Element::F32,
            grads: Element::F32,
            rounding: Rounding::Masters,
            tensors,
        }
    }

    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

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

    pub fn group<T>(&self) -> Group<T> {
        let group = Group::new(self.name.clone())
            .rule(self.rule)
            .regime(self.regime)
            .clip_norm(self.clip)
            .maximize(self.maximize)
            .schedule(self.schedule)
            .averaging(self.averaging)
            .rounding(self.rounding)
            .telemetry(self.telemetry);
        let group = match self.trust {
            Some(coefficient) => group.trust_ratio(TrustRatio { coefficient }),
            None => group,
        };
        let group = if self.per_tensor {
            group.per_tensor()
        } else {
            group
        };
        let group = match self.decay {
            WeightDecay::Coupled(lambda) => group.weight_decay(lambda),
            WeightDecay::Decoupled(lambda) => group.decoupled_weight_decay(lambda),
        };
        match &self.norm {
            Some(norm) => group.share_norm(norm.clone()),
            None => group,
        }
    }

    /// The right answer for it, with its tensors end to end.
    pub fn oracle(&self) -> Oracle {
        let mut oracle = Oracle::new(self.rule, self.regime, &self.tensors.concat());
        oracle.decay = self.decay;
        oracle.clip = f64::from(self.clip);
        oracle.maximize = self.maximize;
        oracle.schedule = self.schedule;
        oracle.averaging = self.averaging;
        oracle.trust = self.trust.map(f64::from);
        oracle
    }

    pub fn tensor_name(&self, index: usize) -> String {
        format!("{}/{index}", self.name)
    }
}

/// Where a tensor lies on the device: buffer and first element, of its parameters and of its gradients. All of a buffer are stored alike.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub params: (usize, usize),
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
            let place = Place {
                params: (0, at),
                grads: (1, at),
            };
            at += len + gap;
            place
        })
        .collect()
}

/// Each tensor in two buffers of its own.
pub fn separate(specs: &[Spec]) -> Vec<Place> {
    (0..lengths(specs).count())
        .map(|i| Place {
            params: (2 * i, 0),
            grads: (2 * i + 1, 0),
        })
        .collect()
}

pub fn lengths(specs: &[Spec]) -> impl Iterator<Item = usize> + '_ {
    specs
        .iter()
        .flat_map(|spec| spec.tensors.iter().map(Vec::len))
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
