//! Tests of telemetry and trust ratios. A record has the norms of every tensor and its step as in f64, for tensors of any size at any place. The
//! trust ratio is that of LARS, with any rule and regime. The effective rates of scale-invariant tensors converge as the theory says. Neither setting
//! changes a bit of a step that does not use it. (`regimes` tests that a trust ratio follows the oracle, `safeguards` that a skipped step leaves it
//! unchanged, and `encoding` several steps in one submit.)
//!
//! Besides the seeded faults below, each of these faults was introduced by hand once and made a test fail: pass 5 that leaves out the last row of a
//! unit; a trust ratio of the parameters after the step; a first step without the division by the ratio.

use wgpu_optim::internals::PassName;
use wgpu_optim::{Averaging, Regime, Rule, TensorRecord, Term, WeightDecay};
use wgpu_optim_conformance::run::{
    GpuRun, Run, Setup, Spec, bits, devices, every_path, every_path_and_kind, gpu_run_with, packed, separate,
};
use wgpu_optim_conformance::{Numbers, assert_close, noise, tensors, times, ulps};

use crate::helpers::{Pair, assert_alike, pairs};

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    // The scaling avoids overflow and underflow for numbers of any size.
    let values: Vec<f64> = values.collect();
    let largest = values.iter().fold(0f64, |most, x| most.max(x.abs()));
    if largest == 0.0 {
        return 0.0;
    }
    largest * values.iter().map(|x| (x / largest).powi(2)).sum::<f64>().sqrt()
}

/// The tolerance of f32 sums of up to a few thousand squares per block, followed by a tree.
const NORM_ULPS: f64 = 64.0;

/// Asserts that the records of one step have the norms that follow from the parameters before and after it.
fn assert_records(what: &str, records: &[TensorRecord], before: &[Vec<f32>], after: &[Vec<f32>]) {
    assert_eq!(records.len(), after.len(), "{what}");
    for (record, (old, new)) in records.iter().zip(before.iter().zip(after)) {
        let what = format!("{what}, tensor {}", record.tensor);
        assert!(!record.skipped, "{what}");
        let parameters = norm(new.iter().map(|&w| f64::from(w)));
        // The rounded step is the difference of the parameters, which is exact in f32 up to its own rounding.
        let step = norm(new.iter().zip(old).map(|(new, old)| f64::from(new - old)));
        for (name, got, expected) in
            [("parameters", record.parameter_norm, parameters), ("step", record.step_norm, step)]
        {
            assert!(ulps(got, expected) <= NORM_ULPS, "{what}: the norm of the {name} is {got}, not {expected}");
        }
        if parameters > 0.0 {
            let ratio = record.relative_step() * parameters / step.max(f64::MIN_POSITIVE);
            assert!(step == 0.0 || (ratio - 1.0).abs() <= 1e-4, "{what}: {ratio}");
            let effective = record.effective_rate() * parameters * parameters;
            assert_close(what, effective / f64::from(record.learning_rate), 1.0, 1e-4);
        }
    }
}

/// Takes steps along these gradients, and asserts after each that every tensor with telemetry has the right norms.
fn check_norms(
    runs: Vec<Box<dyn Run>>,
    specs: &[Spec],
    steps: u64,
    gradients: impl Fn(&[Vec<f32>], u64) -> Vec<Vec<f32>>,
) {
    let asks = specs.iter().flat_map(|spec| vec![spec.telemetry; spec.tensors.len()]);
    let asked: Vec<usize> = asks.enumerate().filter(|(_, asks)| *asks).map(|(tensor, _)| tensor).collect();
    let pick = |all: &[Vec<f32>]| asked.iter().map(|&tensor| all[tensor].clone()).collect::<Vec<_>>();
    for mut run in runs {
        for t in 0..steps {
            let before = run.params();
            run.step(&gradients(&before, t));
            let records = run.records();
            let what = format!("{}, {}, step {t}", run.path(), specs[0].name);
            assert_eq!(records.records.len(), specs.len());
            let seen: Vec<(u64, usize)> = records.tensors.iter().map(|record| (record.step, record.tensor)).collect();
            assert_eq!(seen, asked.iter().map(|&tensor| (t, tensor)).collect::<Vec<_>>(), "{what}");
            assert_records(&what, &records.tensors, &pick(&before), &pick(&run.params()));
        }
    }
}

