//! Tests of the calls of a step: a step is only recorded, in any encoder or pass of the caller, and allocates nothing itself. The learning rates are
//! a buffer that the caller's kernels can read. Records are delivered on request, and lost ones are counted.
//!
//! Each of these faults was introduced by hand once and made a test fail: a ring that is one step too small, and lost steps that are not counted.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use wgpu_optim::{AutoSgd, Averaging, Gpu, Group, OptimizerBuilder, Records, Regime, Rule, wgpu};
use wgpu_optim_conformance::run::{
    CpuRun, GpuRun, Run, Setup, Spec, bits, devices, every_path_with, gpu_run_with, packed,
};
use wgpu_optim_conformance::{Kernel, Numbers, download, drain, filled, noise, submit, submit_pass, tensors, upload};

use crate::helpers::pairs;

fn spec(len: usize) -> Spec {
    Spec::new(Rule::sgd(), Regime::seesaw(), tensors(len as u64, &[len]))
}

/// All state between steps is on the device: k steps in one encoder, in one pass and in k submits have the same results. The cases include telemetry,
/// which measures each step, and streams that take turns.
#[test]
fn steps_in_one_submit_are_steps() {
    let momentum = Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(7, &[64])).named("momentum");
    let watched = Spec::new(Rule::sgd(), Regime::fixed(1.0), tensors(8, &[513]));
    let streams = AutoSgd { initial_rate: Some(0.25), rounds: 4, ..AutoSgd::default() };
    let streams = Spec::new(Rule::sgd(), Regime::AutoSgd(streams), tensors(9, &[1, 3, 4, 5, 61, 300]));
    for (what, specs, count) in [
        ("two groups", vec![spec(1003), momentum], 5),
        ("telemetry", vec![Spec { telemetry: true, trust: Some(0.1), ..watched }], 3),
        ("streams", vec![streams], 17),
    ] {
        let grads = noise(&specs, 3);
        for gpu in &devices() {
            let finish = |mut run: GpuRun| {
                run.assert_surroundings_untouched();
                (bits(&run.params()), run.states(), run.records())
            };
            let new = || {
                let mut run = GpuRun::new(gpu, &specs, packed(&specs, 3, 2));
                run.write_grads(&grads);
                run
            };
            let apart = |steps: usize| {
                let mut run = new();
                (0..steps).for_each(|_| run.step(&grads));
                finish(run)
            };
            let (one_encoder, one_pass) = (new(), new());
            submit(gpu, |encoder| {
                (0..count).for_each(|_| one_encoder.optimizer.encode_step(encoder).expect("alive"));
            });
            submit_pass(gpu, |pass| {
                (0..count).for_each(|_| one_pass.optimizer.encode_step_in(pass).expect("alive"));
            });
            let expected = apart(count);
            assert!(expected == finish(one_encoder), "{}, {what}: one encoder", gpu.describe());
            assert!(expected == finish(one_pass), "{}, {what}: one pass", gpu.describe());
            assert!(expected != apart(count - 1), "{}, {what}: one step less is not the same", gpu.describe());
            let norms = expected.2.tensors.iter().map(|record| record.parameter_norm.to_bits());
            assert_eq!(norms.collect::<BTreeSet<_>>().len(), expected.2.tensors.len(), "{what}: each has its own norm");
        }
    }
}

