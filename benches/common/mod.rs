//! Helpers of the benchmarks. The measured code is in the package `wgpu-optim-conformance`, because `wgpu-optim bench` measures it too.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion};
use wgpu_optim::Gpu;
use wgpu_optim_conformance::bench::measure::Bench;

/// Returns a group whose benchmarks take only a second or two each, because there are many.
pub fn group<'a>(c: &'a mut Criterion, name: String) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group
}

/// Benchmarks a step in wall-clock time, including the wait for the device.
pub fn step<B: Bench>(group: &mut BenchmarkGroup<WallTime>, id: BenchmarkId, memory: &mut B, step: &mut B::Job) {
    group.bench_function(id, |b| {
        b.iter_custom(|count| memory.time(step, count as usize).expect("the device lives").wall);
    });
}

/// Opens every adapter.
pub fn devices() -> impl Iterator<Item = Gpu> {
    let adapters = pollster::block_on(Gpu::adapters(None)).into_iter();
    adapters.map(|adapter| pollster::block_on(Gpu::open(&adapter)).expect("an adapter opens"))
}
