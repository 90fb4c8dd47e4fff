//! Tests of the step in one dispatch: a small model takes it, with the bits of a step in four dispatches. Where one workgroup cannot take the step,
//! every pass is a dispatch.

use wgpu_optim::gpu::Tuning;
use wgpu_optim::internals::{PassName, WHOLE_STEP_BLOCKS, WHOLE_STEP_ELEMENTS, uses_fxc};
use wgpu_optim::{
    Averaging, CurvatureForm, Element, Gpu, Group, LossScaler, NormOutliers, Optimizer, OptimizerBuilder, Regime,
    Rounding, Rule, Schedule, State, WeightDecay, gpu, wgpu,
};
use wgpu_optim_conformance::run::{self, GpuRun, Place, Run, Setup, Spec, bits, packed, separate};
use wgpu_optim_conformance::{kinds_of_partials, limited_devices, noise, tensors, upload};

use crate::helpers::rules_and_regimes;

/// Returns the devices that support a step in one dispatch.
fn devices() -> Vec<Gpu> {
    let mut devices = run::devices();
    devices.retain(|gpu| !uses_fxc(gpu));
    devices
}

fn passes(optimizer: &Optimizer) -> Vec<PassName> {
    optimizer.dispatches().iter().map(|dispatch| dispatch.pass).collect()
}

fn is_whole(optimizer: &Optimizer) -> bool {
    passes(optimizer) == [PassName::WholeStep]
}

/// Returns a case with one dispatch and with separate passes.
fn both(gpu: &Gpu, specs: &[Spec], setup: Setup, places: &[Place], clears: bool) -> [GpuRun; 2] {
    [false, true].map(|separate_passes| {
        let run = GpuRun::with(gpu, specs, places.to_vec(), |builder| {
            let builder = Setup { separate_passes, ..setup }.tell(builder);
            if clears { builder.clear_gradients() } else { builder }
        });
        assert_eq!(is_whole(&run.optimizer), !separate_passes, "{}, {specs:?}", run.path());
        run
    })
}

/// Asserts that all results of a step have the same bits: parameters, averages, rates, records and the checkpoint.
#[track_caller]
fn assert_alike([whole, separate]: &mut [GpuRun; 2], what: &str) {
    let path = whole.path();
    let of = |run: &mut GpuRun| (bits(&run.params()), bits(&run.averages()), run.rates(), run.loss_scale());
    assert_eq!(of(whole), of(separate), "{path}, {what}");
    assert_eq!(whole.states(), separate.states(), "{path}, {what}");
    // Records are compared as text, in which a NaN equals a NaN.
    let records =
        |run: &mut GpuRun| run.records().records.iter().map(|record| format!("{record:?}")).collect::<Vec<_>>();
    for (whole, separate) in records(whole).iter().zip(&records(separate)) {
        assert_eq!(whole, separate, "{path}, {what}");
    }
    assert!(whole.checkpoint().to_bytes() == separate.checkpoint().to_bytes(), "{path}, {what}: checkpoints differ");
    whole.assert_surroundings_untouched();
}

/// Returns the settings of a case by its number. Together the cases have every option with which the kernel of one dispatch can be compiled.
fn varied(number: usize, spec: Spec) -> (Vec<Spec>, Setup) {
    let regime = spec.regime;
    // Averages of 16-bit parameters need master weights.
    let averages = number % 4 == 1 && number % 6 < 4 && !regime.needs_streams();
    let averaging = if averages { Averaging::polynomial_decay() } else { Averaging::Off };
    let spec = Spec {
        clip: if number.is_multiple_of(2) { 3.0 } else { f32::INFINITY },
        decay: match number % 3 {
            0 => WeightDecay::Coupled(0.0),
            1 => WeightDecay::Coupled(0.01),
            _ => WeightDecay::Decoupled(0.01),
        },
        maximize: number % 5 == 4,
        schedule: match number % 3 {
            0 => Schedule::Constant,
            1 => Schedule::WarmupCosine { warmup: 3, steps: 12, last: 0.1 },
            _ => Schedule::Table { factors: [0.5, 1.0, 0.25, 0.125].into(), every: 1 },
        },
        averaging,
        ..spec
    };
    let spec = match number % 6 {
        3 => spec.stored(Element::F16, Element::F16, Rounding::Masters),
        4 => spec.stored(Element::Bf16, Element::F32, Rounding::Nearest),
        5 => spec.stored(Element::Bf16, Element::Bf16, Rounding::Stochastic { seed: 3 }),
        _ => spec,
    };
    let setup = Setup {
        scaler: (number % 4 == 2).then(|| LossScaler { initial_scale: 4.0, ..LossScaler::default() }),
        outliers: (number % 4 == 3 && !regime.needs_streams()).then_some(match number % 8 {
            3 => NormOutliers::Skip { deviations: 1.0, window: 4 },
            _ => NormOutliers::Clip { deviations: 1.0, window: 4 },
        }),
        global_clip: (number % 7 == 1).then_some(2.0),
        micro_batches: (number % 3 == 2).then_some(2),
        ..Setup::default()
    };
    (vec![spec], setup)
}

