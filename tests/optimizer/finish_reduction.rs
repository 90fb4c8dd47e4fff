//! Tests of pass 2: it adds up every partial of a scope, whatever their number, and is refused where its loop would be too long.

use wgpu_optim::gpu::{Partials, Tuning};
use wgpu_optim::{ErrorKind, Group, OptimizerBuilder, Regime, Rule};
use wgpu_optim_conformance as conformance;
use wgpu_optim_conformance::run::{GpuRun, Place, Run, Spec, devices};

fn tuning(finish_workgroup_size: u32, partials: Partials) -> Tuning {
    Tuning { workgroup_size: 8, quads_per_invocation: 1, partials, finish_workgroup_size }
}

/// Blocks of 32 elements give thousands of partials, at and around multiples of the finishing workgroup's size. Sums of ones are exact.
#[test]
fn thousands_of_partials_add_up_exactly() {
    for gpu in &devices() {
        for style in conformance::kinds_of_partials(gpu) {
            for finish in [1, 2, 64] {
                let gpu = gpu.clone().with_tuning(tuning(finish, style)).expect("fits");
                for blocks in [1usize, 63, 64, 65, 2000] {
                    let len = 32 * blocks;
                    let specs = [Spec::new(Rule::sgd(), Regime::norm_ratio(), vec![vec![0.5; len]])];
                    let place = Place { params: (0, 0), grads: (1, 0) };
                    let mut run = GpuRun::with(&gpu, &specs, vec![place], OptimizerBuilder::separate_passes);
                    run.step(&[vec![1.0; len]]);
                    let sums = run.sums()[0];
                    assert_eq!(sums.square.value(), len as f64, "{}", run.path());
                    assert_eq!(sums.initial_square.value(), 0.25 * len as f64);
                    assert_eq!(sums.nonfinite, 0);
                }
            }
        }
    }
}

/// One invocation would have to add up 2^18 partials. Some drivers would silently stop such a loop, so that it is refused.
#[test]
fn more_partials_than_a_loop_may_walk_are_refused() {
    let gpu = devices()[0].clone().with_tuning(tuning(1, Partials::PerInvocation)).expect("fits");
    let len = 1usize << 20;
    let buffers = [0, 1].map(|_| conformance::upload(&gpu, &vec![1.0; len]));
    let error = OptimizerBuilder::new(Rule::sgd())
        .group(Group::new("all").tensor("w", buffers[0].slice(..), buffers[1].slice(..)))
        .build(&gpu)
        .expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(error.to_string().contains(" is 262144, above 60000: "), "{error}");
    assert!(error.to_string().contains("finish_workgroup_size"), "{error}");
}
