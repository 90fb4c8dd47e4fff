//! Steps of Muon: `cargo bench --bench matrices`. "Elements per second" means floating-point operations per second of dense matrix products:
//! 5 · 6 n³ for a square matrix of n rows. `benches/peers/cpu/muon.py` measures PyTorch's Muon on the same machine.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use wgpu_optim::{Regime, Rule};
use wgpu_optim_conformance::bench::device::Device;
use wgpu_optim_conformance::bench::host::Host;
use wgpu_optim_conformance::bench::measure::Bench;
use wgpu_optim_conformance::bench::workload::Spec;

fn matrices(c: &mut Criterion) {
    over(c, "CPU path", Host::new);
    for gpu in common::devices() {
        over(c, &gpu.describe(), |elements| Device::new(&gpu, elements).expect("room on the device"));
    }
}

fn over<B: Bench>(c: &mut Criterion, name: &str, memory: impl Fn(usize) -> B) {
    let mut group = common::group(c, format!("matrices/{name}"));
    for (count, side) in [(1, 256), (1, 1024), (64, 128)] {
        let elements = count * side * side;
        let mut memory = memory(elements);
        group.throughput(Throughput::Elements((count * 5 * 6 * side * side * side) as u64));
        let spec = Spec::new(Rule::muon(), Regime::fixed(1e-7), elements);
        let mut step = memory.step(&Spec { tensors: vec![vec![side * side; count]], ..spec }).expect("builds");
        common::step(&mut group, BenchmarkId::new("muon", format!("{count}x{side}")), &mut memory, &mut step);
    }
    group.finish();
}

criterion_group!(benches, matrices);
criterion_main!(benches);
