//! Steps of 16-bit parameters.

use super::{
    HALVES, LENGTHS, ROUNDINGS, SMALL, SMALL_STEPS, after, beside_floats, drift, gradients, is_nearest, masters, paths,
    small_steps, with_masters,
};
use half::{bf16, f16};
use wgpu_optim::gpu::Tuning;
use wgpu_optim::{Averaging, Element, Gpu, Regime, Rounding, Rule, SecantForm, WeightDecay};
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Run, Setup, Spec, bits, devices, gpu_run_with, packed};
use wgpu_optim_conformance::stored::{half_ulp, rounded};
use wgpu_optim_conformance::{assert_close, filled, kinds_of_partials, small_bindings, step, tensors, ulps};

#[test]
fn masters_take_the_steps_of_f32() {
    for element in HALVES {
        let decay = WeightDecay::Decoupled(0.1);
        let sgdm = Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(1, &LENGTHS)).named("sgdm");
        let adamw = Spec::new(Rule::adamw(), Regime::seesaw(), tensors(2, &LENGTHS)).named("adamw");
        let specs = with_masters(vec![sgdm, Spec { decay, ..adamw }], element);
        for (mut half, mut float) in beside_floats(&specs) {
            let (mut others, mut all) = (0, 0);
            for t in 1..=200 {
                let grads = gradients(&specs, t);
                half.step(&grads);
                float.step(&grads);
                let what = format!("{}, {element:?}, step {t}", half.path());
                assert_eq!(bits(&[half.rates()]), bits(&[float.rates()]), "{what}");
                for (&stored, &value) in half.params().iter().flatten().zip(float.params().iter().flatten()) {
                    all += 1;
                    others += usize::from(rounded(element, &[value]) != [stored]);
                    assert!(is_nearest(element, stored, value), "{what}: {stored:e} is not the nearest to {value:e}");
                }
            }
            assert!(1000 * others <= all, "{others} of {all} codes differ");
            let checkpoint = half.checkpoint().to_bytes();
            let names = specs.iter().flat_map(|spec| (0..spec.tensors.len()).map(|i| spec.tensor_name(i)));
            for (name, values) in names.zip(float.params()) {
                for (master, value) in masters(&checkpoint, element, &name).into_iter().zip(values) {
                    assert_close(format_args!("{}, {element:?}", half.path()), master, value, drift(value).into());
                }
            }
        }
    }
}

#[test]
fn small_steps_arrive_or_stay() {
    for element in HALVES {
        let arrived = |w: &f32| w - SMALL_STEPS as f32 * SMALL;
        for rounding in [Rounding::Masters, Rounding::Nearest] {
            let specs = small_steps(element, rounding, &LENGTHS);
            let starts = specs[0].tensors.iter();
            let expected: Vec<Vec<f32>> = match rounding {
                Rounding::Nearest => starts.cloned().collect(),
                _ => starts.map(|w| rounded(element, &w.iter().map(arrived).collect::<Vec<_>>())).collect(),
            };
            for run in paths(&specs) {
                let what = format!("{}, {element:?}, {rounding:?}", run.path());
                assert_eq!(bits(&after(run, &specs, SMALL_STEPS)), bits(&expected), "{what}");
            }
        }
        let by_seed = [1, 1, 2].map(|seed| {
            let specs = small_steps(element, Rounding::Stochastic { seed }, &LENGTHS);
            paths(&specs).into_iter().map(|run| after(run, &specs, SMALL_STEPS)).collect::<Vec<_>>()
        });
        for found in &by_seed[0] {
            // The steps are exact, so that the codes are the same on every path.
            assert_eq!(bits(found), bits(&by_seed[0][0]), "{element:?}");
        }
        assert_eq!(by_seed[0], by_seed[1], "a seed is reproducible");
        let values = &by_seed[0][0][5];
        let agree = values.iter().zip(&by_seed[2][0][5]).filter(|(a, b)| a == b).count();
        assert!(2 * agree <= values.len(), "{agree} agree beyond the seed");
        // Each element decreases by one unit with probability p in each step.
        let unit = 2.0 * half_ulp(element, 1.5);
        let p = f64::from(SMALL) / unit;
        let variance = SMALL_STEPS as f64 * p * (1.0 - p);
        let starts = small_steps(element, Rounding::Nearest, &LENGTHS)[0].tensors[5].clone();
        let pairs = values.iter().zip(&starts);
        let errors: Vec<f64> = pairs.map(|(&value, w)| f64::from(value - arrived(w)) / unit).collect();
        let count = errors.len() as f64;
        let mean = errors.iter().sum::<f64>() / count;
        assert_close(format_args!("{element:?}: mean error"), mean, 0.0, 5.0 * (variance / count).sqrt());
        // The draws of an element in different steps, and those of neighbours, are independent.
        let spread = errors.iter().map(|error| error * error).sum::<f64>() / count;
        assert_close(format_args!("{element:?}: variance"), spread / variance, 1.0, 5.0 * (2.5 / count).sqrt());
        let together = errors.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / count;
        assert_close(format_args!("{element:?}: neighbours"), together, 0.0, 5.0 * variance / count.sqrt());
    }
}