/// Lengths around the block sizes of every tuning in use.
const LENGTHS: [usize; 12] = [1, 3, 4, 5, 63, 64, 65, 2047, 4096, 4097, 9001, 0];

#[test]
fn every_tensor_has_its_norms() {
    let specs = Rule::all().into_iter().enumerate().map(|(i, rule)| Spec {
        telemetry: i != 1,
        decay: [WeightDecay::Decoupled(0.1), WeightDecay::Coupled(0.01)][i % 2],
        ..Spec::new(rule, [Regime::seesaw(), Regime::fixed(0.1)][i % 2], tensors(3 + i as u64, &LENGTHS))
            .named(format!("{i}"))
    });
    // In schedule-free training the norms are those of the parameters, not of the average.
    let averaging = Averaging::ScheduleFree;
    let free = Spec::new(Rule::sgd(), Regime::seesaw(), tensors(16, &LENGTHS)).named("schedule-free");
    let specs: Vec<Spec> = specs.chain([Spec { averaging, telemetry: true, ..free }]).collect();
    check_norms(every_path_and_kind(&specs), &specs, 3, |_, t| noise(&specs, t));
}

#[test]
fn parameters_and_steps_of_any_size_have_norms() {
    for exponent in [-30, 0, 30] {
        let scale = 10f32.powi(exponent);
        let spec = Spec::new(Rule::sgd(), Regime::fixed(1.0), times(scale, &tensors(5, &LENGTHS)));
        let specs = [Spec { telemetry: true, ..spec.named(format!("parameters of 1e{exponent}")) }];
        check_norms(every_path(&specs), &specs, 1, |_, _| times(0.1 * scale, &noise(&specs, 8)));
    }
}

/// One tensor has magnitudes on both sides of every boundary between the scales of a sum, or far apart. Invocations then have sums of different
/// scales, which must be combined.
#[test]
fn tensors_of_two_sizes_have_norms() {
    let sizes = [1e-30, 2f32.powi(-41), 2f32.powi(-40), 1.0, 2f32.powi(40), 1e19, 1e30];
    let mut specs = Vec::new();
    for (most, some) in sizes.into_iter().flat_map(|most| sizes.map(|some| (most, some))) {
        let mut numbers = Numbers(3);
        let size = |i: usize| if i % 97 == 5 || i > 560 { some } else { most };
        let tensor = (0..601).map(|i| size(i) * numbers.next()).collect();
        let spec = Spec::new(Rule::sgd(), Regime::fixed(0.25), vec![tensor]);
        specs.push(Spec { telemetry: true, ..spec.named(format!("{most} and {some}")) });
    }
    check_norms(every_path_and_kind(&specs), &specs, 1, |before, _| before.to_vec());
}

/// Tensors that are longer than a thread's stretch, and tensors in separate buffers, have the right norms.
#[test]
fn long_tensors_and_separate_ones_have_norms() {
    let spec = Spec::new(Rule::sgd(), Regime::seesaw(), tensors(2, &[140_001, 8192, 70_000]));
    let specs = [Spec { telemetry: true, ..spec }];
    let mut runs = every_path(&specs);
    for gpu in &devices() {
        runs.push(Box::new(GpuRun::new(gpu, &specs, separate(&specs))));
    }
    check_norms(runs, &specs, 1, |_, t| noise(&specs, t));
}

/// Neighbours in one buffer stay one dispatch, pass 5 is one dispatch for all of them, and an optimizer without telemetry has no pass 5.
#[test]
fn measuring_is_one_dispatch_more() {
    let names = |spec: &Spec, gpu| -> Vec<PassName> {
        let setup = Setup { separate_passes: true, ..Setup::default() };
        let run = gpu_run_with(gpu, std::slice::from_ref(spec), setup);
        run.optimizer.dispatches().iter().map(|d| d.pass).collect()
    };
    for gpu in &devices() {
        let mut spec = Spec::new(Rule::sgd(), Regime::seesaw(), vec![vec![1.0; 64]; 20]);
        let four = names(&spec, gpu);
        assert_eq!(four.len(), 4);
        spec.per_tensor = true;
        for (telemetry, trust) in [(true, None), (false, Some(0.1)), (true, Some(0.1))] {
            (spec.telemetry, spec.trust) = (telemetry, trust);
            let five = names(&spec, gpu);
            assert_eq!(five[..4], four);
            assert_eq!(five[4..], [PassName::FinishUpdate]);
        }
    }
}

