//! Overhead of a step: many small tensors compared with one flat tensor of the same size, a step over four elements, and the recording
//! of a step. `cargo bench --bench overhead`.

mod common;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use wgpu_optim::{Regime, Rule};
use wgpu_optim_conformance::bench::device::Device;
use wgpu_optim_conformance::bench::host::Host;
use wgpu_optim_conformance::bench::measure::Bench;
use wgpu_optim_conformance::bench::workload::{Spec, many_tensors, one_tensor};

const ELEMENTS: usize = 1 << 20;

fn overhead(c: &mut Criterion) {
    over(c, "CPU path", Host::new(ELEMENTS));
    for gpu in common::devices() {
        over(c, &gpu.describe(), Device::new(&gpu, ELEMENTS).expect("room on the device"));
    }
}

fn over(c: &mut Criterion, name: &str, mut memory: impl Bench) {
    let mut group = common::group(c, format!("overhead/{name}"));
    let many = |odd| many_tensors(ELEMENTS, odd).expect("enough for every tensor");
    for (what, tensors) in [
        ("one-tensor", one_tensor(ELEMENTS)),
        ("many-tensors", many(false)),
        ("many-tensors-odd", many(true)),
        ("four-elements", one_tensor(4)),
    ] {
        let spec = Spec { tensors, ..Spec::new(Rule::sgd(), Regime::norm_ratio(), ELEMENTS) };
        let mut step = memory.step(&spec).expect("builds");
        common::step(&mut group, BenchmarkId::from_parameter(what), &mut memory, &mut step);
        let recording = |count| memory.time_recording(&step, count).expect("the device lives");
        if recording(1).is_some() {
            group.bench_function(format!("recording-{what}"), |b| {
                b.iter_custom(|count| recording(count as usize).map_or_else(Default::default, |t| t.encode + t.finish));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, overhead);
criterion_main!(benches);
