//! Tests of results that are out of range: finite gradients never make a parameter or a momentum infinite, whatever the rate or the decay, in 16 bits
//! as well. Such an element takes no step, the others take theirs, and the record names the first one.
//!
//! Each of these faults was introduced by hand once and made a test fail: no comparison of the momentum, the largest f32 as the limit of f16, the key
//! written to the next record, and a telemetry kernel that reports nothing.

use wgpu_optim::{Averaging, Element, ErrorKind, NonFinitePolicy, Regime, Rounding, Rule, WeightDecay};
use wgpu_optim_conformance::run::{Setup, Spec, bits, devices, every_path, every_path_with};
use wgpu_optim_conformance::{Numbers, assert_says, drain, step};

/// The tensor and index of the elements whose new values are out of range: around multiples of four, blocks and ends.
const OUTSIDE: [(usize, usize); 6] = [(0, 4098), (0, 4099), (0, 8191), (1, 0), (1, 6), (2, 2)];

/// Returns two groups with a decay that multiplies every parameter by -1999. The elements in `OUTSIDE` are large enough to overflow, or small.
fn specs(rule: Rule, averaging: Averaging, telemetry: bool, stored: (Element, Rounding), outside: bool) -> Vec<Spec> {
    let large = if stored.0 == Element::F16 { 60_000.0 } else { 3e38 };
    let mut numbers = Numbers(1);
    let mut tensors = [8_193, 7, 3].map(|len| numbers.vec(len));
    for (tensor, element) in OUTSIDE {
        tensors[tensor][element] = if outside { large } else { 0.5 };
    }
    let [first, second, third] = tensors;
    [("first", vec![first, second]), ("second", vec![third])]
        .map(|(name, tensors)| {
            let mut spec = Spec::new(rule, Regime::fixed(1.0), tensors).named(name);
            spec.decay = WeightDecay::Decoupled(2e3);
            spec.averaging = averaging;
            spec.telemetry = telemetry;
            spec.stored(stored.0, Element::F32, stored.1)
        })
        .to_vec()
}

/// Takes one step on every path, and compares it with a step in which all results are in range.
fn check(rule: Rule, averaging: Averaging, telemetry: bool, stored: (Element, Rounding)) {
    let all = |outside| specs(rule, averaging, telemetry, stored, outside);
    let (outside, inside) = (all(true), all(false));
    let before: Vec<Vec<f32>> = outside.iter().flat_map(|spec| spec.tensors.clone()).collect();
    let mut numbers = Numbers(2);
    let gradients: Vec<Vec<f32>> = before.iter().map(|tensor| numbers.vec(tensor.len())).collect();
    for (mut run, mut other) in every_path(&outside).into_iter().zip(every_path(&inside)) {
        let what = format!("{}, {rule:?}, {averaging:?}, telemetry {telemetry}, {stored:?}", run.path());
        run.step(&gradients);
        other.step(&gradients);
        let mut expected = other.params();
        for (tensor, element) in OUTSIDE {
            expected[tensor][element] = before[tensor][element];
        }
        assert!(bits(&run.params()) == bits(&expected), "{what}");
        let records = run.records().records;
        assert_eq!(records.len(), 2, "{what}");
        for record in records {
            assert_eq!(record.overflow, Some((0, 4098)), "{what}");
            assert!(!record.flags.skipped(), "{what}");
            assert_says(record, &["out of range", "tensor \"first/0\" at index 4098"]);
        }
        assert!(other.records().records.iter().all(|record| record.overflow.is_none()), "{what}");
    }
}

#[test]
fn an_element_that_would_leave_its_range_takes_no_step_whatever_the_rule() {
    for rule in Rule::all() {
        check(rule, Averaging::Off, false, (Element::F32, Rounding::Masters));
    }
}

#[test]
fn nor_does_it_beside_averages_and_measurements() {
    for rule in [Rule::sgd(), Rule::adamw()] {
        for averaging in [Averaging::Off, Averaging::Running { start: 0 }] {
            check(rule, averaging, true, (Element::F32, Rounding::Masters));
        }
        check(rule, Averaging::Running { start: 0 }, false, (Element::F32, Rounding::Masters));
    }
    for rule in [Rule::sgd(), Rule::sign_sgd(), Rule::adamw_without_momentum()] {
        for telemetry in [false, true] {
            check(rule, Averaging::ScheduleFree, telemetry, (Element::F32, Rounding::Masters));
        }
    }
}

#[test]
fn nor_in_16_bits() {
    for element in [Element::F16, Element::Bf16] {
        for rounding in [Rounding::Masters, Rounding::Nearest, Rounding::Stochastic { seed: 1 }] {
            check(Rule::sgdm(0.9), Averaging::Off, false, (element, rounding));
        }
    }
}