#[test]
fn what_is_not_finite_is_not_hidden() {
    // A step leaves no value that is not finite, but the caller's parameters may have one.
    let spec = Spec::new(Rule::sgd(), Regime::fixed(0.1), vec![vec![f32::INFINITY; 9], vec![1.0; 5]]);
    for mut run in every_path(&[Spec { telemetry: true, ..spec }]) {
        run.step(&[vec![1.0; 9], vec![0.0; 5]]);
        let records = run.records().tensors;
        assert!(!records[0].parameter_norm.is_finite(), "{}", run.path());
        assert!(!records[0].step_norm.is_finite(), "{}", run.path());
        assert_eq!(records[1].step_norm, 0.0);
    }
}

#[test]
fn a_skipped_step_moves_nothing_and_keeps_the_norm() {
    let spec = Spec::new(Rule::sgdm(0.9), Regime::seesaw(), vec![vec![0.5; 33], vec![2.0; 7]]);
    for mut run in every_path(&[Spec { telemetry: true, ..spec }]) {
        let good = vec![vec![1.0; 33], vec![-1.0; 7]];
        let mut bad = good.clone();
        bad[1][6] = f32::NAN;
        for grads in [&bad, &good, &bad, &bad, &good] {
            run.step(grads);
        }
        let records = run.records().tensors;
        let of = |step: usize| records[2 * step];
        assert_eq!(records.len(), 10);
        let skipped: Vec<bool> = (0..5).map(|step| of(step).skipped).collect();
        assert_eq!(skipped, [true, false, true, true, false], "{}", run.path());
        assert!(of(0).parameter_norm.is_nan(), "nothing was measured yet");
        for step in [2, 3] {
            assert_eq!(of(step).step_norm, 0.0);
            assert_eq!(of(step).parameter_norm, of(1).parameter_norm);
        }
        assert_ne!(of(4).parameter_norm, of(1).parameter_norm);
    }
}

/// Telemetry changes no bit of parameters and rates, where tensors that are not neighbours have the same blocks with and without it.
#[test]
fn telemetry_changes_no_bit() {
    let rules = Rule::all().into_iter().enumerate();
    let spec = |(i, rule)| Spec::new(rule, Regime::seesaw(), tensors(11 + i as u64, &[777, 31])).named(format!("{i}"));
    let plain: Vec<Spec> = rules.map(spec).collect();
    let watched: Vec<Spec> = plain.iter().map(|spec| Spec { telemetry: true, ..spec.clone() }).collect();
    let mut runs: Vec<Pair> = pairs(&plain, &watched).take(1).collect();
    for gpu in &devices() {
        // The gap between the tensors keeps their blocks separate in both cases.
        let run = |specs: &[Spec]| Box::new(GpuRun::new(gpu, specs, packed(specs, 1, 5)));
        runs.push((run(&plain), run(&watched)));
    }
    let alike = assert_alike("watched", runs.into_iter(), 6, |t, _| {
        [(); 2].map(|()| times((t as f32).cos(), &noise(&plain, 12)))
    });
    for (plain, watched) in alike {
        assert_eq!(bits(&[plain.rates()]), bits(&[watched.rates()]), "{}", plain.path());
    }
}

/// Asserts a quotient of norms that are f32 sums.
#[track_caller]
fn assert_quotient(what: &str, got: f32, expected: f64) {
    assert_close(what, got, expected, 1e-5 * expected);
}

