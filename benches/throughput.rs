//! Throughput of a step, every rule, regime and mode: `cargo bench --bench throughput`. The binary's `bench` sets it against copy
//! and triad.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use wgpu_optim_conformance::bench::targets;
use wgpu_optim_conformance::bench::workload::{MODES, Spec, regimes, rules};

fn throughput(c: &mut Criterion) {
    for (name, target) in targets() {
        let mut group = common::group(c, format!("throughput/{name}"));
        let largest = if target.is_software() { 22 } else { 26 };
        for power in (10..=largest).step_by(4) {
            let elements = 1usize << power;
            let mut memory = target.memory(elements);
            for &mode in MODES.iter().filter(|mode| mode.is_default()) {
                for rule in rules() {
                    for regime in regimes() {
                        let bytes = mode.bytes_per_param(rule, regime) * elements as f64;
                        group.throughput(Throughput::ElementsAndBytes {
                            elements: elements as u64,
                            bytes: bytes as u64,
                        });
                        let id = BenchmarkId::new(format!("{}-{}-{}", rule.name(), regime.name(), mode.name), elements);
                        let mut step = memory.step(&Spec { mode, ..Spec::new(rule, regime, elements) });
                        group.bench_function(id, |b| {
                            b.iter_custom(|count| memory.time(&mut step, count));
                        });
                    }
                }
            }
        }
        group.finish();
    }
}

criterion_group!(benches, throughput);
criterion_main!(benches);
