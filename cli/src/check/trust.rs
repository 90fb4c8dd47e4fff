//! Trust ratios, with what passes 4 and 5 measure of the step.

use wgpu_optim::{Regime, Rule, WeightDecay};
use wgpu_optim_conformance::spec::Spec;

use super::case::{Case, Subject};
use super::scenario::{Scenario, with_lengths};

const STEPS: usize = 8;

pub fn cases(_: &Subject) -> Vec<Box<dyn Case>> {
    let rules = [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd(), Rule::adamw()];
    rules
        .into_iter()
        .map(|rule| {
            let specs = [Regime::seesaw(), Regime::fixed(0.5)]
                .into_iter()
                .map(|regime| {
                    let spec = Spec {
                        trust: Some(0.02),
                        telemetry: true,
                        decay: WeightDecay::Coupled(0.01),
                        ..Spec::new(rule, regime, Vec::new())
                    };
                    with_lengths(spec.named(regime.name()), &[130, 5, 10_007])
                })
                .collect();
            Scenario::new("trust ratios", STEPS, specs).boxed()
        })
        .collect()
}
