//! Tests of a group whose first gradients are zero, and then untypically small: it does not diverge under the default regime, nor under the norm
//! alone. A low-rank adapter starts this way. Of the trained product B A, B starts at zero, so that the gradient of A is zero too.

use wgpu_optim::{CpuOptimizer, Group, OptimizerBuilder, Regime, Rule};

const ROWS: usize = 12;
const COLUMNS: usize = 16;
const RANK: usize = 4;

/// Returns an element of the product B A, in row-major order.
fn product(b: &[f32], a: &[f32], at: usize) -> f32 {
    (0..RANK).map(|k| b[at / COLUMNS * RANK + k] * a[k * COLUMNS + at % COLUMNS]).sum()
}

/// Returns ½ ‖B A - T‖², and its gradients with respect to B and A.
fn loss_and_gradients(b: &[f32], a: &[f32], target: &[f32]) -> (f32, Vec<f32>, Vec<f32>) {
    let (mut of_b, mut of_a) = (vec![0.0; b.len()], vec![0.0; a.len()]);
    let mut loss = 0.0;
    for (at, target) in target.iter().enumerate() {
        let error = product(b, a, at) - target;
        loss += error * error / 2.0;
        for k in 0..RANK {
            let (in_b, in_a) = (at / COLUMNS * RANK + k, k * COLUMNS + at % COLUMNS);
            of_b[in_b] += error * a[in_a];
            of_a[in_a] += error * b[in_b];
        }
    }
    (loss, of_b, of_a)
}

fn pseudo_random(len: usize, seed: f32) -> Vec<f32> {
    (0..len).map(|i| (seed * (i as f32 + 1.0) * 12.9898).sin()).collect()
}

#[test]
fn an_adapter_that_begins_at_zero_is_learnt() {
    let wide = pseudo_random(ROWS * RANK, 3.7);
    let tall = pseudo_random(RANK * COLUMNS, 1.3);
    // The target has rank 4, so that the loss can reach 0.
    let target: Vec<f32> = (0..ROWS * COLUMNS).map(|at| product(&wide, &tall, at)).collect();
    let rules = [Rule::all(), vec![Rule::adamw_without_momentum()]].concat();
    let by_norm = rules.iter().map(|&rule| (rule, Regime::norm_ratio()));
    for (rule, regime) in rules.iter().map(|&rule| (rule, Regime::seesaw())).chain(by_norm) {
        let mut b = vec![0.0f32; ROWS * RANK];
        let mut a: Vec<f32> = pseudo_random(RANK * COLUMNS, 0.9).iter().map(|x| 0.3 * x).collect();
        let (start, of_b, of_a) = loss_and_gradients(&b, &a, &target);
        assert!(of_a.iter().all(|g| *g == 0.0) && of_b.iter().any(|g| *g != 0.0));
        let mut optimizer: CpuOptimizer = OptimizerBuilder::new(rule)
            .regime(regime)
            .group(Group::new("B").tensor("B", &b, &b))
            .group(Group::new("A").tensor("A", &a, &a))
            .build_cpu()
            .expect("builds");
        let mut largest = start;
        for _ in 0..600 {
            let (loss, of_b, of_a) = loss_and_gradients(&b, &a, &target);
            largest = largest.max(loss);
            optimizer.step(&mut [&mut b, &mut a], &[&of_b, &of_a]).expect("steps");
        }
        let (end, ..) = loss_and_gradients(&b, &a, &target);
        let name = format!("{}, {}", rule.name(), regime.name());
        assert!(largest <= 3.0 * start, "{name}: {start} rose to {largest}");
        // The norm alone converges slowly with sign rules.
        assert!(end <= 0.05 * start || regime == Regime::norm_ratio(), "{name}: {start} fell to {end} only");
        let records = optimizer.drain_records().records;
        let of_a: Vec<_> = records.iter().filter(|record| record.group == 1).collect();
        assert!(of_a[0].flags.waiting() && of_a[1].flags.first(), "{name}");
        assert!(of_a[1].to_string().ends_with("the first step with a gradient"), "{}", of_a[1]);
    }
}