/// A step that is recorded and never submitted changes nothing.
#[test]
fn recording_alone_changes_nothing() {
    for gpu in &devices() {
        let mut run = gpu_run_with(gpu, &[spec(100)], Setup::default());
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

/// One pass of the caller runs a gradient kernel, a step and a kernel that reads the learning rate, three times over, without the host in between.
#[test]
fn a_step_in_the_callers_pass_between_the_callers_kernels() {
    for gpu in &devices() {
        let w = upload(gpu, &[0.25; 64]);
        let g = upload(gpu, &[0.0; 64]);
        let out = upload(gpu, &[0.0; 64]);
        let second = Group::new("second").regime(Regime::fixed(0.5));
        let mut optimizer = OptimizerBuilder::new(Rule::sgd())
            .group(Group::new("first").tensor("a", w.slice(..128), g.slice(..128)))
            .group(second.tensor("b", w.slice(128..256), g.slice(128..256)))
            .build(gpu)
            .expect("builds");
        let gradient = Kernel::new(gpu, GRADIENT, &[&w, &g]);
        let scale = Kernel::new(gpu, SCALE_BY_RATE, &[optimizer.learning_rates(), &out]);
        submit_pass(gpu, |pass| {
            for _ in 0..3 {
                gradient.dispatch(pass);
                optimizer.encode_step_in(pass).expect("alive");
                scale.dispatch(pass);
            }
        });
        // In the second group each step multiplies w - 1 by 3/4, which is exact.
        let after = download(gpu, &w, 64);
        assert_eq!(after[32..], [1.0 - 0.75 * 0.75f32.powi(3); 32], "{}", gpu.describe());
        // The first group used the same gradient kernel three times.
        let records = drain(&mut optimizer).records;
        let norms: Vec<f32> = records.iter().filter(|record| record.group == 0).map(|record| record.norm).collect();
        assert!(norms.len() == 3 && norms[0] > norms[1] && norms[1] > norms[2], "{norms:?}");
        let expected: Vec<f32> = (0..64).map(|i| 1.5 * i as f32).collect();
        assert_eq!(download(gpu, &out, 64), expected, "{}", gpu.describe());
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
        assert!(optimizer.learning_rates().usage().contains(usage));
    }
}

/// The counter does count an allocation, so that comparing its counts is meaningful.
#[test]
fn an_allocation_is_counted() {
    let info = allocation_counter::measure(|| drop(std::hint::black_box(vec![1u8; 100])));
    assert_eq!((info.count_total, info.bytes_total), (1, 100));
}

/// Recording a step allocates exactly what wgpu allocates for the same calls, and iterating over the dispatches allocates nothing.
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
            let run = gpu_run_with(gpu, &specs, Setup::default());
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
                let [by_us, by_hand] = [by_us, by_hand].map(|info| (info.count_total, info.bytes_total));
                assert_eq!(by_us, by_hand, "{}", gpu.describe());
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

/// A step on the host allocates nothing on the caller's thread, except that rayon's queue takes a chunk of memory every 60-odd steps where blocks go
/// to other threads.
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
            let count = info.count_total;
            assert!(count <= chunks, "{lengths:?}, {averaging:?}: {count} allocations in 100 steps");
            assert_eq!(run.records().records.len(), 101);
        }
    }
}

/// The newest steps are always in the ring, for groups and for tensors. All older ones are counted as lost, once.
#[test]
fn a_ring_keeps_the_newest_steps_and_counts_the_others() {
    let specs = [spec(10), Spec { telemetry: true, ..spec(20).named("second") }];
    for ring in [1, 3, 4, 64] {
        for mut run in every_path_with(&specs, Setup { record_steps: Some(ring), ..Setup::default() }) {
            assert_eq!(run.records(), Records::default());
            let mut taken = 0;
            for steps in [10u32, 2, 1, 5, 0, 3] {
                (0..steps).for_each(|_| run.step(&filled(&specs, 1.0)));
                taken += u64::from(steps);
                let records = run.records();
                // A ring holds at least two steps.
                let kept = steps.min(ring.max(2));
                let what = format!("{}, {steps} steps in a ring of {ring}", run.path());
                assert_eq!(records.lost_steps, u64::from(steps - kept), "{what}");
                let newest = || taken - u64::from(kept)..taken;
                let of_groups: Vec<(u64, usize)> = newest().flat_map(|step| [(step, 0), (step, 1)]).collect();
                let found: Vec<_> = records.records.iter().map(|record| (record.step, record.group)).collect();
                assert_eq!(found, of_groups, "{what}");
                let found: Vec<_> = records.tensors.iter().map(|record| (record.step, record.tensor)).collect();
                assert_eq!(found, newest().map(|step| (step, 1)).collect::<Vec<_>>(), "{what}");
                assert_eq!(run.records(), Records::default(), "{what}: nothing is handed over twice");
            }
        }
    }
}

/// The first call only starts a copy, no call waits for one, and every record arrives exactly once.
#[test]
fn try_drain_delivers_without_waiting() {
    for gpu in &devices() {
        let mut run = gpu_run_with(gpu, &[spec(10)], Setup::default());
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
        // A copy from before this step is under way. The blocking drain returns the records of both.
        run.optimizer.try_drain_records().expect("alive");
        run.step(&grads);
        let rest: Vec<u64> = drain(&mut run.optimizer).records.iter().map(|record| record.step).collect();
        assert_eq!(rest, [4], "{}", gpu.describe());
    }
}

