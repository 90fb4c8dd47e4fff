//! Tests of `Averaging::ScheduleFree`: z, x and y follow the paper's formula for every rule without momentum, under regimes of every kind, wherever
//! tensors lie. A skipped step leaves no trace, and a rescaled loss changes no bit. A swap, a copy and a checkpoint give x, and a second swap
//! restores the parameters. (`checkpoint`, `rebind`, `shards`, `halves` and `errors` test resumed runs, moved buffers, ranks, 16 bits and refusals.)

mod alignment;
mod evaluation;
mod formula;
mod invariance;

use wgpu_optim::{Averaging, Regime, Rule, Schedule, WeightDecay};
use wgpu_optim_conformance::run::Spec;
use wgpu_optim_conformance::tensors;

fn rules() -> [Rule; 3] {
    [Rule::sgd(), Rule::sign_sgd(), Rule::adamw_without_momentum()]
}

fn free(rule: Rule, regime: Regime, tensors: Vec<Vec<f32>>) -> Spec {
    Spec { averaging: Averaging::ScheduleFree, ..Spec::new(rule, regime, tensors) }
}

/// Returns every rule without momentum under Seesaw.
pub fn every_rule(lengths: &[usize]) -> Vec<Spec> {
    let spec = |rule: Rule| free(rule, Regime::seesaw(), tensors(14, lengths)).named(rule.name());
    rules().map(spec).to_vec()
}

/// Returns every rule without momentum, with each kind of decay, under regimes with every kind of state.
fn every_case(lengths: &[usize]) -> Vec<Spec> {
    let warmup = Schedule::WarmupCosine { warmup: 3, steps: 30, last: 0.1 };
    let mut specs = Vec::new();
    for rule in rules() {
        for (decay, regime, schedule) in [
            (WeightDecay::Coupled(0.0), Regime::fixed(0.05), Schedule::Constant),
            (WeightDecay::Decoupled(0.1), Regime::fixed(0.05), warmup.clone()),
            (WeightDecay::Coupled(0.1), Regime::seesaw(), Schedule::Constant),
            (WeightDecay::Decoupled(0.1), Regime::seesaw(), Schedule::Constant),
            (WeightDecay::Coupled(0.0), Regime::norm_ratio(), Schedule::Constant),
            (WeightDecay::Coupled(0.0), Regime::dog(), Schedule::Constant),
            (WeightDecay::Coupled(0.0), Regime::adgd(), Schedule::Constant),
        ] {
            let tensors = tensors(specs.len() as u64, lengths);
            let spec = free(rule, regime, tensors).named(format!("{}", specs.len()));
            specs.push(Spec { decay, schedule, ..spec });
        }
    }
    specs
}

/// Returns three cases for each rule: a fixed rate with a schedule and decoupled decay, Seesaw, and a regime that keeps the first parameters beside
/// z.
pub fn few_cases(lengths: &[usize]) -> Vec<Spec> {
    let cases = every_case(lengths).into_iter().enumerate();
    let few = cases.filter(|(case, _)| [1, 3, 5].contains(&(case % 8)));
    few.map(|(_, spec)| spec).collect()
}

/// Returns the gradients of a quadratic with noise, at the parameters of the step.
fn gradients(params: &[Vec<f32>], step: u64) -> Vec<Vec<f32>> {
    let lengths: Vec<usize> = params.iter().map(Vec::len).collect();
    let mut grads = tensors(100 + step, &lengths);
    let params = params.iter().flatten();
    grads.iter_mut().flatten().zip(params).for_each(|(g, w)| *g = w - 0.5 + 0.2 * *g);
    grads
}

/// Returns the tensors of a group, concatenated.
fn of_group(specs: &[Spec], group: usize, tensors: &[Vec<f32>]) -> Vec<f32> {
    let before: usize = specs[..group].iter().map(|spec| spec.tensors.len()).sum();
    tensors[before..][..specs[group].tensors.len()].concat()
}

const STEPS: u64 = 40;
