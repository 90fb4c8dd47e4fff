//! Tests of failures: a device that is lost in the middle of a run, memory that runs out while building, a mistake in the caller's own pass, and a
//! readback that does not arrive. Each is an `Err` that names the cause, never a hang or a panic. Whatever can continue does so, with nothing lost or
//! half done.
//!
//! Each of these faults was introduced by hand once and made a test fail: no probe in `scoped`, no probe after a failed readback, and an unmap
//! outside of its error scope. (A ring past 2^32 steps is tested beside the optimizers, where the counter can be set.)

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use wgpu_optim_conformance as conformance;

use wgpu_optim::{Averaging, Error, ErrorKind, Gpu, Group, OptimizerBuilder, Records, Regime, Rule, wgpu};
use wgpu_optim_conformance::run::{GpuRun, Run, Setup, Spec, bits, devices, gpu_run_with};
use wgpu_optim_conformance::{
    Kernel, assert_refused, assert_says, download, step, storage, submit, submit_pass, upload,
};

fn specs() -> Vec<Spec> {
    vec![Spec::new(Rule::sgd(), Regime::fixed(0.5), vec![vec![1.0; 8]])]
}

fn grads() -> Vec<Vec<f32>> {
    vec![vec![1.0; 8]]
}

/// Opens two devices on every adapter: one by this crate, and one from a caller's device, for which the crate has no lost callback.
fn fresh_devices() -> Vec<(String, Gpu)> {
    let mut found = Vec::new();
    for adapter in pollster::block_on(Gpu::adapters(None)) {
        let ours = pollster::block_on(Gpu::open(&adapter)).expect("opens");
        let (device, queue) =
            pollster::block_on(adapter.request_device(&Default::default())).expect("the default limits");
        let theirs = Gpu::from_parts(device, queue);
        found.push((format!("{}, ours", ours.describe()), ours));
        found.push((format!("{}, the caller's", theirs.describe()), theirs));
    }
    found
}

/// Asserts that the error names a lost device, its consequences and the remedy.
#[track_caller]
fn assert_lost(error: Option<Error>, what: &str) {
    match error {
        Some(error) if error.kind() == ErrorKind::DeviceLost => {
            assert_says(error, &["device is lost", "half done", "build a new optimizer"]);
        }
        other => panic!("{what}: {other:?} instead of a lost device"),
    }
}

/// Returns a run with an average on this device, after one step.
fn averaged_run(gpu: &Gpu) -> GpuRun {
    let mut specs = specs();
    specs[0].averaging = Averaging::polynomial_decay();
    let mut run = gpu_run_with(gpu, &specs, Setup::default());
    run.step(&grads());
    run
}

/// Returns the error of every call on a lost device.
fn errors_of_every_call(gpu: &Gpu, run: &mut GpuRun) -> Vec<(&'static str, Option<Error>)> {
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let optimizer = &mut run.optimizer;
    vec![
        ("a step", optimizer.encode_step(&mut encoder).err()),
        ("an exchange", optimizer.encode_swap_averages(&mut encoder).err()),
        ("a check", gpu.check_alive().err()),
        ("a drain that does not wait", optimizer.try_drain_records().err()),
        ("a drain", pollster::block_on(optimizer.drain_records()).err()),
        ("resume", pollster::block_on(optimizer.resume()).err()),
        ("states", pollster::block_on(optimizer.read_states()).err()),
        ("sums", pollster::block_on(optimizer.read_sums()).err()),
        ("averages", pollster::block_on(optimizer.read_averages(0)).err()),
        ("rates", pollster::block_on(gpu.read_buffer::<f32>("rates", optimizer.learning_rates())).err()),
    ]
}

/// How the loss is noticed first.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Noticed {
    Draining,
    DrainingWithoutWaiting,
    /// Drains without waiting, after recording and submitting a step each time.
    Stepping,
    /// The lost callback, which runs at the next poll. A caller's device has none.
    Polling,
}

