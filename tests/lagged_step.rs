//! Promises of `StepMode::Lagged`, on every path: with a fixed rate it is the two-pass step; the first step measures and moves
//! nothing; a gradient that is not finite touches neither parameters nor memory, bit for bit, at whatever step and place; any magnitude
//! has its norm; heads, tails and shared buffers are all there; two steps in one submit are two; a clip and the wrong call are refused.
//! (`tests/steps.rs` follows the oracle step by step, `tests/groups.rs` has the windows, `tests/encoding.rs` counts allocations.)
//!
//! Tried once by hand: undo_step without its memory loop, blocks not exchanged for the odd steps, SCALE_EXPONENT 79.

mod common;

use common::run::{
    CpuRun, GpuRun, Place, Run, Spec, alone, bits, devices, every_path,
    every_path_and_kind_in_mode, every_path_in_mode, packed, separate,
};
use common::{Numbers, kinds_of_partials};
use wgpu_optim::gpu::Tuning;
use wgpu_optim::{
    Error, Gpu, Group, OptimizerBuilder, Regime, Rule, Schedule, StepMode, WeightDecay,
};

fn specs(regimes: &[Regime], tensors: &[Vec<f32>]) -> Vec<Spec> {
    let mut specs = Vec::new();
    for rule in Rule::all() {
        for &regime in regimes {
            specs.push(
                Spec::new(rule, regime, tensors.to_vec()).named(format!("{rule:?} {regime:?}")),
            );
        }
    }
    specs
}

fn random_grads(specs: &[Spec], numbers: &mut Numbers) -> Vec<Vec<f32>> {
    specs
        .iter()
        .flat_map(|spec| &spec.tensors)
        .map(|tensor| numbers.vec(tensor.len()))
        .collect()
}

/// On the CPU both modes run the same code on each element; a device may contract products and sums differently in two kernels, by
/// one rounding a step.
#[test]
fn with_a_fixed_rate_it_is_the_two_pass_step() {
    let _alone = alone();
    let mut specs = specs(
        &[Regime::fixed(0.01)],
        &[Numbers(1).vec(203), Numbers(2).vec(5)],
    );
    specs[0].decay = WeightDecay::Coupled(0.1);
    specs[1].decay = WeightDecay::Decoupled(0.1);
    specs[3].maximize = true;
    let two_pass = every_path(&specs);
    let lagged = every_path_in_mode(&specs, StepMode::Lagged);
    for (mut two_pass, mut lagged) in two_pass.into_iter().zip(lagged) {
        let mut numbers = Numbers(3);
        for t in 0..7 {
            let grads = random_grads(&specs, &mut numbers);
            two_pass.step(&grads);
            lagged.step(&grads);
            let pairs = two_pass
                .params()
                .concat()
                .into_iter()
                .zip(lagged.params().concat());
            for (i, (a, b)) in pairs.enumerate() {
                let allowed = if two_pass.path() == "CPU path" {
                    0.0
                } else {
                    1e-6
                };
                assert!(
                    (a - b).abs() <= allowed,
                    "{}, step {t}, element {i}: {a} and {b}",
                    lagged.path()
                );
            }
        }
        // The norms, and what the record says of them, are those of the same gradients.
        let (a, b) = (two_pass.records().records, lagged.records().records);
        assert_eq!(a.len(), 7 * specs.len());
        for (a, b) in a.iter().zip(&b) {
            assert!((a.norm - b.norm).abs() <= 1e-5 * a.norm, "{a} but {b}");
            assert_eq!(
                (a.step, a.flags, a.learning_rate),
                (b.step, b.flags, b.learning_rate)
            );
        }
    }
}

