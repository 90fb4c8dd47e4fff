//! Averages of the iterates, that start at the first step and after it, of every kind; and schedule-free training.

use wgpu_optim::{Averaging, Regime, Rule};
use wgpu_optim_conformance::spec::Spec;

use super::case::{Case, Subject};
use super::scenario::{Scenario, with_lengths};

const STEPS: usize = 8;

pub fn cases(_: &Subject) -> Vec<Box<dyn Case>> {
    let mut cases = Vec::new();
    for rule in [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd(), Rule::adamw()] {
        let specs = averagings()
            .into_iter()
            .map(|averaging| {
                let spec = Spec { averaging, ..Spec::new(rule, Regime::seesaw(), Vec::new()) };
                with_lengths(spec.named(averaging.name()), &[130, 5, 10_007])
            })
            .collect();
        cases.push(Scenario::new("averages", STEPS, specs).boxed());
    }
    // Which takes part in the training, and is for rules without momentum.
    let specs = [Rule::sgd(), Rule::sign_sgd(), Rule::adamw_without_momentum()]
        .into_iter()
        .map(|rule| {
            let spec = Spec { averaging: Averaging::ScheduleFree, ..Spec::new(rule, Regime::seesaw(), Vec::new()) };
            with_lengths(spec.named(rule.name()), &[130, 5, 10_007])
        })
        .collect();
    cases.push(Scenario::new("averages", STEPS, specs).boxed());
    cases
}

fn averagings() -> [Averaging; 4] {
    [
        Averaging::Running { start: 0 },
        Averaging::Exponential { decay: 0.75, start: 2 },
        Averaging::PolynomialDecay { eta: 8.0, start: 1 },
        Averaging::Off,
    ]
}
