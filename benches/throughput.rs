//! Throughput of a step: `cargo bench --bench throughput`. The binary's `bench` sets it against the copy bandwidth.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use wgpu_optim::{Regime, Rule};

fn throughput(c: &mut Criterion) {
    for (name, mut target) in common::targets() {
        let mut group = c.benchmark_group(format!("throughput/{name}"));
        group.sample_size(10);
        for power in [14, 18, 22] {
            let elements = 1usize << power;
            group.throughput(Throughput::Elements(elements as u64));
            for rule in [Rule::sgd(), Rule::sgdm(0.9)] {
                for regime in [Regime::fixed(1e-3), Regime::seesaw()] {
                    let id =
                        BenchmarkId::new(format!("{}-{}", rule.name(), regime.name()), elements);
                    let mut run = target.steps(rule, regime, &[elements]);
                    group.bench_function(id, |b| b.iter_custom(|count| run.time(count)));
                }
            }
        }
        group.finish();
    }
}

criterion_group!(benches, throughput);
criterion_main!(benches);