/// Returns the device with other tunings, with every kind of partials that it supports.
fn geometries(gpu: &Gpu) -> Vec<Gpu> {
    let sizes = [(64, 1), (32, 8), (128, 2)].into_iter().cycle();
    let tunings = kinds_of_partials(gpu).zip(sizes).map(|(partials, (workgroup_size, quads_per_invocation))| Tuning {
        workgroup_size,
        quads_per_invocation,
        partials,
        finish_workgroup_size: 64,
    });
    tunings.filter_map(|tuning| gpu.clone().with_tuning(tuning).ok()).collect()
}

#[test]
fn codes_are_the_same_in_every_geometry() {
    for element in HALVES {
        for rounding in ROUNDINGS {
            let specs = small_steps(element, rounding, &LENGTHS);
            let expected = after(Box::new(CpuRun::new(&specs)), &specs, 60);
            for gpu in &devices() {
                let geometries = geometries(gpu);
                assert!(geometries.len() >= 2, "{}", gpu.describe());
                for (start, gpu) in (0..).map(|i| 2 * (i % 2)).zip(&geometries) {
                    let mut run = GpuRun::new(gpu, &specs, packed(&specs, start, 1));
                    run.write_grads(&filled(&specs, 1.0));
                    for _ in 0..60 {
                        step(&run.gpu, &run.optimizer);
                    }
                    let what = format!("{}, {element:?}, {rounding:?}", run.path());
                    assert_eq!(bits(&run.params()), bits(&expected), "{what}");
                    run.assert_surroundings_untouched();
                }
            }
        }
    }
}

/// Tensors that are longer than a binding, and than a thread's piece on the CPU path, have the codes of short ones.
#[test]
fn long_tensors_have_the_codes_of_short_ones() {
    const LEN: usize = 300_001;
    for element in HALVES {
        for rounding in ROUNDINGS {
            let specs = small_steps(element, rounding, &[3, LEN]);
            let expected = after(Box::new(CpuRun::new(&specs)), &specs, 20);
            // The CPU path gives the same codes for pieces that are short enough for one thread.
            if !matches!(rounding, Rounding::Stochastic { .. }) {
                let mut short = specs.clone();
                short[0].tensors = specs[0].tensors[1].chunks(1000).map(<[f32]>::to_vec).collect();
                let found = after(Box::new(CpuRun::new(&short)), &short, 20);
                assert_eq!(bits(&[found.concat()]), bits(&expected[1..]), "{element:?}");
            }
            for gpu in small_bindings(1 << 18) {
                for start in [0, 2] {
                    let places = packed(&specs, start, 1);
                    let mut run = GpuRun::with(&gpu, &specs, places, |builder| builder.clear_gradients());
                    for _ in 0..20 {
                        run.step(&filled(&specs, 1.0));
                    }
                    run.expect_cleared();
                    let what = format!("{}, {element:?}, {rounding:?}", run.path());
                    assert!(bits(&run.params()) == bits(&expected), "{what}");
                    run.assert_surroundings_untouched();
                }
            }
        }
    }
}

#[test]
fn the_nearest_is_that_of_the_half_crate() {
    let rate = 2f32.powi(-6);
    for element in HALVES {
        let spec = Spec::new(Rule::sgd(), Regime::fixed(rate), tensors(23, &LENGTHS));
        let specs = [spec.stored(element, element, Rounding::Nearest)];
        for mut run in paths(&specs) {
            let mut expected = specs[0].tensors.clone();
            for t in 1..=20 {
                let grads = gradients(&specs, t);
                run.step(&grads);
                for (w, g) in expected.iter_mut().zip(&grads) {
                    let next: Vec<f32> = w.iter().zip(g).map(|(w, g)| w - rate * g).collect();
                    *w = rounded(element, &next);
                }
                assert_eq!(bits(&run.params()), bits(&expected), "{}, {element:?}, step {t}", run.path());
            }
        }
    }
}