/// The rate of a lagged step is that of the step before, schedule and all, and the first takes the schedule's first factor: a warm-up
/// that began at its peak would be none.
#[test]
fn a_schedule_holds_from_the_first_step() {
    let _alone = alone();
    let schedules = [
        Schedule::Constant,
        Schedule::WarmupCosine {
            warmup: 4,
            steps: 9,
            last: 0.1,
        },
        Schedule::InverseSqrt { warmup: 5 },
        Schedule::Step {
            every: 2,
            factor: 0.5,
        },
        Schedule::OneCycle {
            rise: 4,
            steps: 9,
            first: 0.125,
            last: 0.01,
        },
    ];
    let specs: Vec<Spec> = schedules
        .iter()
        .map(|&schedule| Spec {
            schedule,
            ..Spec::new(Rule::sgd(), Regime::fixed(0.5), vec![vec![1.0; 5]]).named(schedule.name())
        })
        .collect();
    let mut two_pass = CpuRun::new(&specs);
    for mut run in every_path_in_mode(&specs, StepMode::Lagged) {
        // Each step takes the rate that is there before it; the record has the one that holds after it.
        for t in 0..9 {
            let (before, rates) = (run.params(), run.rates());
            run.step(&vec![vec![1.0; 5]; specs.len()]);
            let after = run.params();
            for (group, rate) in rates.iter().enumerate() {
                let moved = before[group][0] - after[group][0];
                let what = format!("{}, {}, step {t}", run.path(), specs[group].name);
                assert!((moved - rate).abs() <= 1e-6, "{what}: {moved} not {rate}");
            }
            if t == 0 {
                two_pass.step(&vec![vec![1.0; 5]; specs.len()]);
                let first = two_pass.rates();
                for (group, (rate, first)) in rates.iter().zip(&first).enumerate() {
                    let what = format!("{}, {}", run.path(), specs[group].name);
                    assert!((rate - first).abs() <= 1e-7, "{what}: {rate} not {first}");
                }
                two_pass = CpuRun::new(&specs);
            }
        }
    }
}

#[test]
fn the_first_step_measures_and_moves_nothing() {
    let _alone = alone();
    let specs = specs(
        &[Regime::seesaw(), Regime::norm_ratio()],
        &[Numbers(4).vec(77)],
    );
    for mut run in every_path_in_mode(&specs, StepMode::Lagged) {
        let mut numbers = Numbers(5);
        let before = run.params();
        run.step(&random_grads(&specs, &mut numbers));
        // Equal as numbers: a zero may change its sign.
        assert_eq!(run.params(), before, "{}", run.path());
        let rates = run.rates();
        assert!(rates.iter().all(|&rate| rate > 0.0), "{rates:?}");
        run.step(&random_grads(&specs, &mut numbers));
        for (after, before) in run.params().iter().zip(&before) {
            assert_ne!(after, before, "{}: nothing moved", run.path());
        }
    }
}

/// A run with bad gradients thrown in ends, bit for bit, where the run without them ends.
#[test]
fn a_gradient_that_is_not_finite_leaves_no_trace() {
    let _alone = alone();
    let len = 131;
    let specs = specs(
        &[Regime::seesaw(), Regime::fixed(0.01)],
        &[Numbers(6).vec(len)],
    );
    let bad_values = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let clean_runs = every_path_in_mode(&specs, StepMode::Lagged);
    let bad_runs = every_path_in_mode(&specs, StepMode::Lagged);
    for (mut clean, mut bad) in clean_runs.into_iter().zip(bad_runs) {
        let mut numbers = Numbers(7);
        let mut skipped = 0;
        for t in 0..6 {
            // Before the first step too, and one or two in a row, so that both parities are met.
            for k in 0..=t % 2 {
                let mut grads = random_grads(&specs, &mut numbers);
                let tensor = (3 * t + k) % grads.len();
                let at = [0, len / 2, len - 1][(t + k) % 3];
                grads[tensor][at] = bad_values[(t + k) % 4];
                let before = bits(&bad.params());
                bad.step(&grads);
                skipped += 1;
                assert_eq!(
                    bits(&bad.params()),
                    before,
                    "{}, step {t}: element {at} of tensor {tensor}",
                    bad.path()
                );
                let record = bad
                    .records()
                    .records
                    .into_iter()
                    .next_back()
                    .expect("a record");
                assert!(record.flags.skipped());
                let found = record.nonfinite.expect("a place");
                assert_eq!(
                    (found.tensor, found.element, found.count),
                    (tensor, at as u64, 1),
                    "{}",
                    bad.path()
                );
            }
            let grads = random_grads(&specs, &mut numbers);
            clean.step(&grads);
            bad.step(&grads);
            bad.records();
            assert_eq!(
                bits(&bad.params()),
                bits(&clean.params()),
                "{}, step {t}",
                bad.path()
            );
        }
        assert_eq!(bits(&[bad.rates()]), bits(&[clean.rates()]));
        assert_eq!(skipped, 9);
        for (clean, bad) in clean.states().iter().zip(bad.states()) {
            assert_eq!(bad.skipped, skipped);
            assert_eq!(bad.steps_low, clean.steps_low + skipped);
            assert_eq!(
                bad.mean_square_mantissa.to_bits(),
                clean.mean_square_mantissa.to_bits()
            );
        }
    }
}

