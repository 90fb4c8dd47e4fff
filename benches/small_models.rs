//! Small models: a step in one dispatch compared with the same step in four. They take turns, so that other load on the machine affects both. The
//! table has the time of a step among 64 in one submit, of a step in its own submit including the wait for it, and of `build` on a new device.
//! Times are medians of the rounds. `cargo bench --bench small_models`. wgpu's variables choose the driver (docs/performance.md).

use std::time::{Duration, Instant};

use wgpu_optim::gpu::{Partials, Tuning};
use wgpu_optim::{Gpu, Regime, Rule};
use wgpu_optim_conformance::bench::device::{Device, DeviceJob};
use wgpu_optim_conformance::bench::measure::Bench;
use wgpu_optim_conformance::bench::workload::{Spec, many_tensors, one_tensor, regimes};

const POWERS: [u32; 5] = [8, 10, 12, 14, 16];
const ROUNDS: usize = 15;
/// Steps of a round.
const STEPS: usize = 64;

fn main() {
    // `cargo bench -- --test` only checks that the benchmark runs.
    let is_test = std::env::args().any(|argument| argument == "--test");
    let (powers, rounds) = if is_test { (&POWERS[..1], 1) } else { (&POWERS[..], ROUNDS) };
    for adapter in pollster::block_on(Gpu::adapters(None)) {
        let open = || pollster::block_on(Gpu::open(&adapter)).expect("an adapter opens");
        // The benchmark runs with the device's geometry, and with the geometry of every device in a browser.
        let in_browsers = Tuning {
            workgroup_size: 256,
            quads_per_invocation: 4,
            partials: Partials::PerWorkgroup,
            finish_workgroup_size: 256,
        };
        for (name, tuning) in [("", open().tuning()), (", geometry of browsers", in_browsers)] {
            println!("\n{}{name}: µs for a step in four dispatches → in one\n", open().describe());
            of_device(|| open().with_tuning(tuning).expect("a geometry that devices have"), powers, rounds);
        }
    }
}

fn of_device(open: impl Fn() -> Gpu + Copy, powers: &[u32], rounds: usize) {
    let gpu = open();
    println!("| optimizer | parameters | 64 in a submit | alone | build, ms |\n|---|---|---|---|---|");
    let seesaw = regimes()[2];
    for (name, rule, regime) in [
        ("SGD, Seesaw", Rule::sgd(), seesaw),
        ("SGDM, Seesaw", Rule::sgdm(0.9), seesaw),
        ("AdamW, fixed rate", Rule::adamw(), Regime::fixed(1e-7)),
    ] {
        for &power in powers {
            let tensors = one_tensor(1 << power);
            let spec = Spec { tensors, ..Spec::new(rule, regime, 1 << power) };
            row(&gpu, open, name, &format!("2^{power}"), &spec, rounds);
        }
    }
    for (power, odd) in [(12, false), (12, true), (14, false), (14, true)] {
        let tensors = many_tensors(1 << power, odd).expect("enough for every tensor");
        let name = format!("2^{power} in 200 tensors{}", if odd { ", odd" } else { "" });
        let spec = Spec { tensors, ..Spec::new(Rule::sgd(), seesaw, 1 << power) };
        row(&gpu, open, "SGD, Seesaw", &name, &spec, rounds);
    }
}

/// Measures four dispatches and one in turn, and prints one row of the table.
fn row(gpu: &Gpu, open: impl Fn() -> Gpu, name: &str, size: &str, spec: &Spec, rounds: usize) {
    let elements = spec.tensors.iter().flatten().sum();
    let mut memory = Device::new(gpu, elements).expect("room on the device");
    let specs = [true, false].map(|separate_passes| Spec { separate_passes, ..spec.clone() });
    let mut jobs: Vec<DeviceJob> = specs.iter().map(|spec| memory.step(spec).expect("builds")).collect();
    let mut alone: Vec<DeviceJob> =
        specs.iter().map(|spec| memory.lone_step(spec).expect("builds").expect("steps are submitted")).collect();
    if !matches!(&jobs[1], DeviceJob::Step(optimizer) if optimizer.dispatches().len() == 1) {
        // The model is too large for one dispatch: see `MOST_ELEMENTS` in src/gpu/whole_step.rs.
        return;
    }
    let mut times = [(); 6].map(|()| Vec::new());
    for _ in 0..rounds {
        for at in 0..2 {
            for (kind, jobs) in [&mut jobs, &mut alone].into_iter().enumerate() {
                times[2 * kind + at].push(memory.time(&mut jobs[at], STEPS).expect("the device lives").wall);
            }
        }
    }
    for _ in 0..rounds.min(3) {
        for at in 0..2 {
            let mut memory = Device::new(&open(), elements).expect("room on the device");
            let start = Instant::now();
            memory.step(&specs[at]).expect("builds");
            times[4 + at].push(start.elapsed());
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64()
    };
    let [four, one, four_alone, one_alone, four_built, one_built] = times.map(|mut times| median(&mut times));
    let us = |seconds: f64| 1e6 * seconds / STEPS as f64;
    println!(
        "| {name} | {size} | {:.1} → {:.1} | {:.1} → {:.1} | {:.0} → {:.0} |",
        us(four),
        us(one),
        us(four_alone),
        us(one_alone),
        1e3 * four_built,
        1e3 * one_built
    );
}