#[test]
fn a_device_destroyed_in_the_middle_of_a_run_is_an_error_everywhere() {
    for noticed in [Noticed::Draining, Noticed::DrainingWithoutWaiting, Noticed::Stepping, Noticed::Polling] {
        for (name, gpu) in fresh_devices() {
            if noticed == Noticed::Polling && !name.ends_with("ours") {
                continue;
            }
            let what = format!("{name}, {noticed:?}");
            let mut run = averaged_run(&gpu);
            run.write_grads(&grads());
            for _ in 0..20 {
                step(&gpu, &run.optimizer);
            }
            // A readback of records is under way.
            assert_eq!(run.optimizer.try_drain_records(), Ok(None), "{what}");
            step(&gpu, &run.optimizer);
            gpu.device().destroy();
            let told = match noticed {
                Noticed::Draining => pollster::block_on(run.optimizer.drain_records()).err(),
                Noticed::DrainingWithoutWaiting => (0..10_000).find_map(|_| {
                    std::thread::sleep(Duration::from_millis(1));
                    run.optimizer.try_drain_records().err()
                }),
                Noticed::Stepping => (0..10_000).find_map(|_| {
                    std::thread::sleep(Duration::from_millis(1));
                    let mut encoder = gpu.device().create_command_encoder(&Default::default());
                    let recorded = run.optimizer.encode_step(&mut encoder);
                    gpu.queue().submit([encoder.finish()]);
                    recorded.err().or_else(|| run.optimizer.try_drain_records().err())
                }),
                Noticed::Polling => {
                    // The result of the poll itself depends on the backend.
                    let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
                    gpu.check_alive().err()
                }
            };
            if name.ends_with("the caller's") {
                // Without a callback, a probe detects the loss.
                let is_found_out = told.as_ref().is_some_and(|error| error.to_string().contains("takes no more work"));
                assert!(is_found_out, "{what}: {told:?}");
            }
            assert_lost(told, &what);
            // From now on every call fails, and nothing more is recorded.
            for (call, error) in errors_of_every_call(&gpu, &mut run) {
                assert_lost(error, &format!("{what}, {call}"));
            }
        }
    }
}

/// After the caller has reported a loss, every call returns the caller's message and nothing is recorded.
#[test]
fn a_device_that_the_caller_calls_lost_is_lost_from_then_on() {
    for (name, gpu) in fresh_devices() {
        let buffer = upload(&gpu, &[1.0; 8]);
        let mut run = averaged_run(&gpu);
        let after = bits(&run.params());
        gpu.mark_lost("unplugged");
        gpu.mark_lost("and again");
        let lost = gpu.check_alive().expect_err("lost");
        assert_eq!(lost.kind(), ErrorKind::DeviceLost);
        assert_says(&lost, &["unplugged", "build a new optimizer"]);
        for (call, error) in errors_of_every_call(&gpu, &mut run) {
            assert_eq!(error, Some(lost.clone()), "{name}, {call}");
        }
        assert!(!run.optimizer.averages_are_swapped());
        submit(&gpu, |encoder| {
            let _ = run.optimizer.encode_step(encoder);
        });
        assert_eq!(bits(&run.params()), after, "{name}: nothing was recorded");
        let group = Group::new("all").tensor("w", buffer.slice(..16), buffer.slice(16..));
        assert_eq!(OptimizerBuilder::new(Rule::sgd()).group(group).build(&gpu).err(), Some(lost), "{name}");
    }
}

#[test]
fn building_on_a_destroyed_device_is_an_error() {
    for (name, gpu) in fresh_devices() {
        let (w, g) = (upload(&gpu, &[1.0; 8]), upload(&gpu, &[1.0; 8]));
        let builder = OptimizerBuilder::new(Rule::sgd()).group(Group::new("all").tensor("w", w.slice(..), g.slice(..)));
        gpu.device().destroy();
        assert_lost(builder.build(&gpu).err(), &name);
        assert_lost(pollster::block_on(gpu.read_buffer::<f32>("w", &w)).err(), &name);
    }
}

/// Runs one ignored test of this binary in a process with a limit on its address space.
fn in_a_small_process(test: &str, kibibytes: u64) {
    let this = std::env::current_exe().expect("a test binary");
    let output = Command::new("sh")
        .arg("-c")
        .arg(format!("ulimit -v {kibibytes} && exec \"$0\" \"$@\""))
        .arg(this)
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("WGPU_BACKEND", "vulkan")
        .output()
        .expect("a shell");
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complaints}");
    assert!(said.contains("1 passed"), "{said}{complaints}");
}

