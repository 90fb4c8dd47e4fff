//! Promise: the CPU path gives the same bits for any number of threads.
//!
//! Tried once by hand: partial sums that depend on the thread that made them.

use wgpu_optim::{Averaging, Regime, Rule};
use wgpu_optim_conformance::Numbers;
use wgpu_optim_conformance::run::{CpuRun, Run, Spec, bits};

/// Above what is worth handing to other threads, and no multiple of a block.
const LEN: usize = (1 << 18) + 4099;

/// Parameters, averages and rates after some steps.
fn outcome(threads: usize) -> Vec<Vec<u32>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(|| {
        let specs: Vec<Spec> = [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd()]
            .into_iter()
            .map(|rule| {
                let tensors = vec![Numbers(1).vec(LEN), Numbers(2).vec(7)];
                let mut spec = Spec::new(rule, Regime::seesaw(), tensors);
                spec.averaging = Averaging::Running { start: 1 };
                spec.named(format!("{rule:?}"))
            })
            .collect();
        let mut run = CpuRun::new(&specs);
        let mut numbers = Numbers(3);
        for _ in 0..4 {
            let grads: Vec<Vec<f32>> =
                specs.iter().flat_map(|spec| &spec.tensors).map(|tensor| numbers.vec(tensor.len())).collect();
            run.step(&grads);
        }
        let mut outcome = bits(&run.params());
        outcome.extend(bits(&run.averages()));
        outcome.push(run.rates().iter().map(|rate| rate.to_bits()).collect());
        outcome
    })
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let alone = outcome(1);
    assert_ne!(alone[0], bits(&[Numbers(1).vec(LEN)])[0], "nothing moved");
    for threads in [2, 3, 7] {
        assert!(outcome(threads) == alone, "{threads} threads");
    }
}
