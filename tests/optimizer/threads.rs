//! Tests of the CPU path: its results have the same bits for any number of threads, and wherever slices start in memory.
//!
//! Each of these faults was introduced by hand once and made a test fail: partial sums that depend on the thread that computed them, and a first
//! tile, up to a cache line, that is left out.

use wgpu_optim::{Averaging, Group, OptimizerBuilder, Regime, Rule};
use wgpu_optim_conformance::run::{CpuRun, Run, Spec, bits};
use wgpu_optim_conformance::{noise, tensors};

/// More than the number of elements that is worth dividing among threads, and no multiple of a block.
const LEN: usize = (1 << 18) + 4099;

/// Returns parameters, averages and rates after some steps.
fn outcome(threads: usize) -> Vec<Vec<u32>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(|| {
        let averaging = Averaging::Running { start: 1 };
        let specs = [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd()].map(|rule| {
            let spec = Spec::new(rule, Regime::seesaw(), tensors(1, &[LEN, 7]));
            Spec { averaging, ..spec.named(format!("{rule:?}")) }
        });
        let mut run = CpuRun::new(&specs);
        (0..4).for_each(|step| run.step(&noise(&specs, 3 + step)));
        let mut outcome = bits(&run.params());
        outcome.extend(bits(&run.averages()));
        outcome.extend(bits(&[run.rates()]));
        outcome
    })
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let alone = outcome(1);
    assert_ne!(alone[0], bits(&tensors(1, &[LEN]))[0], "nothing moved");
    for threads in [2, 3, 7] {
        assert!(outcome(threads) == alone, "{threads} threads");
    }
}

/// Returns the parameters after steps of a rule over slices that start at this offset.
fn outcome_at(rule: Rule, regime: Regime, offset: usize) -> Vec<u32> {
    const LEN: usize = 3 * 4096 + 77;
    let values = |seed: u64| [vec![0.0; offset], tensors(seed, &[LEN]).remove(0)].concat();
    let (mut w, g) = (values(1), values(2));
    let mut optimizer = OptimizerBuilder::new(rule)
        .regime(regime)
        .group(Group::new("all").tensor("w", &w[offset..], &g[offset..]))
        .build_cpu()
        .expect("builds");
    (0..3).for_each(|_| optimizer.step(&mut [&mut w[offset..]], &[&g[offset..]]).expect("steps"));
    bits(&[w[offset..].to_vec()]).remove(0)
}

#[test]
fn where_slices_begin_changes_no_bit() {
    for rule in Rule::all() {
        for regime in [Regime::fixed(0.01), Regime::seesaw()] {
            let first = outcome_at(rule, regime, 0);
            for offset in [1, 4, 7, 15] {
                assert!(outcome_at(rule, regime, offset) == first, "{}, {offset}", rule.name());
            }
        }
    }
}