/// The momentum of an element that takes no step keeps its value.
#[test]
fn a_momentum_that_would_overflow_stays_as_it_was() {
    let spec = Spec::new(Rule::sgdm(0.9), Regime::fixed(0.01), vec![vec![1.0; 37]]);
    let g = 3.3e38f32;
    for mut run in every_path(std::slice::from_ref(&spec)) {
        let path = run.path();
        for gradient in [g, g, g, -g] {
            run.step(&[vec![gradient; 37]]);
        }
        let overflows: Vec<bool> = run.records().records.iter().map(|record| record.overflow.is_some()).collect();
        assert_eq!(overflows, [false, true, true, false], "{path}");
        // The momentum is g, stays g in two steps, and is 0.9 g - g in the end.
        let g = f64::from(g);
        let expected = 1.0 - 0.01 * g - 0.01 * (0.9 * g - g);
        for w in &run.params()[0] {
            assert!((f64::from(*w) / expected - 1.0).abs() < 1e-6, "{path}: {w:e} for {expected:e}");
        }
    }
}

/// A given number of such steps in a row halts training where the policy says so. The other policy never halts.
#[test]
fn overflows_in_a_row_halt_by_policy() {
    let mut spec = Spec::new(Rule::sgd(), Regime::fixed(1.0), vec![vec![1.0, 3e38], vec![2.0]]);
    spec.decay = WeightDecay::Decoupled(2e3);
    let gradients = [vec![0.5, 0.0], vec![0.5]];
    for policy in [NonFinitePolicy::Skip, NonFinitePolicy::Error { after: 2 }] {
        for mut run in every_path_with(std::slice::from_ref(&spec), Setup { policy, ..Setup::default() }) {
            let what = format!("{}, {policy:?}", run.path());
            let (mut told, mut last) = (Vec::new(), Ok(()));
            let mut params = Vec::new();
            for _ in 0..5 {
                let step = run.try_step(&gradients);
                last = step.and_then(|()| run.try_records().map(|_| ()));
                told.push(last.is_ok());
                params.push(bits(&run.params()));
            }
            if policy == NonFinitePolicy::Skip {
                assert_eq!(told, [true; 5], "{what}");
                continue;
            }
            // Two steps were taken, except for one element. The third halts before it changes anything.
            assert_eq!(told, [true, true, false, false, false], "{what}");
            assert!(params[0] != params[1] && params[1] == params[2] && params[2] == params[4], "{what}");
            let error = last.expect_err("halted");
            assert_eq!(error.kind(), ErrorKind::Halted, "{what}: {error}");
            assert_says(&error, &["out of the range of their type", "\"group/0\" at index 1", "resume"]);
            run.resume();
            let told = run.try_step(&gradients).and_then(|()| run.try_records().map(|_| ()));
            assert!(told.is_ok(), "{what}: {told:?}");
        }
    }
}

/// The record of the step itself reports the overflow, not a later one, also in a ring of the smallest size.
#[test]
fn the_steps_own_record_tells() {
    for gpu in devices() {
        let mut run = wgpu_optim_conformance::run::gpu_run_with(
            &gpu,
            &[Spec::new(Rule::sgd(), Regime::fixed(10.0), vec![vec![0.0; 5]])],
            Setup { record_steps: Some(1), ..Setup::default() },
        );
        run.write_grads(&[vec![3e38; 5]]);
        let mut told = Vec::new();
        for _ in 0..4 {
            step(&gpu, &run.optimizer);
            told.extend(drain(&mut run.optimizer).records.iter().map(|record| record.overflow.is_some()));
        }
        assert_eq!(told, [true; 4], "{}", gpu.describe());
    }
}

/// A clip factor below the smallest normal f32 is split into two factors.
#[test]
fn a_clip_by_more_than_two_to_the_126_has_the_length_that_is_asked_for() {
    for (gradient, clip) in [(6e37f32, 0.5f32), (3e38, 0.5), (3e38, 1e-20), (1e20, 1e-30), (3.0, 1e-3)] {
        for decay in [WeightDecay::Coupled(0.0), WeightDecay::Coupled(1e-3)] {
            let mut spec = Spec::new(Rule::sgd(), Regime::fixed(1.0), vec![vec![0.0; 100]]);
            (spec.clip, spec.decay) = (clip, decay);
            for mut run in every_path(std::slice::from_ref(&spec)) {
                let what = format!("{}, {gradient:e} clipped to {clip:e}, {decay:?}", run.path());
                run.step(&[vec![gradient; 100]]);
                let length = run.params()[0].iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
                assert!((length / f64::from(clip) - 1.0).abs() < 1e-5, "{what}: {length:e}");
                let record = run.records().records.remove(0);
                assert!(record.flags.clipped() && record.clip_factor > 0.0, "{what}");
            }
        }
    }
}

/// In a skipped step, pass 4 still runs for the streams. The element that is not finite is not reported as a new value out of range.
#[test]
fn a_skipped_step_reports_nothing_out_of_range() {
    for separate_passes in [false, true] {
        let specs = [Spec::new(Rule::sgd(), Regime::auto_sgd(), vec![vec![0.5; 40]])];
        for mut run in every_path_with(&specs, Setup { separate_passes, ..Setup::default() }) {
            for bad in [false, false, true, false] {
                let mut gradients = vec![vec![0.25; 40]];
                if bad {
                    gradients[0][7] = f32::NAN;
                }
                run.step(&gradients);
            }
            let records = run.records().records;
            assert_eq!(records.len(), 4);
            for record in records {
                assert_eq!(record.overflow, None, "{}, separate passes {separate_passes}: {record}", run.path());
            }
        }
    }
}
