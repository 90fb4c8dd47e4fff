//! Every rule and regime, over lengths around the kernels' boundaries.

use wgpu_optim::{Regime, Rule};
use wgpu_optim_conformance::spec::Spec;

use super::case::{Case, Subject};
use super::regimes;
use super::scenario::{Scenario, with_lengths};

/// Steps of a case, but for [`steps`].
const STEPS: usize = 8;

/// Elements of the longest group.
const LONGEST: usize = 1 << 20;

pub fn cases(subject: &Subject) -> Vec<Box<dyn Case>> {
    let lengths = lengths(subject.gpu.tuning().block_elements() as usize);
    let mut cases = Vec::new();
    for rule in Rule::all() {
        let fitting = regimes().into_iter().filter(|regime| regime.fits(&rule));
        for regimes in by_memory(fitting.collect()) {
            let mut specs = Vec::new();
            for &regime in &regimes {
                for &length in &lengths {
                    let name = format!("{} {} {length}", rule.name(), regime.name());
                    let spec = Spec::new(rule, regime, Vec::new()).named(name);
                    specs.push(with_lengths(spec, &[length]));
                }
            }
            let steps = steps(regimes[0]);
            cases.push(Scenario::new("rules and regimes", steps, specs).boxed());
        }
    }
    cases
}

/// An episode of streams takes fifteen, and the first after it tells how it ended.
fn steps(regime: Regime) -> usize {
    if regime.needs_streams() { 18 } else { STEPS }
}

/// Regimes that keep the same memory share an optimizer, so that most kernels are compiled once: some drivers take a tenth of a second
/// for each.
fn by_memory(regimes: Vec<Regime>) -> Vec<Vec<Regime>> {
    let memory = |regime: &Regime| {
        (
            regime.needs_alignment(),
            regime.needs_last_gradient(),
            regime.needs_first_parameters(),
            regime.needs_streams(),
        )
    };
    let mut batches: Vec<Vec<Regime>> = Vec::new();
    for regime in regimes {
        match batches.iter_mut().find(|batch| memory(&batch[0]) == memory(&regime)) {
            Some(batch) => batch.push(regime),
            None => batches.push(vec![regime]),
        }
    }
    batches
}

/// Lengths around every boundary of the kernels: nothing, less than a quad, a quad, a row, a block.
pub fn lengths(block: usize) -> Vec<usize> {
    let mut lengths = vec![0, 1, 3, 4, 5, 31, 33];
    lengths.extend([block - 1, block, block + 1, 3 * block + 2]);
    // A cached geometry may have blocks that the oracle would take minutes for: what there is of them is one block.
    for length in &mut lengths {
        *length = (*length).min(LONGEST);
    }
    lengths.dedup();
    lengths
}
