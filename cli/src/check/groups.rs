//! What a group can be told: decay, clip, maximize, schedules, a rate per tensor, a shared norm; all side by side in one optimizer.

use wgpu_optim::{Regime, Rule, Schedule, WeightDecay};
use wgpu_optim_conformance::spec::Spec;

use super::case::{Cases, Subject};
use super::scenario::{Scenario, group};

const STEPS: usize = 8;

const SCHEDULES: [(&str, Schedule); 4] = [
    ("warm-up and cosine", Schedule::WarmupCosine { warmup: 2, steps: 6, last: 0.1 }),
    ("inverse square root", Schedule::InverseSqrt { warmup: 3 }),
    ("steps", Schedule::Step { every: 2, factor: 0.5 }),
    ("one cycle", Schedule::OneCycle { rise: 3, steps: 7, first: 0.04, last: 0.01 }),
];

pub fn cases(_: &Subject) -> Cases {
    let rules = [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd(), Rule::adamw()];
    rules.into_iter().map(|rule| Scenario::new("groups", STEPS, groups(rule)).boxed()).collect()
}

fn groups(rule: Rule) -> Vec<Spec> {
    let of = |name, regime| group(name, rule, regime, &[130, 5, 1001]);
    let seesaw = |name| of(name, Regime::seesaw());
    let mut groups = Vec::new();
    for (name, decay, clip) in [
        ("coupled", WeightDecay::Coupled(0.1), f32::INFINITY),
        ("coupled, clipped", WeightDecay::Coupled(0.1), 0.5),
        ("decoupled", WeightDecay::Decoupled(0.1), f32::INFINITY),
        ("decoupled, clipped", WeightDecay::Decoupled(0.1), 0.5),
    ] {
        groups.push(Spec { decay, clip, ..seesaw(name) });
    }
    groups.push(Spec { maximize: true, ..seesaw("climbing") });
    groups.extend(SCHEDULES.map(|(name, schedule)| Spec { schedule, ..of(name, Regime::fixed(0.01)) }));
    groups.push(Spec { schedule: SCHEDULES[0].1, ..seesaw("scheduled Seesaw") });
    groups.push(Spec { per_tensor: true, ..seesaw("per tensor") });
    groups.extend(["first of two that share", "second of two that share"].map(|name| seesaw(name).sharing("both")));
    groups
}
