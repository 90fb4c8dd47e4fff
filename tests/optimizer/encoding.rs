//! Promises about the call: a step is only recorded, wherever the caller wants it; it allocates nothing; the learning rates are a
//! buffer for the caller's kernels; records come when asked for, and lost ones are counted.
//!
//! Faults tried once by hand, each failed its test: a ring of one step less, lost steps not counted.

use std::time::{Duration, Instant};

use wgpu_optim::{Averaging, Gpu, Group, OptimizerBuilder, Records, Regime, Rule, wgpu};
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Run, Spec, bits, devices, every_path, packed};
use wgpu_optim_conformance::{Kernel, Numbers, download, drain, upload};

fn spec(len: usize) -> Spec {
    Spec::new(Rule::sgd(), Regime::seesaw(), vec![Numbers(len as u64).vec(len)])
}

fn gpu_run(gpu: &Gpu, specs: &[Spec]) -> GpuRun {
    GpuRun::new(gpu, specs, packed(specs, 0, 0))
}

/// All per-step state is on the device: k steps in one submit, in one pass, or in k submits, are the same steps.
#[test]
fn steps_in_one_submit_are_steps() {
    let specs = [spec(1003), Spec::new(Rule::sgdm(0.9), Regime::seesaw(), vec![Numbers(7).vec(64)]).named("momentum")];
    let grads: Vec<Vec<f32>> = [1003, 64].iter().map(|&len| Numbers(3).vec(len)).collect();
    for gpu in &devices() {
        let finish = |mut run: GpuRun| (bits(&run.params()), run.records());
        let mut apart = gpu_run(gpu, &specs);
        for _ in 0..5 {
            apart.step(&grads);
        }
        let mut one_encoder = gpu_run(gpu, &specs);
        one_encoder.write_grads(&grads);
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        for _ in 0..5 {
            one_encoder.optimizer.encode_step(&mut encoder).expect("alive");
        }
        gpu.queue().submit([encoder.finish()]);
        let mut one_pass = gpu_run(gpu, &specs);
        one_pass.write_grads(&grads);
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for _ in 0..5 {
                one_pass.optimizer.encode_step_in(&mut pass).expect("alive");
            }
        }
        gpu.queue().submit([encoder.finish()]);
        let four = {
            let mut run = gpu_run(gpu, &specs);
            for _ in 0..4 {
                run.step(&grads);
            }
            finish(run)
        };
        let apart = finish(apart);
        assert!(apart == finish(one_encoder), "{}: one encoder", gpu.describe());
        assert!(apart == finish(one_pass), "{}: one pass", gpu.describe());
        assert!(apart != four, "{}: four steps are not five", gpu.describe());
    }
}

/// A step recorded and never submitted is no step.
#[test]
fn recording_alone_changes_nothing() {
    for gpu in &devices() {
        let specs = [spec(100)];
        let mut run = gpu_run(gpu, &specs);
        run.write_grads(&[vec![1.0; 100]]);
        let before = bits(&run.params());
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        run.optimizer.encode_step(&mut encoder).expect("alive");
        drop(encoder);
        assert_eq!(bits(&run.params()), before);
        assert_eq!(run.records(), Records::default());
    }
}

const GRADIENT: &str = "
@group(0) @binding(0) var<storage, read> w: array<f32>;
@group(0) @binding(1) var<storage, read_write> g: array<f32>;
@compute @workgroup_size(64) fn gradient(@builtin(local_invocation_index) i: u32) { g[i] = 0.5 * (w[i] - 1.0); }
";

const SCALE_BY_RATE: &str = "
@group(0) @binding(0) var<storage, read> rates: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@compute @workgroup_size(64) fn scale(@builtin(local_invocation_index) i: u32) { out[i] += rates[1] * f32(i); }
";

/// Gradient kernel, step and a kernel that reads the learning rate, three times over in one pass of the caller's, no host between.
#[test]
fn a_step_in_the_callers_pass_between_the_callers_kernels() {
    for gpu in &devices() {
        let w = upload(gpu, &[0.25; 64]);
        let g = upload(gpu, &[0.0; 64]);
        let out = upload(gpu, &[0.0; 64]);
        let half =
            |w: &wgpu::Buffer, from: u64| -> std::ops::Range<u64> { from * w.size() / 2..(from + 1) * w.size() / 2 };
        let mut optimizer = OptimizerBuilder::new(Rule::sgd())
            .group(Group::new("first").tensor("a", w.slice(half(&w, 0)), g.slice(half(&g, 0))))
            .group(Group::new("second").regime(Regime::fixed(0.5)).tensor(
                "b",
                w.slice(half(&w, 1)),
                g.slice(half(&g, 1)),
            ))
            .build(gpu)
            .expect("builds");
        let gradient = Kernel::new(gpu, GRADIENT, &[&w, &g]);
        let scale = Kernel::new(gpu, SCALE_BY_RATE, &[optimizer.learning_rates(), &out]);
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for _ in 0..3 {
                gradient.dispatch(&mut pass);
                optimizer.encode_step_in(&mut pass).expect("alive");
                scale.dispatch(&mut pass);
            }
        }
        gpu.queue().submit([encoder.finish()]);
        // w - 1 shrinks by 3/4 a step in the second group: exact.
        let after = download(gpu, &w, 64);
        assert_eq!(after[32..], [1.0 - 0.75 * 0.75f32.powi(3); 32], "{}", gpu.describe());
        // The first group saw the same gradient kernel three times over.
        let norms: Vec<f32> =
            drain(&mut optimizer).records.iter().filter(|record| record.group == 0).map(|record| record.norm).collect();
        assert!(norms.len() == 3 && norms[0] > norms[1] && norms[1] > norms[2], "{norms:?}");
        let expected: Vec<f32> = (0..64).map(|i| 1.5 * i as f32).collect();
        assert_eq!(download(gpu, &out, 64), expected, "{}", gpu.describe());
        assert!(
            optimizer.learning_rates().usage().contains(wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC)
        );
    }
}