/// Bad parameters before the first step are found too, and stay.
#[test]
fn parameters_that_are_not_finite_hold_everything_back() {
    let _alone = alone();
    let mut tensor = Numbers(8).vec(40);
    tensor[17] = f32::INFINITY;
    let specs = [Spec::new(
        Rule::sgd(),
        Regime::seesaw(),
        vec![tensor.clone()],
    )];
    for mut run in every_path_in_mode(&specs, StepMode::Lagged) {
        for _ in 0..3 {
            run.step(&[Numbers(9).vec(40)]);
            assert_eq!(
                bits(&run.params()),
                bits(std::slice::from_ref(&tensor)),
                "{}",
                run.path()
            );
        }
        assert!(
            run.records()
                .records
                .iter()
                .all(|record| record.flags.skipped())
        );
    }
}

#[test]
fn any_magnitude_has_its_norm() {
    let _alone = alone();
    let len = 1000;
    let shape = Numbers(10).vec(len);
    let unit = shape
        .iter()
        .map(|x| f64::from(*x).powi(2))
        .sum::<f64>()
        .sqrt();
    for exponent in [-120, -100, -64, -41, -40, -39, 0, 39, 40, 41, 63, 100, 120] {
        let scale = 2f64.powi(exponent);
        let grads: Vec<f32> = shape
            .iter()
            .map(|x| (f64::from(*x) * scale) as f32)
            .collect();
        let specs = [Spec::new(
            Rule::sgd(),
            Regime::fixed(1e-30),
            vec![vec![1.0; len]],
        )];
        for mut run in every_path_in_mode(&specs, StepMode::Lagged) {
            run.step(std::slice::from_ref(&grads));
            let norm = f64::from(run.records().records[0].norm);
            assert!(
                (norm - scale * unit).abs() <= 1e-6 * scale * unit,
                "{}: 2^{exponent}: {norm:e} instead of {:e}",
                run.path(),
                scale * unit
            );
        }
    }
}

/// Squares are added up at three scales, and the invocations choose: here some have what is above the border between two, and others
/// only what is below it.
#[test]
fn a_norm_on_the_border_of_two_scales_is_right() {
    let _alone = alone();
    let len = 1000;
    for border in [2f64.powi(-40), 2f64.powi(40)] {
        for above in [1, 3, 8] {
            let grads: Vec<f32> = (0..len)
                .map(|i| {
                    let share = if i / 4 % 16 < above { 1.5 } else { 0.9 };
                    (share * border) as f32
                })
                .collect();
            let exact = grads
                .iter()
                .map(|g| f64::from(*g).powi(2))
                .sum::<f64>()
                .sqrt();
            let specs = [Spec::new(
                Rule::sgd(),
                Regime::fixed(1e-30),
                vec![vec![1.0; len]],
            )];
            for mut run in every_path_and_kind_in_mode(&specs, StepMode::Lagged) {
                run.step(std::slice::from_ref(&grads));
                let norm = f64::from(run.records().records[0].norm);
                assert!(
                    (norm - exact).abs() <= 1e-6 * exact,
                    "{}: {border:e}, {above}: {norm:e} instead of {exact:e}",
                    run.path(),
                );
            }
        }
    }
}

