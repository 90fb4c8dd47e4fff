//! What a step costs beside its arithmetic: many small tensors against one flat tensor of the same size, next to nothing at all, and
//! the recording. `cargo bench --bench overhead`.

mod common;

use criterion::{Criterion, criterion_group, criterion_main};
use wgpu_optim::{Regime, Rule};
use wgpu_optim_conformance::bench::targets;
use wgpu_optim_conformance::bench::workload::{Spec, many_tensors, one_tensor};

fn overhead(c: &mut Criterion) {
    let elements = 1 << 20;
    let many = many_tensors(elements, false).expect("enough for every tensor");
    let many_odd = many_tensors(elements, true).expect("enough for every tensor");
    for (name, target) in targets() {
        let mut group = common::group(c, format!("overhead/{name}"));
        let mut memory = target.memory(elements);
        for (what, tensors) in [
            ("one-tensor", one_tensor(elements)),
            ("many-tensors", many.clone()),
            ("many-tensors-odd", many_odd.clone()),
            ("four-elements", one_tensor(4)),
        ] {
            let mut step = memory.step(&Spec { tensors, ..Spec::new(Rule::sgd(), Regime::norm_ratio(), elements) });
            group.bench_function(what, |b| {
                b.iter_custom(|count| memory.time(&mut step, count));
            });
            if memory.time_recording(&step, 1).is_some() {
                group.bench_function(format!("recording-{what}"), |b| {
                    b.iter_custom(|count| memory.time_recording(&step, count).unwrap_or_default());
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, overhead);
criterion_main!(benches);
