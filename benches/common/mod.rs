//! What the benches share beside what they measure, which `wgpu-optim bench` measures too and is in the package `wgpu-optim-conformance`.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion};
use wgpu_optim::Gpu;
use wgpu_optim_conformance::bench::measure::Bench;

/// A group whose benchmarks take a second or two each: there are many.
pub fn group<'a>(c: &'a mut Criterion, name: String) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group
}

/// Benchmarks a step by the wall clock, the wait for the device included.
pub fn step<B: Bench>(group: &mut BenchmarkGroup<WallTime>, id: BenchmarkId, memory: &mut B, step: &mut B::Job) {
    group.bench_function(id, |b| {
        b.iter_custom(|count| memory.time(step, count as usize).expect("the device lives").wall);
    });
}

/// Every adapter, opened.
pub fn devices() -> impl Iterator<Item = Gpu> {
    let adapters = pollster::block_on(Gpu::adapters(None)).into_iter();
    adapters.map(|adapter| pollster::block_on(Gpu::open(&adapter)).expect("an adapter opens"))
}
