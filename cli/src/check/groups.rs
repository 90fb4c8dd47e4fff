//! What a group can be told: decay, clip, maximize, schedules, a rate per tensor, a shared norm; all side by side in one optimizer.

use wgpu_optim::{Regime, Rule, Schedule, WeightDecay};
use wgpu_optim_conformance::spec::Spec;

use super::case::{Case, Subject};
use super::scenario::{Scenario, with_lengths};

const STEPS: usize = 8;

pub fn cases(_: &Subject) -> Vec<Box<dyn Case>> {
    let rules = [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd(), Rule::adamw()];
    rules.into_iter().map(|rule| Scenario::new("groups", STEPS, groups(rule)).boxed()).collect()
}

fn groups(rule: Rule) -> Vec<Spec> {
    let of = |regime| Spec::new(rule, regime, Vec::new());
    let seesaw = of(Regime::seesaw());
    let mut groups: Vec<(&str, Spec)> = Vec::new();
    for (name, clipped, decay) in [
        ("coupled", "coupled, clipped", WeightDecay::Coupled(0.1)),
        ("decoupled", "decoupled, clipped", WeightDecay::Decoupled(0.1)),
    ] {
        for (name, clip) in [(name, f32::INFINITY), (clipped, 0.5)] {
            groups.push((name, Spec { decay, clip, ..seesaw.clone() }));
        }
    }
    groups.push(("climbing", Spec { maximize: true, ..seesaw.clone() }));
    for (name, schedule) in schedules() {
        groups.push((name, Spec { schedule, ..of(Regime::fixed(0.01)) }));
    }
    groups.push(("scheduled Seesaw", Spec { schedule: schedules()[0].1, ..seesaw.clone() }));
    groups.push(("per tensor", Spec { per_tensor: true, ..seesaw.clone() }));
    for name in ["first of two that share", "second of two that share"] {
        groups.push((name, seesaw.clone().sharing("both")));
    }
    groups.into_iter().map(|(name, spec)| with_lengths(spec.named(name), &[130, 5, 1001])).collect()
}

fn schedules() -> [(&'static str, Schedule); 4] {
    [
        ("warm-up and cosine", Schedule::WarmupCosine { warmup: 2, steps: 6, last: 0.1 }),
        ("inverse square root", Schedule::InverseSqrt { warmup: 3 }),
        ("steps", Schedule::Step { every: 2, factor: 0.5 }),
        ("one cycle", Schedule::OneCycle { rise: 3, steps: 7, first: 0.04, last: 0.01 }),
    ]
}
