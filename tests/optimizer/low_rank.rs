//! Promise: a group whose first gradients are zero, and then untypically small, does not blow up under the default regime. That is how a
//! low-rank adapter starts: of the product B A that is trained, B begins at zero, so that the gradient of A does too.

use wgpu_optim::{CpuOptimizer, Group, OptimizerBuilder, Rule};

const ROWS: usize = 12;
const COLUMNS: usize = 16;
const RANK: usize = 4;

/// Row `i` of a matrix with this many columns.
fn row(matrix: &[f32], i: usize, columns: usize) -> &[f32] {
    &matrix[i * columns..][..columns]
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
    let rows = matrix.len() / columns;
    (0..matrix.len()).map(|at| matrix[at % rows * columns + at / rows]).collect()
}

/// ½ ‖B A - T‖², and its gradients with respect to B and A.
fn loss_and_gradients(b: &[f32], a: &[f32], target: &[f32]) -> (f32, Vec<f32>, Vec<f32>) {
    let a_columns = transposed(a, COLUMNS);
    let error: Vec<f32> = (0..ROWS * COLUMNS)
        .map(|at| {
            let (i, j) = (at / COLUMNS, at % COLUMNS);
            dot(row(b, i, RANK), row(&a_columns, j, RANK)) - target[at]
        })
        .collect();
    let error_columns = transposed(&error, COLUMNS);
    let b_columns = transposed(b, RANK);
    let of_b = (0..ROWS * RANK).map(|at| {
        let (i, k) = (at / RANK, at % RANK);
        dot(row(&error, i, COLUMNS), row(a, k, COLUMNS))
    });
    let of_a = (0..RANK * COLUMNS).map(|at| {
        let (k, j) = (at / COLUMNS, at % COLUMNS);
        dot(row(&b_columns, k, ROWS), row(&error_columns, j, ROWS))
    });
    (dot(&error, &error) / 2.0, of_b.collect(), of_a.collect())
}

fn pseudo_random(len: usize, seed: f32) -> Vec<f32> {
    (0..len).map(|i| (seed * (i as f32 + 1.0) * 12.9898).sin()).collect()
}

#[test]
fn an_adapter_that_begins_at_zero_is_learnt() {
    let wide = pseudo_random(ROWS * RANK, 3.7);
    let tall = pseudo_random(RANK * COLUMNS, 1.3);
    let nothing = vec![0.0; ROWS * COLUMNS];
    // Of rank 4, so that the loss can vanish.
    let columns = transposed(&tall, COLUMNS);
    let target: Vec<f32> =
        (0..ROWS * COLUMNS).map(|at| dot(row(&wide, at / COLUMNS, RANK), row(&columns, at % COLUMNS, RANK))).collect();
    for rule in [Rule::all(), vec![Rule::adamw_without_momentum()]].concat() {
        let mut b = vec![0.0f32; ROWS * RANK];
        let mut a: Vec<f32> = pseudo_random(RANK * COLUMNS, 0.9).iter().map(|x| 0.3 * x).collect();
        let (start, of_b, of_a) = loss_and_gradients(&b, &a, &target);
        assert_eq!(start, loss_and_gradients(&b, &a, &nothing).0 + dot(&target, &target) / 2.0);
        assert!(of_a.iter().all(|g| *g == 0.0) && of_b.iter().any(|g| *g != 0.0));
        let mut optimizer: CpuOptimizer = OptimizerBuilder::new(rule)
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
        let name = rule.name();
        assert!(largest <= 3.0 * start, "{name}: {start} rose to {largest}");
        assert!(end <= 0.05 * start, "{name}: {start} fell to {end} only");
        let records = optimizer.drain_records().records;
        let of_a: Vec<_> = records.iter().filter(|record| record.group == 1).collect();
        assert!(of_a[0].flags.waiting() && of_a[1].flags.first(), "{name}");
        assert!(of_a[1].to_string().ends_with("the first step with a gradient"), "{}", of_a[1]);
    }
}