/// A layer's trust ratio is coefficient · ‖w‖/‖g + λ w‖, whatever its magnitude, for every rule.
#[test]
fn trust_ratios_go_by_each_tensors_own_parameters() {
    let mut numbers = Numbers(10);
    let sizes = [1e-30f32, 1e-3, 1.0, 1e10, 1e30];
    let of_sizes = |numbers: &mut Numbers| -> Vec<Vec<f32>> {
        sizes.map(|size| numbers.vec(37).iter().map(|x| size * x).collect()).into()
    };
    let tensors = of_sizes(&mut numbers);
    for rule in Rule::all() {
        let specs = [Spec {
            per_tensor: true,
            decay: WeightDecay::Coupled(0.125),
            trust: Some(0.01),
            ..Spec::new(rule, Regime::fixed(0.5), tensors.clone())
        }];
        for mut run in every_path(&specs) {
            for _ in 0..3 {
                let before = run.params();
                let grads = of_sizes(&mut numbers);
                run.step(&grads);
                for (tensor, record) in run.records().records.iter().enumerate() {
                    let seen = grads[tensor].iter().zip(&before[tensor]);
                    let seen = seen.map(|(&g, &w)| f64::from(g) + 0.125 * f64::from(w));
                    let direction = if rule.is_scale_free() { 37f64.sqrt() } else { norm(seen) };
                    let w = norm(before[tensor].iter().map(|&w| f64::from(w)));
                    // Signs are so long compared with the smallest parameters, and so short compared with the largest, that the bounds act. They can
                    // also move all of the smallest parameters back to zero at once.
                    let trust = match w {
                        0.0 => 1.0,
                        _ => (0.01 * w / direction).clamp(1e-8, 1e8),
                    };
                    let what = format!("{}, {}, tensor {tensor}", run.path(), rule.name());
                    assert_quotient(&what, record.trust_ratio, trust);
                    assert_quotient(&what, record.learning_rate, 0.5 * trust);
                }
            }
        }
    }
}

/// A group of several tensors has one ratio, from all its parameters and gradients. The other group has none.
#[test]
fn a_group_of_several_tensors_has_one_trust_ratio() {
    let mut numbers = Numbers(11);
    let tensors = tensors(11, &[5000, 3, 64]);
    let trusting = Spec { trust: Some(0.1), ..Spec::new(Rule::sgdm(0.9), Regime::fixed(1.0), tensors.clone()) };
    let plain = Spec::new(Rule::sgd(), Regime::seesaw(), tensors.clone()).named("plain");
    for mut run in every_path_and_kind(&[plain, trusting]) {
        for _ in 0..3 {
            let before = run.params();
            let grads: Vec<Vec<f32>> = before.iter().map(|w| numbers.vec(w.len())).collect();
            run.step(&grads);
            let all = |tensors: &[Vec<f32>]| norm(tensors[3..].iter().flatten().map(|&x| f64::from(x)));
            let trust = 0.1 * all(&before) / all(&grads);
            let records = run.records();
            assert_eq!(records.tensors, []);
            let [plain, record] = &records.records[..] else {
                panic!("{} records", records.records.len());
            };
            assert_quotient(&run.path(), record.trust_ratio, trust);
            assert_eq!((plain.trust_ratio, plain.term(Term::Trust)), (1.0, 0.0));
        }
    }
}

/// Scaling the loss by a power of two changes no bit of the steps.
#[test]
fn the_scale_of_the_loss_changes_no_bit_with_a_trust_ratio() {
    let specs = [Spec { trust: Some(0.02), ..Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(14, &[77])) }];
    assert_alike("2^10", pairs(&specs, &specs), 6, |t, _| {
        let grads = noise(&specs, 15 + t);
        [times(1024.0, &grads), grads]
    });
}

/// Every layer of one optimizer follows an independent implementation of LARS.
#[test]
fn it_is_lars() {
    let numbers = |line: &str| line.split(',').map(|x| x.parse::<f64>().expect("a number")).collect::<Vec<_>>();
    let rows: Vec<Vec<f64>> = include_str!("../golden/trust.csv").lines().skip(1).map(numbers).collect();
    assert_eq!(rows.len(), 30);
    let layers = [3usize, 8, 21];
    let initial = |layer: usize| -> Vec<f32> {
        let scale = [1.0, 10.0, 0.0][layer];
        (0..layers[layer]).map(|i| (scale * (i as f64 + 1.0).sin()) as f32).collect()
    };
    let spec = Spec::new(Rule::sgdm(0.9), Regime::fixed(0.5), (0..3).map(initial).collect());
    let (decay, trust) = (WeightDecay::Coupled(0.01), Some(0.02));
    for mut run in every_path(&[Spec { decay, trust, per_tensor: true, telemetry: true, ..spec }]) {
        for t in 0..10 {
            let gradient = |layer: usize| -> Vec<f32> {
                let g = |i: usize| (i as f64 * (layer as f64 + 1.0) + 0.7 * t as f64).cos() / (1.0 + 0.3 * t as f64);
                (0..layers[layer]).map(|i| g(i) as f32).collect()
            };
            run.step(&[0, 1, 2].map(gradient));
            let records = run.records();
            let params = run.params();
            for layer in 0..3 {
                let row = &rows[10 * layer + t];
                let (group, tensor) = (&records.records[layer], &records.tensors[layer]);
                let got = [group.trust_ratio, tensor.parameter_norm, tensor.step_norm, params[layer][0]];
                for (got, &expected) in got.into_iter().zip(&row[2..]) {
                    let what = format_args!("{}, layer {layer}, step {t}", run.path());
                    assert_close(what, got, expected, 4e-6 * expected.abs().max(0.1));
                }
            }
        }
    }
}