/// Under regimes of every kind, and for a rule with each kind of state, masters take the steps of f32 parameters.
#[test]
fn every_regime_goes_by_masters_as_by_parameters_of_f32() {
    let regimes = [
        Regime::seesaw(),
        Regime::norm_ratio(),
        Regime::hypergradient(),
        Regime::fixed(0.01),
        Regime::adagrad_norm(),
        Regime::barzilai_borwein(SecantForm::Geometric),
        Regime::adgd(),
        Regime::dog(),
        Regime::dowg(),
        Regime::polyak(),
        Regime::ngn(),
        Regime::prodigy(),
        Regime::mechanic(),
    ];
    let rules = [Rule::sgd(), Rule::nesterov(0.5), Rule::lion()].into_iter().cycle();
    let of_regimes = regimes.into_iter().zip(rules).map(|(regime, rule)| {
        let spec = Spec::new(rule, regime, tensors(22, &[7, 66])).named(regime.name());
        Spec { decay: WeightDecay::Coupled(0.01), clip: 3.0, ..spec }
    });
    // All groups of an optimizer use streams or none.
    let streams = vec![Spec::new(Rule::sgd(), Regime::auto_sgd(), tensors(21, &[7, 66]))];
    let cases = [streams, of_regimes.collect()];
    for (element, specs) in HALVES.into_iter().flat_map(|element| cases.iter().map(move |specs| (element, specs))) {
        let specs = with_masters(specs.clone(), element);
        for (mut half, mut float) in beside_floats(&specs) {
            for t in 1..=16 {
                for run in [&mut half, &mut float] {
                    run.set_loss(3.0 + (t as f32).sin());
                    run.step(&gradients(&specs, t));
                }
                let what = format!("{}, {element:?}, step {t}", half.path());
                for (group, (found, expected)) in half.rates().into_iter().zip(float.rates()).enumerate() {
                    assert_close(format_args!("{what}, group {group}"), found, expected, 1e-4 * f64::from(expected));
                }
                for (&stored, value) in half.params().iter().flatten().zip(float.params().concat()) {
                    let off = 1e-4 * value.abs();
                    let near = rounded(element, &[value - off, value + off]);
                    let unit = 2.0 * half_ulp(element, f64::from(value)) as f32 * 1e-2;
                    let near = near[0] - unit..=near[1] + unit;
                    assert!(near.contains(&stored), "{what}: {stored:e}, not {value:e}");
                }
            }
        }
    }
}

#[test]
fn the_largest_and_the_smallest_gradients_have_the_right_norm() {
    let denormal = |code: u16| f16::from_bits(code).to_f32();
    for (what, element, value) in [
        ("the largest f16", Element::F16, 65504.0),
        ("the least f16", Element::F16, denormal(1)),
        ("a denormal f16", Element::F16, denormal(0x2a5)),
        ("the largest denormal f16", Element::F16, denormal(0x3ff)),
        ("the least normal f16", Element::F16, denormal(0x400)),
        ("a large bf16", Element::Bf16, bf16::MAX.to_f32() / 128.0),
        ("the least normal bf16", Element::Bf16, f32::MIN_POSITIVE),
    ] {
        let spec = Spec::new(Rule::sgd(), Regime::norm_ratio(), vec![vec![1.0; 3], vec![1.0; 4099]]);
        let specs = with_masters(vec![spec], element);
        let mut grads = filled(&specs, value);
        grads.iter_mut().for_each(|tensor| tensor.iter_mut().skip(1).step_by(2).for_each(|g| *g = -*g));
        for mut run in paths(&specs) {
            run.step(&grads);
            let record = &run.records().records[0];
            let expected = f64::from(value) * (4102f64).sqrt();
            assert!(ulps(record.norm, expected) <= 8.0, "{}, {what}: {:e}, not {expected:e}", run.path(), record.norm);
            assert!(!record.flags.skipped(), "{what}");
        }
    }
}

/// Masters follow parameters that the caller writes between steps.
#[test]
fn masters_follow_parameters_that_are_written() {
    for element in HALVES {
        let spec = Spec::new(Rule::sgd(), Regime::fixed(2f32.powi(-20)), tensors(14, &[4099]));
        let specs = with_masters(vec![spec], element);
        // In f16 these parameters are so small that they have the coarsest remainders.
        let mut tiny = specs.clone();
        tiny[0].tensors[0].iter_mut().for_each(|w| *w = (*w * 900.0).round() * 2f32.powi(-24));
        for (specs, is_tiny) in [(specs, false), (tiny, true)] {
            // The tolerance in halves of a unit.
            let reach = if is_tiny && element == Element::F16 { 2.0 } else { 1.0 };
            let written: Vec<f32> = specs[0].tensors[0].iter().map(|w| 1.5 - w).collect();
            let written = rounded(element, &written);
            for gpu in &devices() {
                let mut run = gpu_run_with(gpu, &specs, Setup::default());
                for t in 1..=3 {
                    run.step(&gradients(&specs, t));
                }
                run.write_params(std::slice::from_ref(&written));
                run.step(&[vec![0.0; 4099]]);
                let masters = masters(&run.checkpoint().to_bytes(), element, "group/0");
                for ((&stored, &master), &expected) in run.params()[0].iter().zip(&masters).zip(&written) {
                    let half = half_ulp(element, f64::from(expected));
                    let what = format_args!("{}, {element:?}", run.path());
                    // The master is off by half a unit of its own, and the stored parameter by another half.
                    assert_close(format_args!("{what}, stored"), stored, expected, (1.0 + reach) * half);
                    assert_close(format_args!("{what}, master"), master, expected, reach * half);
                }
            }
        }
    }
}