/// A sample of the rules and regimes, and SGD with every regime, take 20 steps with every setting between them, one of which is skipped. The first
/// adapter runs all cases, and the others run a sample, since compiling the kernels takes long.
#[test]
fn one_dispatch_has_the_bits_of_four() {
    let mut pairs: Vec<(Rule, Regime)> = rules_and_regimes().into_iter().step_by(3).collect();
    pairs.extend(Regime::all().into_iter().map(|regime| (Rule::sgd(), regime)));
    pairs.push((Rule::adamw_without_momentum(), Regime::seesaw()));
    let fits = |rule: &Rule, regime: &Regime| {
        regime.fits(rule) && !rule.owns_passes() && !regime.needs_looks() && !regime.needs_schedule_free()
    };
    pairs.retain(|(rule, regime)| fits(rule, regime));
    assert!(pairs.len() > 25);
    for (device, gpu) in devices().iter().enumerate() {
        let sample = if device == 0 { 1 } else { 5 };
        for (number, &(rule, regime)) in pairs.iter().enumerate().step_by(sample) {
            let spec = Spec::new(rule, regime, tensors(number as u64, &[37, 8, 130]));
            let (specs, setup) = varied(number, spec);
            let clears = number % 5 == 3;
            let mut runs = both(gpu, &specs, setup, &packed(&specs, 0, 2 * (number % 2)), clears);
            for step in 0..20 {
                let mut grads = noise(&specs, 100 + step);
                if step == 7 {
                    grads[1][3] = f32::NAN;
                }
                for run in &mut runs {
                    run.set_loss(3.0 - 0.1 * step as f32);
                    run.step(&grads);
                    if clears {
                        run.expect_cleared();
                    }
                }
                let [whole, separate] = &runs;
                let what = format!("{}, {}, case {number}, step {step}", rule.name(), regime.name());
                assert!(bits(&whole.params()) == bits(&separate.params()), "{}, {what}", whole.path());
            }
            assert_alike(&mut runs, &format!("{}, {}, case {number}", rule.name(), regime.name()));
        }
    }
}

/// The lengths are around multiples of four, workgroups, blocks and the largest small model, for every tuning.
#[test]
fn lengths_around_boundaries() {
    for gpu in &devices() {
        let kinds = kinds_of_partials(gpu).map(|partials| Tuning {
            workgroup_size: 64,
            quads_per_invocation: 1,
            partials,
            finish_workgroup_size: 64,
        });
        for tuning in kinds.chain([gpu.tuning()]) {
            let gpu = gpu.clone().with_tuning(tuning).expect("a small geometry");
            let block = (tuning.workgroup_size * tuning.quads_per_invocation * 4) as usize;
            let most = (WHOLE_STEP_ELEMENTS as usize).min(WHOLE_STEP_BLOCKS * block);
            let lengths = [1, 3, 4, 5, 63, 64, 65, block - 1, block, block + 1, most - 4, most];
            for length in lengths.into_iter().filter(|&length| length <= most) {
                let specs = [Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(5, &[length]))];
                let mut runs = both(&gpu, &specs, Setup::default(), &packed(&specs, 0, 0), false);
                for step in 0..4 {
                    runs.iter_mut().for_each(|run| run.step(&noise(&specs, step)));
                }
                assert_alike(&mut runs, &format!("{length} elements, {tuning:?}"));
            }
            let specs = [Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(5, &[most + 1]))];
            let run = GpuRun::new(&gpu, &specs, packed(&specs, 0, 0));
            assert!(!is_whole(&run.optimizer), "{}", run.path());
        }
    }
}

