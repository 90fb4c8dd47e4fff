//! What a step costs beside its arithmetic: many small tensors against one flat tensor of the same size, and the cost of
//! recording. `cargo bench --bench overhead`.

mod common;

use criterion::{Criterion, criterion_group, criterion_main};
use wgpu_optim::{Regime, Rule};

/// 200 tensors of mixed sizes, 2^20 elements in all.
fn mixed_sizes() -> Vec<usize> {
    let mut sizes: Vec<usize> = (0..200).map(|i| 64 << (i % 8)).collect();
    let rest = (1 << 20) - sizes.iter().sum::<usize>();
    sizes[199] += rest;
    sizes
}

fn overhead(c: &mut Criterion) {
    for (name, mut target) in common::targets() {
        let mut group = c.benchmark_group(format!("overhead/{name}"));
        group.sample_size(10);
        for (what, sizes) in [
            ("one-tensor", vec![1 << 20]),
            ("200-tensors", mixed_sizes()),
        ] {
            let mut run = target.steps(Rule::sgd(), Regime::norm_ratio(), &sizes);
            group.bench_function(what, |b| b.iter_custom(|count| run.time(count)));
        }
        let mut run = target.steps(Rule::sgd(), Regime::norm_ratio(), &[4]);
        group.bench_function("four-elements", |b| b.iter_custom(|count| run.time(count)));
        group.finish();
    }
}

criterion_group!(benches, overhead);
criterion_main!(benches);