/// Rescaling the loss by a power of two changes no parameter, bit for bit.
#[test]
fn the_scale_of_the_loss_does_not_matter() {
    let _alone = alone();
    let mut specs = specs(&[Regime::seesaw()], &[Numbers(11).vec(333)]);
    // AdamW's ε has a size.
    specs.retain(|spec| spec.rule != Rule::adamw());
    for scale in [2f32.powi(-90), 2f32.powi(-41), 2f32.powi(60)] {
        let plain = every_path_in_mode(&specs, StepMode::Lagged);
        let scaled = every_path_in_mode(&specs, StepMode::Lagged);
        for (mut plain, mut scaled) in plain.into_iter().zip(scaled) {
            let mut numbers = Numbers(12);
            for _ in 0..5 {
                let grads = random_grads(&specs, &mut numbers);
                let more: Vec<Vec<f32>> = grads
                    .iter()
                    .map(|g| g.iter().map(|g| scale * g).collect())
                    .collect();
                plain.step(&grads);
                scaled.step(&more);
            }
            assert_eq!(
                bits(&plain.params()),
                bits(&scaled.params()),
                "{}",
                plain.path()
            );
            assert_ne!(bits(&plain.params())[0], bits(&specs[0].tensors)[0]);
        }
    }
}

/// Every way to lie in memory, against the CPU path, and nothing else in the buffers is touched.
#[test]
fn layouts_agree_with_the_cpu_path() {
    let _alone = alone();
    let lengths = [1, 2, 3, 4, 5, 31, 32, 33, 127, 130, 515];
    let tensors: Vec<Vec<f32>> = lengths
        .iter()
        .map(|&len| Numbers(len as u64).vec(len))
        .collect();
    let specs = specs(&[Regime::seesaw()], &tensors);
    let total: usize = lengths.iter().sum();
    // Parameters and gradients side by side in one buffer.
    let mut at = 0;
    let together: Vec<Place> = specs
        .iter()
        .flat_map(|spec| &spec.tensors)
        .map(|tensor| {
            at += 2 * tensor.len() + 3;
            Place {
                params: (0, at - 2 * tensor.len() - 3),
                grads: (0, at - tensor.len()),
            }
        })
        .collect();
    let mut shifted = packed(&specs, 2, 1);
    for place in &mut shifted {
        place.grads.1 += 3;
    }
    let layouts = [
        ("packed", packed(&specs, 0, 0)),
        ("from 3, apart", packed(&specs, 3, 2)),
        ("gradients shifted", shifted),
        ("together", together),
        ("separate", separate(&specs)),
    ];
    assert!(total > 800);
    for gpu in devices() {
        let small = kinds_of_partials(gpu).map(|partials| {
            let small = Tuning {
                workgroup_size: 16,
                quads_per_invocation: 3,
                partials,
                finish_workgroup_size: 4,
            };
            gpu.clone().with_tuning(small).expect("a small geometry")
        });
        let geometries: Vec<Gpu> = std::iter::once(gpu.clone()).chain(small).collect();
        for (name, places) in &layouts {
            if *name == "separate" && gpu.describe().contains("(gl") {
                // Hundreds of bind groups, each of them slow there.
                continue;
            }
            // All geometries over the plain layout; the preset over every one.
            let geometries = if *name == "from 3, apart" {
                &geometries[..]
            } else {
                &geometries[..1]
            };
            for gpu in geometries {
                let mut host = CpuRun::in_mode(&specs, StepMode::Lagged);
                let mut device = GpuRun::in_mode(gpu, &specs, places.clone(), StepMode::Lagged);
                let mut numbers = Numbers(13);
                for t in 0..5 {
                    let grads = random_grads(&specs, &mut numbers);
                    host.step(&grads);
                    device.step(&grads);
                    assert_eq!(device.optimizer.roles_are_swapped(), t % 2 == 0);
                    let pairs = host
                        .params()
                        .concat()
                        .into_iter()
                        .zip(device.params().concat());
                    for (i, (expected, found)) in pairs.enumerate() {
                        assert!(
                            (expected - found).abs() <= 1e-5,
                            "{}, {name}, step {t}, element {i}: {found} instead of {expected}",
                            gpu.describe()
                        );
                    }
                    device.assert_surroundings_untouched();
                }
            }
        }
    }
}