/// The groups have separate norms or share one. The cases include an empty group, a frozen group, tensors without gradients, gradients whose squares
/// overflow or underflow f32, and steps that are skipped.
#[test]
fn groups_that_stay_away_for_a_step() {
    for gpu in &devices() {
        for (shared, decay) in [(false, 0.0), (true, 0.0), (false, 0.1)] {
            let lengths: [&[usize]; 4] = [&[32, 12], &[260], &[], &[8, 5, 64]];
            let group = |(number, lengths): (usize, &&[usize])| {
                let spec = Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(number as u64, lengths));
                let spec = Spec { decay: WeightDecay::Coupled(decay), clip: 1.0, ..spec.named(number.to_string()) };
                if shared { spec.sharing("all") } else { spec }
            };
            let specs: Vec<Spec> = lengths.iter().enumerate().map(group).collect();
            let setup = Setup { absent_gradients: true, ..Setup::default() };
            let mut runs = both(gpu, &specs, setup, &packed(&specs, 0, 0), false);
            for step in 0..20 {
                let mut grads = noise(&specs, step);
                match step {
                    4 => grads[2][100] = f32::INFINITY,
                    6 => grads.iter_mut().flatten().for_each(|x| *x *= 1e30),
                    9 => grads.iter_mut().flatten().for_each(|x| *x *= 1e-30),
                    11 => grads[0].fill(0.0),
                    _ => {}
                }
                for run in &mut runs {
                    run.control("1", &|controls| controls.frozen = (8..12).contains(&step));
                    match step {
                        13 => run.step_without(&grads, &[0, 4]),
                        14 => run.step_without(&grads, &[2]),
                        _ => run.step(&grads),
                    }
                }
            }
            assert_alike(&mut runs, &format!("shared {shared}, decay {decay}"));
        }
    }
}

/// The record names an element that leaves the range of its type.
#[test]
fn overflows_are_told() {
    for gpu in &devices() {
        let specs = [Spec::new(Rule::sgd(), Regime::fixed(1e30), vec![vec![1.0; 40], vec![2.0; 9]])];
        let mut runs = both(gpu, &specs, Setup::default(), &packed(&specs, 0, 0), false);
        let mut grads = vec![vec![0.0; 40], vec![0.0; 9]];
        (grads[0][21], grads[1][2]) = (1e20, 1e20);
        for run in &mut runs {
            run.step(&grads);
            run.step(&[vec![0.0; 40], vec![0.0; 9]]);
        }
        let overflow = runs[0].records().records[0].overflow;
        assert!(overflow.is_some(), "{}", runs[0].path());
        assert_eq!(runs[1].records().records[0].overflow, overflow);
    }
}

/// A loss that is not finite skips the step of a regime that uses the loss.
#[test]
fn a_loss_that_is_not_finite_skips() {
    for gpu in &devices() {
        let specs = [Spec::new(Rule::sgd(), Regime::polyak(), tensors(3, &[50]))];
        let mut runs = both(gpu, &specs, Setup::default(), &packed(&specs, 0, 0), false);
        for run in &mut runs {
            for loss in [2.0, f32::NAN, 1.0] {
                run.set_loss(loss);
                run.step(&noise(&specs, 2));
            }
        }
        let skipped: Vec<bool> = runs[0].records().records.iter().map(|record| record.flags.skipped()).collect();
        assert_eq!(skipped, [false, true, false]);
        runs[1].records();
        assert_alike(&mut runs, "a loss that is not finite");
    }
}

/// 200 tensors are neighbours in one buffer, with lengths that are not multiples of four, and take one dispatch.
#[test]
fn two_hundred_tensors_are_one_dispatch() {
    for gpu in &devices() {
        let lengths: Vec<usize> = (0..200).map(|tensor| 1 + tensor % 9).collect();
        let specs = [Spec::new(Rule::adamw(), Regime::fixed(0.01), tensors(1, &lengths))];
        let mut runs = both(gpu, &specs, Setup::default(), &packed(&specs, 0, 0), false);
        for step in 0..4 {
            runs.iter_mut().for_each(|run| run.step(&noise(&specs, step)));
        }
        assert_alike(&mut runs, "200 tensors");
    }
}