const GIB: u64 = 1 << 30;

/// The memory of a software driver is that of the process.
#[cfg(target_os = "linux")]
#[test]
fn memory_that_runs_out_while_building_is_an_error_and_the_device_goes_on() {
    let software = |gpu: &&Gpu| {
        let info = gpu.device().adapter_info();
        (info.backend, info.device_type) == (wgpu::Backend::Vulkan, wgpu::DeviceType::Cpu)
    };
    if devices().iter().any(|gpu| software(&gpu)) {
        in_a_small_process("faults::out_of_memory", 12 * GIB / 1024);
    }
}

/// The tensors fit into memory, their momentum does not.
#[test]
#[ignore = "wants a process that has 12 GiB of addresses"]
fn out_of_memory() {
    let gpu = &devices()[0];
    let size = gpu.device().limits().max_buffer_size.min(2 * GIB - 1) / 16 * 16;
    let huge = || Ok::<_, Error>(storage(gpu, size, wgpu::BufferUsages::empty()));
    let small = upload(gpu, &[0.25; 8]);
    let mut buffers = Vec::new();
    // Allocates until the caller's own buffers no longer fit, then drops the last ones, so that a little memory is free.
    while let Ok(buffer) = gpu.scoped("the caller's", huge) {
        buffers.push(buffer);
        assert!(buffers.len() < 100, "memory without end");
    }
    let keep = (buffers.len() - 1) / 2 * 2;
    assert!(keep >= 2, "{} buffers fit", buffers.len());
    buffers.truncate(keep);
    gpu.device().poll(wgpu::PollType::Poll).expect("polls");
    let mut group = Group::new("huge").tensor("small", small.slice(..16), small.slice(16..));
    for (i, pair) in buffers.chunks(2).enumerate() {
        group = group.tensor(format!("{i}"), pair[0].slice(..), pair[1].slice(..));
    }
    let builder = OptimizerBuilder::new(Rule::sgdm(0.9)).group(group);
    let error = assert_refused(builder.build(gpu), &["the optimizer's buffers"]);
    let is_of_memory = error.to_string().to_lowercase().contains("memory");
    assert!(error.kind() == ErrorKind::DeviceRefused && is_of_memory, "{error}");
    // The caller's data has not changed, and the device still works.
    assert_eq!(download(gpu, &small, 8), [0.25; 8]);
    let mut run = gpu_run_with(gpu, &specs(), Setup::default());
    run.step(&grads());
    assert_eq!(run.params(), [[0.5; 8]]);
    assert_eq!(run.records().records.len(), 1);
}

/// The caller's error scope receives the error. The step in the same encoder has no effect, and later steps work.
#[test]
fn a_mistake_in_the_callers_own_pass_is_the_callers() {
    for gpu in &devices() {
        let new = || gpu_run_with(gpu, &specs(), Setup::default());
        let (mut run, mut undisturbed) = (new(), new());
        for run in [&mut run, &mut undisturbed] {
            run.step(&grads());
        }
        let (before, states) = (bits(&run.params()), run.states());
        let scope = gpu.device().push_error_scope(wgpu::ErrorFilter::Validation);
        submit(gpu, |encoder| {
            assert_eq!(run.optimizer.encode_step(encoder), Ok(()));
            // A dispatch without a pipeline.
            encoder.begin_compute_pass(&Default::default()).dispatch_workgroups(1, 1, 1);
        });
        let error = pollster::block_on(scope.pop()).expect("a mistake").to_string();
        assert!(error.contains("pipeline must be set"), "{error}");
        assert!(bits(&run.params()) == before, "{}", run.path());
        assert_eq!(run.states(), states, "{}", run.path());
        for run in [&mut run, &mut undisturbed] {
            run.step(&grads());
        }
        let what = run.path();
        assert!(bits(&run.params()) == bits(&undisturbed.params()), "{what}");
        let records = run.records();
        assert_eq!(records, undisturbed.records(), "{what}");
        assert_eq!((records.records.len(), records.lost_steps), (2, 0), "{what}");
    }
}