/// The host knows where the parameters are without waiting: two steps in one submit are two steps. The second takes for its gradient
/// what lies where the first one's parameters were.
#[test]
fn two_steps_in_one_submit_are_two_steps() {
    let _alone = alone();
    let specs = specs(&[Regime::seesaw()], &[Numbers(14).vec(1003)]);
    for gpu in devices() {
        let grads = random_grads(&specs, &mut Numbers(15));
        let mut outcomes = Vec::new();
        for together in [true, false] {
            let mut run = GpuRun::in_mode(gpu, &specs, packed(&specs, 0, 0), StepMode::Lagged);
            run.step(&grads);
            run.write_grads(&grads);
            let encoder = || gpu.device().create_command_encoder(&Default::default());
            let mut first = encoder();
            run.optimizer.encode_step(&mut first).expect("alive");
            if together {
                run.optimizer.encode_step(&mut first).expect("alive");
                gpu.queue().submit([first.finish()]);
            } else {
                gpu.queue().submit([first.finish()]);
                let mut second = encoder();
                run.optimizer.encode_step(&mut second).expect("alive");
                gpu.queue().submit([second.finish()]);
            }
            assert!(run.optimizer.roles_are_swapped());
            assert_eq!(run.records().records.len(), 3 * specs.len());
            outcomes.push((bits(&run.params()), bits(&[run.rates()])));
        }
        assert!(outcomes[0] == outcomes[1], "{}", gpu.describe());
    }
}

#[test]
fn a_clip_is_refused() {
    let _alone = alone();
    let w = vec![1.0f32; 4];
    let error = OptimizerBuilder::new(Rule::sgd())
        .step_mode(StepMode::Lagged)
        .group(Group::new("weights").clip_norm(1.0).tensor("w", &w, &w))
        .build_cpu()
        .expect_err("a clip");
    let text = error.to_string();
    assert!(
        text.contains("\"weights\"") && text.contains("StepMode::TwoPass"),
        "{text}"
    );
}

#[test]
fn the_wrong_step_is_refused_and_changes_nothing() {
    let _alone = alone();
    let mut w = vec![1.0f32; 4];
    let mut g = vec![1.0f32; 4];
    let build = |mode, w: &[f32]| {
        OptimizerBuilder::new(Rule::sgd())
            .step_mode(mode)
            .group(Group::new("all").tensor("w", w, w))
            .build_cpu()
            .expect("builds")
    };
    let mut lagged = build(StepMode::Lagged, &w);
    assert_eq!(lagged.step(&mut [&mut w], &[&g]), Err(Error::StepMode));
    let mut two_pass = build(StepMode::TwoPass, &w);
    assert_eq!(
        two_pass.step_lagged(&mut [&mut w], &mut [&mut g]),
        Err(Error::StepMode)
    );
    assert_eq!((w, g), (vec![1.0; 4], vec![1.0; 4]));
    assert!(lagged.drain_records().records.is_empty());
}