/// The counter counts: what the tests below compare with zero is not blind.
#[test]
fn an_allocation_is_counted() {
    let info = allocation_counter::measure(|| drop(std::hint::black_box(vec![1u8; 100])));
    assert_eq!((info.count_total, info.bytes_total), (1, 100));
}

/// What a step costs in allocations is what wgpu itself makes of the same calls, and walking the dispatches costs none.
#[test]
fn recording_a_step_allocates_no_more_than_its_raw_calls() {
    let averagings = [Averaging::Off, Averaging::polynomial_decay()];
    for gpu in &devices() {
        let specs: Vec<Spec> =
            (0..5).map(|i| Spec { averaging: averagings[i % 2], ..spec(100 + i).named(format!("{i}")) }).collect();
        for measures in [false, true] {
            let mut specs = specs.clone();
            for spec in &mut specs {
                (spec.telemetry, spec.trust) = (measures, measures.then_some(0.1));
            }
            let run = GpuRun::new(gpu, &specs, packed(&specs, 0, 0));
            let optimizer = &run.optimizer;
            let record = |by_hand: bool| {
                let mut encoder = gpu.device().create_command_encoder(&Default::default());
                let info = allocation_counter::measure(|| {
                    if by_hand {
                        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                            label: Some("wgpu-optim step"),
                            timestamp_writes: None,
                        });
                        for dispatch in optimizer.dispatches() {
                            pass.set_pipeline(&dispatch.pipeline);
                            for (index, bind_group) in dispatch.bind_groups.iter().enumerate() {
                                let bind_group: &wgpu::BindGroup = bind_group;
                                pass.set_bind_group(index as u32, bind_group, &[]);
                            }
                            pass.dispatch_workgroups(dispatch.workgroups, 1, 1);
                        }
                    } else {
                        optimizer.encode_step(&mut encoder).expect("alive");
                    }
                });
                gpu.queue().submit([encoder.finish()]);
                info
            };
            record(true);
            record(false);
            for _ in 0..3 {
                let (by_hand, by_us) = (record(true), record(false));
                assert_eq!(
                    (by_us.count_total, by_us.bytes_total),
                    (by_hand.count_total, by_hand.bytes_total),
                    "{}",
                    gpu.describe()
                );
            }
            let mut workgroups = 0;
            let walk = allocation_counter::measure(|| {
                workgroups = optimizer.dispatches().iter().map(|dispatch| dispatch.workgroups).sum();
            });
            assert!(workgroups > 0);
            assert_eq!(walk.count_total, 0);
        }
    }
}

/// A step on the host allocates nothing on the caller's thread; where it hands blocks to others, rayon's queue takes a chunk of
/// memory every 60-odd steps, and no more.
#[test]
fn a_cpu_step_allocates_nothing() {
    for (lengths, chunks) in [(vec![8192], 0), (vec![1], 0), (vec![200_000, 3, 20_000], 4)] {
        let mut specs = [Spec::new(Rule::sgd(), Regime::seesaw(), lengths.iter().map(|&len| vec![1.0; len]).collect())];
        let grads: Vec<Vec<f32>> = lengths.iter().map(|&len| Numbers(1).vec(len)).collect();
        for (averaging, measures) in
            [(Averaging::Off, false), (Averaging::polynomial_decay(), false), (Averaging::polynomial_decay(), true)]
        {
            specs[0].averaging = averaging;
            (specs[0].telemetry, specs[0].trust) = (measures, measures.then_some(0.1));
            let mut run = CpuRun::new(&specs);
            let mut params = run.params();
            let mut params: Vec<&mut [f32]> = params.iter_mut().map(Vec::as_mut_slice).collect();
            let grads: Vec<&[f32]> = grads.iter().map(Vec::as_slice).collect();
            let optimizer = &mut run.optimizer;
            let mut step = || optimizer.step(&mut params, &grads);
            step().expect("steps");
            let info = allocation_counter::measure(|| {
                for _ in 0..100 {
                    step().expect("steps");
                }
            });
            assert!(
                info.count_total <= chunks,
                "{lengths:?}, {averaging:?}: {} allocations in 100 steps",
                info.count_total
            );
            assert_eq!(run.records().records.len(), 101);
        }
    }
}