/// A drain that waits for the device yields to other futures and is woken later. A drain that is dropped while it waits loses nothing.
#[test]
fn a_drain_that_waits_holds_up_no_other_future() {
    // OpenGL runs the work during the submit.
    let vulkan = |gpu: &&Gpu| gpu.device().adapter_info().backend == wgpu::Backend::Vulkan;
    let gpus = devices();
    assert!(gpus.iter().any(|gpu| vulkan(&gpu)), "no Vulkan driver");
    for gpu in gpus.iter().filter(vulkan) {
        let specs = [spec(1 << 20)];
        let mut run = GpuRun::with(gpu, &specs, packed(&specs, 0, 0), |builder: OptimizerBuilder<_>| {
            builder.record_steps(1 << 14)
        });
        run.write_grads(&[Numbers(5).vec(1 << 20)]);
        let (mut taken, mut arrived) = (0, Vec::new());
        // Submits more work each time, until the device is still busy at the first poll.
        let mut submit_until = |run: &mut GpuRun, ask: &mut dyn FnMut(&mut GpuRun) -> bool| {
            let mut times = Vec::new();
            for steps in (0..13).map(|n| 1u64 << n) {
                let started = Instant::now();
                submit(gpu, |encoder| {
                    (0..steps).for_each(|_| run.optimizer.encode_step(encoder).expect("alive"));
                });
                taken += steps;
                let submitted = started.elapsed();
                if ask(run) {
                    return;
                }
                times.push((submitted, started.elapsed()));
            }
            // lavapipe sometimes waits for the previous submit within the next one, so that nothing is left to wait for.
            let (wait, all) = wait_in_submit(gpu, run);
            taken += STEPS_BEFORE_SUBMIT;
            assert!(
                wait > all / 2,
                "{}: no drain ever waited, and a submit of a copy took {wait:?} of {all:?}; steps submitted, and records arrived: {times:?}",
                gpu.describe()
            );
        };
        submit_until(&mut run, &mut |run| {
            let mut turns_of_others = 0;
            let mut drain = pin!(run.optimizer.drain_records());
            let both = poll_fn(|context| {
                let polled = drain.as_mut().poll(context);
                turns_of_others += u32::from(polled.is_pending());
                polled
            });
            arrived.extend(pollster::block_on(both).expect("alive").records);
            turns_of_others > 0
        });
        // Here another future is ready first, and the drain is dropped.
        submit_until(&mut run, &mut |run| {
            let mut drain = pin!(run.optimizer.drain_records());
            match drain.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => true,
                Poll::Ready(records) => {
                    arrived.extend(records.expect("alive").records);
                    false
                }
            }
        });
        let rest = drain(&mut run.optimizer);
        assert_eq!(rest.lost_steps, 0);
        arrived.extend(rest.records);
        let steps: Vec<u64> = arrived.iter().map(|record| record.step).collect();
        assert_eq!(steps, (0..taken).collect::<Vec<_>>(), "{}", gpu.describe());
    }
}

const STEPS_BEFORE_SUBMIT: u64 = 256;

/// Returns how long a submit of a copy takes after a submit of some steps, and how long all of the work takes.
fn wait_in_submit(gpu: &Gpu, run: &GpuRun) -> (Duration, Duration) {
    let copy = upload(gpu, &[0.0; 4]);
    let started = Instant::now();
    submit(gpu, |encoder| {
        (0..STEPS_BEFORE_SUBMIT).for_each(|_| run.optimizer.encode_step(encoder).expect("alive"));
    });
    let before = started.elapsed();
    submit(gpu, |encoder| encoder.copy_buffer_to_buffer(run.optimizer.learning_rates(), 0, &copy, 0, 4));
    let wait = started.elapsed() - before;
    download(gpu, &copy, 1);
    (wait, started.elapsed())
}

/// States, sums and rates can be read at any time, and reading them changes nothing.
#[test]
fn reading_back_changes_nothing() {
    let specs = [spec(500)];
    let grads = [Numbers(4).vec(500)];
    for (mut watched, mut alone) in pairs(&specs, &specs) {
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