/// Returns the gradient of a two-element tensor whose loss depends only on its direction. It is orthogonal to the tensor and has the length 1/‖w‖.
fn across(w: &[f32]) -> Vec<f32> {
    let [x, y] = [w[0], w[1]].map(f64::from);
    let square = x * x + y * y;
    vec![(-y / square) as f32, (x / square) as f32]
}

/// With e = ‖g‖/‖w‖, a step at the rate η gives e' = e/(1 + η² e²) (derived from arXiv:2306.00700). At η = 1/√(e_max e_min), the e of two tensors are
/// equal after one step, and those of ten tensors, initially spread by a factor of 10⁴, after four.
#[test]
fn effective_rates_of_scale_invariant_tensors_come_together() {
    for tensors in [2, 10] {
        // The initial e range from 1 to 1e-4.
        let sizes = (0..tensors).map(|i| 10f64.powf(2.0 * i as f64 / (tensors - 1) as f64));
        let initial: Vec<Vec<f32>> = sizes.map(|size| vec![(0.6 * size) as f32, (0.8 * size) as f32]).collect();
        let spec = Spec { telemetry: true, ..Spec::new(Rule::sgd(), Regime::fixed(1.0), initial) };
        for mut run in every_path(&[spec.named("all")]) {
            let mut expected: Vec<f64> =
                run.params().iter().map(|w| w.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().recip()).collect();
            let mut spreads = Vec::new();
            for t in 0..5 {
                let spread =
                    |e: &[f64]| e.iter().fold(0f64, |a, &b| a.max(b)) / e.iter().fold(f64::MAX, |a, &b| a.min(b));
                let (before, smallest) = (spread(&expected), expected.iter().fold(f64::MAX, |a, &b| a.min(b)));
                let rate = (before.sqrt() * smallest).recip() as f32;
                run.control("all", &|controls| controls.learning_rate_factor = rate);
                let grads: Vec<Vec<f32>> = run.params().iter().map(|w| across(w)).collect();
                run.step(&grads);
                let records = run.records().tensors;
                for (tensor, (record, e)) in records.iter().zip(&mut expected).enumerate() {
                    let what = format!("{}, tensor {tensor} of {tensors}, step {t}", run.path());
                    // The parameters have the length 1/√e, and the step has η √e.
                    assert_close(&what, f64::from(record.step_norm) / (f64::from(rate) * e.sqrt()), 1.0, 4e-6);
                    *e /= 1.0 + (f64::from(rate) * *e).powi(2);
                    assert_close(&what, record.effective_rate() / f64::from(rate) / *e, 1.0, 4e-6);
                }
                // A relative step is relative to the parameters after it.
                let rates: Vec<f64> = records.iter().map(TensorRecord::effective_rate).collect();
                assert_close("the effective rates", spread(&rates), spread(&expected), 1e-5 * spread(&expected));
                let relative: Vec<f64> = records.iter().map(TensorRecord::relative_step).collect();
                let got = TensorRecord::relative_step_spread(&records).expect("steps");
                assert_close("the relative steps", got, spread(&relative), 1e-12 * got);
                spreads.push(spread(&rates));
            }
            let aimed: &[f64] = if tensors == 2 { &[1.0] } else { &[44.0, 3.4, 1.19, 1.0] };
            for (step, (got, aimed)) in spreads.iter().zip(aimed).enumerate() {
                let allowed = if *aimed == 1.0 && tensors == 2 { 1e-6 } else { 0.02 * aimed };
                assert_close(format_args!("{}, {tensors} tensors, step {step}", run.path()), *got, *aimed, allowed);
            }
        }
    }
    assert_eq!(TensorRecord::relative_step_spread(&[]), None);
}