#[test]
fn records_are_handed_over_once_and_in_order() {
    let specs = [spec(10), spec(20).named("second")];
    for mut run in every_path(&specs) {
        let grads = [vec![1.0; 10], vec![1.0; 20]];
        assert_eq!(run.records(), Records::default());
        for (first, count) in [(0, 3), (3, 4), (7, 1)] {
            for _ in 0..count {
                run.step(&grads);
            }
            let drained = run.records();
            assert_eq!(drained.lost_steps, 0);
            let found: Vec<(u64, usize)> = drained.records.iter().map(|record| (record.step, record.group)).collect();
            let expected: Vec<(u64, usize)> = (first..first + count).flat_map(|step| [(step, 0), (step, 1)]).collect();
            assert_eq!(found, expected, "{}", run.path());
            assert_eq!(run.records(), Records::default(), "{}: nothing is handed over twice", run.path());
        }
    }
}

#[test]
fn a_ring_of_four_loses_six_of_ten_steps_and_says_so() {
    let specs = [spec(10), spec(20).named("second")];
    let grads = [vec![1.0f32; 10], vec![1.0; 20]];
    let check = |path: &str, ten: Records, two: Records| {
        let steps = |records: &Records| -> Vec<u64> { records.records.iter().map(|record| record.step).collect() };
        assert_eq!((ten.lost_steps, steps(&ten)), (6, vec![6, 6, 7, 7, 8, 8, 9, 9]), "{path}");
        assert_eq!((two.lost_steps, steps(&two)), (0, vec![10, 10, 11, 11]), "{path}");
    };
    for gpu in &devices() {
        let mut run = GpuRun::with(gpu, &specs, packed(&specs, 0, 0), |builder| builder.record_steps(4));
        for _ in 0..10 {
            run.step(&grads);
        }
        let ten = run.records();
        for _ in 0..2 {
            run.step(&grads);
        }
        check(&run.path(), ten, run.records());
    }
    let mut params = [vec![1.0f32; 10], vec![1.0; 20]];
    let mut optimizer = OptimizerBuilder::new(Rule::sgd())
        .record_steps(4)
        .group(Group::new("a").tensor("a", &params[0], &grads[0]))
        .group(Group::new("b").tensor("b", &params[1], &grads[1]))
        .build_cpu()
        .expect("builds");
    let mut steps = |count: usize| {
        for _ in 0..count {
            let [a, b] = &mut params;
            optimizer.step(&mut [a, b], &[&grads[0], &grads[1]]).expect("steps");
        }
        optimizer.drain_records()
    };
    let ten = steps(10);
    check("CPU path", ten, steps(2));
}

/// The first call only starts a copy, none waits for one, and everything arrives in the end, once.
#[test]
fn try_drain_delivers_without_waiting() {
    for gpu in &devices() {
        let specs = [spec(10)];
        let mut run = gpu_run(gpu, &specs);
        let grads = [vec![1.0; 10]];
        for _ in 0..3 {
            run.step(&grads);
        }
        assert_eq!(run.optimizer.try_drain_records().expect("alive"), None, "{}", gpu.describe());
        run.step(&grads);
        let mut steps = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        while steps.len() < 4 {
            assert!(Instant::now() < deadline, "{}: only {steps:?} arrived", gpu.describe());
            if let Some(records) = run.optimizer.try_drain_records().expect("alive") {
                assert_eq!(records.lost_steps, 0);
                steps.extend(records.records.iter().map(|record| record.step));
            }
        }
        assert_eq!(steps, [0, 1, 2, 3], "{}", gpu.describe());
        // A copy is under way, from before this step: the blocking drain brings both.
        run.optimizer.try_drain_records().expect("alive");
        run.step(&grads);
        let rest: Vec<u64> = drain(&mut run.optimizer).records.iter().map(|record| record.step).collect();
        assert_eq!(rest, [4], "{}", gpu.describe());
    }
}

/// States, sums and rates can be read at any time, and reading them is no step.
#[test]
fn reading_back_changes_nothing() {
    let specs = [spec(500)];
    let grads = [Numbers(4).vec(500)];
    for (mut watched, mut alone) in every_path(&specs).into_iter().zip(every_path(&specs)) {
        for _ in 0..3 {
            watched.step(&grads);
            watched.states();
            watched.sums();
            watched.rates();
            watched.records();
            alone.step(&grads);
        }
        assert_eq!(bits(&watched.params()), bits(&alone.params()), "{}", watched.path());
        assert_eq!(watched.states(), alone.states(), "{}", watched.path());
    }
}