/// Averages beside masters are in f32. After a swap the stored parameters are the rounded averages, and a run continues from its masters.
#[test]
fn averages_beside_masters_are_of_f32_and_come_and_go() {
    let spec = |rule: Rule, regime: Regime, averaging: Averaging| {
        let spec = Spec::new(rule, regime, tensors(9, &LENGTHS));
        Spec { averaging, ..spec.named(format!("{}, {averaging:?}", rule.name())) }
    };
    let late = Averaging::Running { start: 100 };
    let plain = vec![
        spec(Rule::sgdm(0.9), Regime::seesaw(), Averaging::Running { start: 0 }),
        spec(Rule::sgd(), Regime::norm_ratio(), Averaging::polynomial_decay()),
        spec(Rule::sgd(), Regime::norm_ratio(), late),
    ];
    let rules = [Rule::sgd(), Rule::sign_sgd(), Rule::adamw_without_momentum()];
    let free = rules.map(|rule| spec(rule, Regime::fixed(0.01), Averaging::ScheduleFree)).to_vec();
    for (element, specs) in HALVES.into_iter().flat_map(|element| [(element, &plain), (element, &free)]) {
        let specs = with_masters(specs.clone(), element);
        let is_free = specs[0].averaging == Averaging::ScheduleFree;
        for (mut half, mut float) in beside_floats(&specs) {
            for t in 1..=20 {
                half.step(&gradients(&specs, t));
                float.step(&gradients(&specs, t));
            }
            let what = format!("{}, {element:?}, {:?}", half.path(), specs[0].averaging);
            let (params, averages) = (half.params(), half.averages());
            for (tensor, (found, expected)) in averages.iter().zip(&float.averages()).enumerate() {
                let of_late = specs[tensor / LENGTHS.len()].averaging == late;
                for ((&found, &expected), &stored) in found.iter().zip(expected).zip(&params[tensor]) {
                    let allowed = if is_free { 2e-6 } else { drift(expected) };
                    // On the CPU path, an average that has not started reads as the stored parameter.
                    let stands_in = of_late && found == stored && is_nearest(element, found, expected);
                    assert!((found - expected).abs() <= allowed || stands_in, "{what}: {found:e}, not {expected:e}");
                }
            }
            half.swap_averages();
            for (stored, averages) in half.params().iter().zip(&averages) {
                assert_eq!(bits(std::slice::from_ref(stored)), bits(&[rounded(element, averages)]), "{what}");
            }
            half.swap_averages();
            assert_eq!(bits(&half.params()), bits(&params), "{what}");
            for (before, after) in averages.concat().into_iter().zip(half.averages().concat()) {
                assert_close(&what, after, before, if is_free { 1e-6 } else { 0.0 });
            }
            if is_free {
                let checkpoint = half.checkpoint().to_bytes();
                let saved = specs.iter().map(|spec| format!("averages/{}", spec.tensor_name(5)));
                for (saved, averages) in saved.zip(half.averages().chunks(LENGTHS.len())) {
                    let saved: Vec<f32> =
                        bytemuck::pod_collect_to_vec(&crate::helpers::raw_tensor(&checkpoint, &saved).2);
                    for (saved, &average) in saved.into_iter().zip(&averages[5]) {
                        assert!(ulps(saved, average.into()) <= 4.0, "{what}: {saved} in the checkpoint, not {average}");
                    }
                }
                continue;
            }
            // The run continues from the masters.
            for t in 21..=30 {
                half.step(&gradients(&specs, t));
                float.step(&gradients(&specs, t));
            }
            for (&stored, value) in half.params().iter().flatten().zip(float.params().concat()) {
                assert!(is_nearest(element, stored, value), "{what}: {stored:e}, not the nearest to {value:e}");
            }
        }
        for gpu in &devices() {
            let mut run = gpu_run_with(gpu, &specs, Setup::default());
            run.step(&gradients(&specs, 1));
            for (tensor, expected) in run.averages().into_iter().enumerate() {
                let read = pollster::block_on(run.optimizer.read_averages(tensor));
                assert_eq!(bits(&[read.expect("averages")]), bits(&[expected]));
            }
        }
    }
}
