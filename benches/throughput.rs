//! Throughput of a step with every rule, regime and mode: `cargo bench --bench throughput`. `wgpu-optim bench` compares it with copy
//! and triad.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use wgpu_optim::wgpu::DeviceType;
use wgpu_optim_conformance::bench::device::Device;
use wgpu_optim_conformance::bench::host::Host;
use wgpu_optim_conformance::bench::measure::Bench;
use wgpu_optim_conformance::bench::workload::{MODES, Spec, regimes, rules};

fn throughput(c: &mut Criterion) {
    over(c, "CPU path", 26, Host::new);
    for gpu in common::devices() {
        // Software drivers take seconds for what GPUs do in milliseconds.
        let largest = if gpu.device().adapter_info().device_type == DeviceType::Cpu { 22 } else { 26 };
        over(c, &gpu.describe(), largest, |elements| Device::new(&gpu, elements).expect("room on the device"));
    }
}

fn over<B: Bench>(c: &mut Criterion, name: &str, largest: u32, memory: impl Fn(usize) -> B) {
    let mut group = common::group(c, format!("throughput/{name}"));
    for elements in (10..=largest).step_by(4).map(|power| 1usize << power) {
        let mut memory = memory(elements);
        for &mode in MODES.iter().filter(|mode| mode.is_default()) {
            let steps = rules().into_iter().flat_map(|rule| regimes().map(|regime| (rule, regime)));
            for (rule, regime) in steps.filter(|&(rule, regime)| mode.fits(rule, regime)) {
                let bytes = (mode.bytes_per_param(rule, regime) * elements as f64) as u64;
                group.throughput(Throughput::ElementsAndBytes { elements: elements as u64, bytes });
                let id = BenchmarkId::new(format!("{}-{}-{}", rule.name(), regime.name(), mode.name), elements);
                let mut step = memory.step(&Spec { mode, ..Spec::new(rule, regime, elements) }).expect("builds");
                common::step(&mut group, id, &mut memory, &mut step);
            }
        }
    }
    group.finish();
}

criterion_group!(benches, throughput);
criterion_main!(benches);