/// A kernel that takes some tenths of a second.
const LONG: &str = "
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@compute @workgroup_size(64) fn long(@builtin(global_invocation_id) id: vec3<u32>) {
    var y = x[id.x & 63u];
    for (var i = 0u; i < 10000u; i++) { y = y * 0.999 + 0.001; }
    x[id.x & 63u] = y;
}
";

/// With a time-out of zero, a readback after long work fails, whether or not the call waits. When the work is done, all records are there.
#[test]
fn a_readback_that_does_not_come_in_time_is_an_error_and_loses_nothing() {
    // This test opens its own devices, since other threads that wait for a shared one would delay the waits here.
    for gpu in &conformance::adapters() {
        let hurried = gpu.clone().with_readback_timeout(Duration::ZERO);
        let mut run = gpu_run_with(&hurried, &specs(), Setup::default());
        let (mut late, mut records) = (Vec::new(), Vec::new());
        let mut note = |told: Result<Option<Records>, Error>| match told {
            Ok(more) => records.extend(more.unwrap_or_default().records),
            Err(error) => late.push(error),
        };
        let mut steps = 0;
        let long = Kernel::new(gpu, LONG, &[&upload(gpu, &[1.0; 64])]);
        // OpenGL runs the work during the submit. On the other drivers the work may be done before the first poll on a busy machine.
        let comes_late = gpu.device().adapter_info().backend == wgpu::Backend::Vulkan;
        for blocking in [true, false] {
            for _ in 0..if comes_late { 200 } else { 20 } {
                submit_pass(gpu, |pass| long.dispatch_many(pass, 1024));
                run.write_grads(&grads());
                step(gpu, &run.optimizer);
                steps += 1;
                let told = if blocking {
                    vec![pollster::block_on(run.optimizer.drain_records()).map(Some)]
                } else {
                    // The first call returns what was started before, and starts another copy.
                    let first = run.optimizer.try_drain_records();
                    vec![first, run.optimizer.try_drain_records()]
                };
                gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("the work gets done");
                let failed = told.iter().any(Result::is_err);
                told.into_iter().for_each(&mut note);
                if failed {
                    break;
                }
            }
        }
        if comes_late {
            assert!(late.len() >= 2, "{}: {late:?}", gpu.describe());
        }
        for error in late {
            assert_eq!(error.kind(), ErrorKind::Readback);
            assert_says(error, &["records", "time-out", "within 0ns", "with_readback_timeout"]);
        }
        for _ in 0..10_000 {
            if let Ok(Some(more)) = run.optimizer.try_drain_records() {
                assert_eq!(more.lost_steps, 0);
                records.extend(more.records);
            }
            if records.len() == steps {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(records.len(), steps, "{}", gpu.describe());
        assert_eq!(run.params(), [[1.0 - 0.5 * steps as f32; 8]]);
    }
}

/// Readbacks succeed while other threads poll the device. A poll may take the result that another thread waits for, and delivers it a little later.
#[test]
fn other_threads_may_poll_the_device_while_a_readback_is_waited_for() {
    for gpu in &conformance::adapters() {
        let buffer = upload(gpu, &[1.0; 64]);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        // A failed poll shows up in the readbacks.
                        let _ = gpu.device().poll(wgpu::PollType::Poll);
                    }
                });
            }
            let failed = (0..2000).find_map(|_| {
                let read = gpu.read_buffer::<f32>("a buffer", &buffer);
                pollster::block_on(read).err()
            });
            done.store(true, Ordering::Relaxed);
            assert!(failed.is_none(), "{}: {failed:?}", gpu.describe());
        });
    }
}

#[test]
fn a_time_out_can_be_chosen() {
    let gpu = devices()[0].clone();
    assert_eq!(gpu.readback_timeout(), Duration::from_secs(30));
    // A duration longer than any clock can represent.
    let patient = gpu.with_readback_timeout(Duration::MAX);
    assert_eq!(patient.readback_timeout(), Duration::MAX);
    let mut run = gpu_run_with(&patient, &specs(), Setup::default());
    run.step(&grads());
    assert_eq!(run.records().records.len(), 1);
}
