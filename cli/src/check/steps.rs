//! Every rule and regime, with lengths around the kernels' boundaries.

use wgpu_optim::{Regime, Rule};
use wgpu_optim_conformance::spec::regimes;

use super::case::{Cases, Subject};
use super::scenario::{LONG_ULPS, Scenario, Tolerance, group};

/// Number of steps of a case without streams.
const STEPS: usize = 8;

/// Number of elements of the longest group.
const LONGEST: usize = 1 << 20;

pub fn cases(subject: &Subject) -> Cases {
    let lengths = lengths(subject.gpu.tuning().block_elements() as usize);
    let mut cases = Vec::new();
    for rule in Rule::all() {
        let fitting = regimes().filter(|regime| regime.fits(&rule));
        for regimes in by_memory(fitting.collect()) {
            let mut specs = Vec::new();
            for &regime in &regimes {
                for &length in &lengths {
                    let name = format!("{} {} {length}", rule.name(), regime.name());
                    specs.push(group(name, rule, regime, &[length]));
                }
            }
            // An episode of streams takes fifteen steps, and the first step after it has the outcome.
            let steps = if regimes[0].needs_streams() { 18 } else { STEPS };
            let tolerance = Tolerance::OfLargest(LONG_ULPS);
            cases.push(Scenario { tolerance, ..Scenario::new("rules and regimes", steps, specs) }.boxed());
        }
    }
    cases
}

/// Groups regimes that keep the same memory into one optimizer, so that most kernels are compiled once. Some drivers
/// take a tenth of a second for each.
fn by_memory(regimes: Vec<Regime>) -> Vec<Vec<Regime>> {
    let memory = |of: &Regime| {
        let kept = [of.needs_last_gradient(), of.needs_looks(), of.needs_first_parameters(), of.needs_streams()];
        let own = [of.needs_estimate(), of.needs_displacement()];
        (of.needs_alignment(), of.needs_schedule_free(), kept, own)
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

/// Returns lengths around every boundary of the kernels: nothing, less than a quad, a quad, a row, a block.
pub fn lengths(block: usize) -> Vec<usize> {
    // A cached geometry may have blocks for which the reference would take minutes. The lengths then stay within one
    // block.
    let around = [block - 1, block, block + 1, 3 * block + 2].map(|length| length.min(LONGEST));
    let mut lengths = [&[0, 1, 3, 4, 5, 31, 33][..], &around].concat();
    lengths.dedup();
    lengths
}
