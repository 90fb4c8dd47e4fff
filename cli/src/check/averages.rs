//! Averages of the iterates, that start at the first step and after it, of every kind; and schedule-free training.

use wgpu_optim::{Averaging, Regime, Rule};
use wgpu_optim_conformance::spec::Spec;

use super::case::{Cases, Subject};
use super::scenario::{Scenario, group};

const STEPS: usize = 8;

const AVERAGINGS: [Averaging; 4] = [
    Averaging::Running { start: 0 },
    Averaging::Exponential { decay: 0.75, start: 2 },
    Averaging::PolynomialDecay { eta: 8.0, start: 1 },
    Averaging::Off,
];

pub fn cases(_: &Subject) -> Cases {
    let averaged = |averaging, rule, name| Spec { averaging, ..group(name, rule, Regime::seesaw(), &[130, 5, 10_007]) };
    let rules = [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd(), Rule::adamw()];
    let mut specs: Vec<Vec<Spec>> =
        rules.map(|rule| AVERAGINGS.map(|averaging| averaged(averaging, rule, averaging.name())).into()).into();
    // Which takes part in the training, and is for rules without momentum.
    let rules = [Rule::sgd(), Rule::sign_sgd(), Rule::adamw_without_momentum()];
    specs.push(rules.map(|rule| averaged(Averaging::ScheduleFree, rule, rule.name())).into());
    specs.into_iter().map(|specs| Scenario::new("averages", STEPS, specs).boxed()).collect()
}
