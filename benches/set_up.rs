//! Time and host memory for building an optimizer of 1, 200 and 2,000 tensors. `cargo bench --bench set_up`.
//!
//! `first` builds on a device that has compiled nothing. `second` builds on one that has the pipelines of an optimizer of the same kind.
//! `packed` tensors share two buffers. `separate` tensors have two buffers each, as in most frameworks.

use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use wgpu_optim::{CpuOptimizer, Gpu, Group, Optimizer, OptimizerBuilder, Rule, wgpu};

/// Elements of each tensor: 1 KiB, a multiple of every device's alignment of bindings.
const ELEMENTS: usize = 256;
const BYTES: u64 = 4 * ELEMENTS as u64;
const GROUPS: usize = 4;

/// Returns a builder with `tensors` tensors in four groups, each added by `add`.
fn builder<T>(tensors: usize, add: impl Fn(Group<T>, usize) -> Group<T>) -> OptimizerBuilder<T> {
    let builder = OptimizerBuilder::new(Rule::sgdm(0.9));
    (0..GROUPS).fold(builder, |builder, group| {
        let of_group = (group..tensors).step_by(GROUPS);
        builder.group(of_group.fold(Group::new(group.to_string()), &add))
    })
}

/// Buffers of parameters and gradients: two for each tensor, or two for all tensors.
struct Buffers(Vec<[wgpu::Buffer; 2]>);

impl Buffers {
    fn new(gpu: &Gpu, tensors: usize, packed: bool) -> Self {
        let (buffers, each) = if packed { (1, tensors) } else { (tensors, 1) };
        let buffer = |label| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: BYTES * each as u64,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        Buffers((0..buffers).map(|_| ["parameters", "gradients"].map(buffer)).collect())
    }

    fn build(&self, gpu: &Gpu, tensors: usize) -> Optimizer {
        let builder = builder(tensors, |group, tensor| {
            let (buffer, at) = if self.0.len() == 1 { (0, tensor as u64) } else { (tensor, 0) };
            let [params, grads] = self.0[buffer].each_ref().map(|buffer| buffer.slice(BYTES * at..BYTES * (at + 1)));
            group.tensor(tensor.to_string(), params, grads)
        });
        builder.build(gpu).expect("builds")
    }
}

fn build_cpu(values: &[f32], tensors: usize) -> CpuOptimizer {
    builder(tensors, |group, tensor| group.tensor(tensor.to_string(), values, values)).build_cpu().expect("builds")
}

fn benchmarks<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(format!("set-up/{name}"));
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    group
}

fn set_up(c: &mut Criterion) {
    let values = vec![1.0f32; ELEMENTS];
    let mut group = benchmarks(c, "CPU path");
    for tensors in [1, 200, 2000] {
        group.bench_function(BenchmarkId::from_parameter(tensors), |b| b.iter(|| build_cpu(&values, tensors)));
        tell_memory("CPU path", tensors, || build_cpu(&values, tensors));
    }
    group.finish();

    for adapter in pollster::block_on(Gpu::adapters(None)) {
        let open = || pollster::block_on(Gpu::open(&adapter)).expect("an adapter opens");
        let known = open();
        let mut group = benchmarks(c, &known.describe());
        for (place, tensors, packed) in [
            ("packed", 1, true),
            ("packed", 200, true),
            ("packed", 2000, true),
            ("separate", 200, false),
            ("separate", 2000, false),
        ] {
            let build = |gpu: &Gpu, count| -> Duration {
                let times = (0..count).map(|_| {
                    let buffers = Buffers::new(gpu, tensors, packed);
                    let start = Instant::now();
                    let optimizer = buffers.build(gpu, tensors);
                    let taken = start.elapsed();
                    drop((optimizer, buffers));
                    // Dropped objects are freed when the device is polled. This is not part of a build.
                    gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("the device lives");
                    taken
                });
                times.sum()
            };
            group.bench_function(BenchmarkId::new(format!("first-{place}"), tensors), |b| {
                b.iter_custom(|count| (0..count).map(|_| build(&open(), 1)).sum());
            });
            // This compiles the pipelines.
            build(&known, 1);
            group.bench_function(BenchmarkId::new(format!("second-{place}"), tensors), |b| {
                b.iter_custom(|count| build(&known, count));
            });
            let buffers = Buffers::new(&known, tensors, packed);
            tell_memory(&format!("{}, {place}", known.describe()), tensors, || buffers.build(&known, tensors));
        }
        group.finish();
    }
}

/// Prints the heap memory that an optimizer holds, including that of wgpu.
fn tell_memory<T>(what: &str, tensors: usize, build: impl FnOnce() -> T) {
    let mut built = None;
    let info = allocation_counter::measure(|| built = Some(build()));
    println!("host memory/{what}/{tensors}: {:.1} KiB", info.bytes_current as f64 / 1024.0);
    drop(built);
}

criterion_group!(benches, set_up);
criterion_main!(benches);
