//! Tests of the properties P1 to P6 that the paper claims for explainable learning rates (arXiv:2508.13639, abstract), for the regimes of this crate.
//! They are followed by the exact invariances, clamps and sums that the specification adds.
//!
//! Besides the seeded faults below, this fault was introduced by hand once and made a test fail: a clamp at 2.302 instead of ln 10.

mod claims;
mod cost;
mod invariances;
mod limits;
mod seesaw;

use wgpu_optim::{Record, Regime, Rule, Seesaw, Sgdm};
use wgpu_optim_conformance::run::{Run, Spec};

fn three_rules() -> [Rule; 3] {
    [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd()]
}

fn every_rule() -> Vec<Rule> {
    [&scale_free_rules()[..], &[Rule::adamw()]].concat()
}

/// Returns rules that do not depend on the scale of the gradient. AdamW does, by its ε.
fn scale_free_rules() -> [Rule; 7] {
    let dampened = Rule::Sgdm(Sgdm { momentum: 0.9, dampening: 0.5, nesterov: false });
    [Rule::sgd(), Rule::sgdm(0.9), dampened, Rule::nesterov(0.9), Rule::sign_sgd(), Rule::signum(0.9), Rule::lion()]
}

fn seesaw(change: impl FnOnce(&mut Seesaw)) -> Regime {
    let mut seesaw = Seesaw::default();
    change(&mut seesaw);
    Regime::Seesaw(seesaw)
}

/// Returns a group for each rule, with tensors of these values.
fn group_per_rule(rules: &[Rule], regime: Regime, tensors: &[Vec<f32>]) -> Vec<Spec> {
    rules.iter().enumerate().map(|(i, &rule)| Spec::new(rule, regime, tensors.to_vec()).named(format!("{i}"))).collect()
}

fn repeated(grads: &[Vec<f32>], groups: usize) -> Vec<Vec<f32>> {
    (0..groups).flat_map(|_| grads.to_vec()).collect()
}

fn records(run: &mut dyn Run, group: usize) -> Vec<Record> {
    let records = run.records();
    assert_eq!(records.lost_steps, 0);
    records.records.into_iter().filter(|record| record.group == group).collect()
}

/// Asserts that the terms of each record add up to the change of ln η since the record before.
#[track_caller]
fn assert_terms_add_up(what: &str, records: &[Record], allowed: f64) {
    for pair in records.windows(2) {
        let change = pair[1].ln_rate - pair[0].ln_rate;
        let off = (pair[1].change() - change).abs();
        assert!(off <= allowed, "{what}: terms {}, but ln η changed by {change}: {:?}", pair[1].change(), pair[1]);
    }
}