/// An optimizer whose step exceeds one workgroup's abilities or memory takes separate dispatches.
#[test]
fn other_optimizers_take_separate_dispatches() {
    let plain = || Spec::new(Rule::sgd(), Regime::seesaw(), vec![vec![1.0; 64]]);
    let named = |count: usize| -> Vec<Spec> { (0..count).map(|i| plain().named(i.to_string())).collect() };
    let two = named(2);
    let others = |change: fn(&mut Spec)| {
        let mut spec = plain();
        change(&mut spec);
        vec![spec]
    };
    let cases = [
        ("telemetry", others(|spec| spec.telemetry = true)),
        ("a trust ratio", others(|spec| spec.trust = Some(0.1))),
        ("8-bit state", others(|spec| (spec.rule, spec.state) = (Rule::sgdm(0.9), State::Bits8))),
        ("schedule-free training", others(|spec| spec.averaging = Averaging::ScheduleFree)),
        ("looks", others(|spec| spec.regime = Regime::curvature(CurvatureForm::Long))),
        ("passes of the rule", others(|spec| spec.rule = Rule::muon())),
        ("9 norms", named(9)),
        ("two rules", vec![two[0].clone(), Spec { rule: Rule::lion(), ..two[1].clone() }]),
        ("an empty group of another rule", {
            let empty = Spec { rule: Rule::adamw(), tensors: Vec::new(), ..two[1].clone() };
            vec![two[0].clone(), empty]
        }),
        ("two regimes", vec![two[0].clone(), Spec { regime: Regime::wngrad(), ..two[1].clone() }]),
        (
            "scopes that take turns",
            [("0", Some("a")), ("1", Some("b")), ("2", Some("a"))]
                .map(|(name, norm)| Spec { norm: norm.map(str::to_owned), ..plain().named(name) })
                .to_vec(),
        ),
    ];
    for gpu in &devices() {
        let dispatches = |specs: &[Spec], setup: Setup| {
            let run = GpuRun::with(gpu, specs, packed(specs, 0, 0), |builder| setup.tell(builder));
            passes(&run.optimizer)
        };
        assert_eq!(dispatches(&[plain()], Setup::default()), [PassName::WholeStep]);
        assert_eq!(dispatches(&named(8), Setup::default()), [PassName::WholeStep]);
        for (what, specs) in &cases {
            assert!(dispatches(specs, Setup::default()).len() >= 4, "{}: {what}", gpu.describe());
        }
        let sharded = Setup { shard: Some((0, 2)), ..Setup::default() };
        assert_eq!(dispatches(&[plain()], sharded).len(), 4);
        assert_eq!(passes(&GpuRun::new(gpu, &two, separate(&two)).optimizer).len(), 6);
        let rebindable = GpuRun::with(gpu, &[plain()], packed(&[plain()], 0, 0), OptimizerBuilder::rebindable);
        assert_eq!(passes(&rebindable.optimizer).len(), 4);
        // The loss is in the buffer of the tensors.
        let buffer = upload(gpu, &[0.5; 36]);
        let with_loss = |loss: wgpu::BufferSlice| {
            let group = Group::new("all").tensor("w", buffer.slice(..64), buffer.slice(64..128));
            let builder: OptimizerBuilder<gpu::Tensor> = OptimizerBuilder::new(Rule::sgd()).regime(Regime::polyak());
            passes(&builder.loss(loss).group(group).build(gpu).expect("builds"))
        };
        assert_eq!(with_loss(buffer.slice(128..132)).len(), 4);
        assert_eq!(with_loss(upload(gpu, &[0.5; 4]).slice(..4)).len(), 1);
    }
}

/// The kernel has 8 storage buffers, and one more where it keeps state for each parameter. A device with too few storage buffers takes four
/// dispatches, and so does one with too little workgroup memory.
#[test]
fn devices_with_small_limits_take_separate_dispatches() {
    let dispatches = |gpu: &Gpu, rule, regime| {
        let specs = [Spec::new(rule, regime, vec![vec![1.0; 64]])];
        let mut run = GpuRun::new(gpu, &specs, packed(&specs, 0, 0));
        run.step(&[vec![1.0; 64]]);
        assert_eq!(run.records().records.len(), 1);
        passes(&run.optimizer).len()
    };
    for (buffers, expected) in [(8, [1, 4]), (9, [1, 1])] {
        for gpu in limited_devices(|limits| limits.max_storage_buffers_per_shader_stage = buffers) {
            if uses_fxc(&gpu) {
                continue;
            }
            let counts = [(Rule::sgd(), Regime::fixed(0.1)), (Rule::sgdm(0.9), Regime::seesaw())]
                .map(|(rule, regime)| dispatches(&gpu, rule, regime));
            assert_eq!(counts, expected, "{}, {buffers} buffers", gpu.describe());
        }
    }
    for gpu in limited_devices(|limits| limits.max_compute_workgroup_storage_size = 3584) {
        let finish_workgroup_size = 64;
        let gpu = gpu.clone().with_tuning(Tuning { finish_workgroup_size, ..gpu.tuning() }).expect("fits");
        assert_eq!(dispatches(&gpu, Rule::sgd(), Regime::fixed(0.1)), 4, "{}", gpu.describe());
    }
}
