//! Tests of bad gradients. One that is not finite changes nothing, is counted and named, and leaves no trace in later steps. A zero gradient carries
//! the rate over.
//!
//! Each of these faults was introduced by hand once and made a test fail: pass 4 without its skip, a group that checks only its own norm, and a first
//! bad element found per lane.

use wgpu_optim::gpu::Tuning;
use wgpu_optim::internals::layout::GroupState;
use wgpu_optim::{Element, NonFinite, Record, Regime, Rounding, Rule, Schedule, WeightDecay};
use wgpu_optim_conformance::run::{GpuRun, Run, Spec, bits, devices, every_path, lengths, packed};
use wgpu_optim_conformance::spec::without_counts;
use wgpu_optim_conformance::{
    NOT_FINITE, Numbers, assert_close, assert_says, filled, kinds_of_partials, noise, tensors, ulps,
};

use crate::helpers::{assert_same_bits, pairs};
use crate::regimes;

/// Returns three groups: one with counters, one with a momentum, decay and clip, and one without state. The first has two tensors, one of which has
/// several blocks.
fn specs() -> Vec<Spec> {
    let mut numbers = Numbers(1);
    vec![
        Spec::new(Rule::sgd(), Regime::seesaw(), vec![numbers.vec(9001), numbers.vec(7)]).named("counters"),
        Spec {
            decay: WeightDecay::Coupled(0.1),
            clip: 3.0,
            ..Spec::new(Rule::sgdm(0.9), Regime::seesaw(), vec![numbers.vec(130)]).named("momentum")
        },
        Spec::new(Rule::sign_sgd(), Regime::fixed(0.01), vec![numbers.vec(5)]).named("plain"),
    ]
}

/// Returns groups with parameters and gradients in 16 bits, one for each kind of rounding.
fn halves(element: Element) -> Vec<Spec> {
    let roundings = [Rounding::Masters, Rounding::Nearest, Rounding::Stochastic { seed: 7 }];
    let spec = |rounding: Rounding| {
        let spec = Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(13, &[1, 7, 4099])).named(rounding.name());
        spec.stored(element, element, rounding)
    };
    roundings.map(spec).to_vec()
}

/// Returns a group with a rate and a trust ratio for each tensor, and with telemetry.
fn watched() -> Vec<Spec> {
    let spec = Spec::new(Rule::sgdm(0.9), Regime::seesaw(), tensors(4, &[300, 7]));
    vec![Spec { per_tensor: true, trust: Some(0.1), telemetry: true, ..spec }]
}

/// Returns every regime of a formula under a schedule.
fn formulas() -> Vec<Spec> {
    let schedule = Schedule::InverseSqrt { warmup: 3 };
    let spec = |(name, regime): (&str, Regime)| {
        let rule =
            [Rule::sgdm(0.9), Rule::sgd(), Rule::adamw()].into_iter().find(|rule| regime.fits(rule)).expect("a rule");
        Spec::new(rule, regime, tensors(3, &[61])).named(name)
    };
    regimes::formulas().into_iter().map(|formula| Spec { schedule: schedule.clone(), ..spec(formula) }).collect()
}

/// Returns the tensor and index of the elements that are made bad.
fn spots(specs: &[Spec]) -> Vec<(usize, usize)> {
    let tensors = lengths(specs).enumerate();
    tensors.flat_map(|(tensor, len)| [(tensor, 0), (tensor, len / 2), (tensor, len - 1)]).collect()
}

/// Asserts that the record reports a skipped step, and how many elements were not finite and the first of them.
#[track_caller]
fn assert_skipped(what: &str, record: &Record, count: u32, tensor: usize, element: u64) {
    assert!(record.flags.skipped() && record.norm.is_nan(), "{what}: {record:?}");
    assert_eq!(record.nonfinite, Some(NonFinite { count, tensor, element }), "{what}");
}

#[test]
fn a_bad_element_anywhere_skips_the_step_bit_for_bit() {
    for specs in [specs(), halves(Element::F16), halves(Element::Bf16), watched(), formulas()] {
        let spots = spots(&specs);
        for (mut run, mut undisturbed) in pairs(&specs, &specs) {
            // `steps` includes the skipped ones.
            let (mut steps, mut skipped) = (0, 0);
            for t in 0..4 {
                let good = noise(&specs, t as u64);
                // Bad steps come before the first step and between steps, so that they meet every kind of state.
                let (before, states, rates) = (bits(&run.params()), run.states(), run.rates());
                for (i, &(tensor, element)) in spots.iter().enumerate() {
                    for bad in [NOT_FINITE[i % 8], NOT_FINITE[(i + t + 3) % 8]] {
                        let mut grads = good.clone();
                        grads[tensor][element] = f32::from_bits(bad);
                        run.step(&grads);
                        skipped += 1;
                        steps += 1;
                        let what = format!("{}, step {t}, {bad:08x} in tensor {tensor} at {element}", run.path());
                        assert!(bits(&run.params()) == before, "{what}: parameters changed");
                        let records = run.records().records;
                        assert_eq!(records.len(), run.groups().len(), "{what}");
                        for record in &records {
                            assert_skipped(&what, record, 1, tensor, element as u64);
                            assert_eq!((record.skipped, record.step), (skipped, steps - 1), "{what}");
                        }
                    }
                }
                let what = format!("{}, step {t}: the bad steps left a trace", run.path());
                assert_eq!(without_counts(&run.states()), without_counts(&states), "{what}");
                assert_eq!(run.rates(), rates, "{what}");
                run.step(&good);
                undisturbed.step(&good);
                steps += 1;
                let last = run.records().records.pop().expect("a record");
                assert_eq!((last.skipped, last.step, last.flags.skipped()), (skipped, steps - 1, false), "{what}");
                let state = run.states()[0];
                let counts = (state.steps_low.into(), state.steps_high, state.skipped);
                assert_eq!(counts, (steps, 0, skipped), "{what}");
                assert_eq!(undisturbed.states()[0].skipped, 0);
                // The next steps would show a change of the momentum or the counters. Stochastic rounding draws other bits, since the number of the
                // step differs.
                let groups = specs.iter().flat_map(|spec| vec![spec.rounding; spec.tensors.len()]);
                for ((params, undisturbed), rounding) in run.params().into_iter().zip(undisturbed.params()).zip(groups)
                {
                    let same = bits(&[params]) == bits(&[undisturbed]);
                    assert!(same || matches!(rounding, Rounding::Stochastic { .. }), "{what}");
                }
                assert_eq!(without_counts(&run.states()), without_counts(&undisturbed.states()), "{what}");
                assert_ne!(bits(&run.params()), before, "{what}: and then it goes on");
            }
        }
    }
}

/// A loss that is not finite skips the step, as a gradient does, where one of the regimes uses the loss.
#[test]
fn a_bad_loss_skips_the_step_bit_for_bit() {
    let specs = formulas();
    for (mut run, mut undisturbed) in pairs(&specs, &specs) {
        for t in 0..6 {
            let grads = noise(&specs, t);
            run.step(&grads);
            undisturbed.step(&grads);
            run.records();
            run.set_loss(f32::INFINITY);
            run.step(&grads);
            run.set_loss(1.0);
            for record in run.records().records {
                assert!(record.flags.skipped() && record.flags.nonfinite_loss(), "{}: {record:?}", run.path());
                assert_eq!(record.nonfinite, None);
                assert_says(record, &["the loss is not finite"]);
            }
            assert_same_bits(&*run, &*undisturbed, format_args!("step {t}"));
            assert_eq!(run.rates(), undisturbed.rates(), "{}", run.path());
        }
    }
}

/// An element that is large or tiny but finite does not skip the step.
#[test]
fn the_largest_finite_gradient_is_no_reason_to_skip() {
    let specs = specs();
    for value in [f32::MAX, -f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1)] {
        let mut grads = noise(&specs, 9);
        grads[1][3] = value;
        for mut run in every_path(&specs) {
            run.step(&grads);
            for record in run.records().records {
                assert!(!record.flags.skipped(), "{}, {value:e}: {record:?}", run.path());
                assert_eq!((record.skipped, record.nonfinite), (0, None));
            }
        }
    }
}

#[test]
fn many_bad_elements_are_counted_and_the_first_is_named() {
    let specs = specs();
    let mut grads = noise(&specs, 2);
    let bad = [(0, 5000), (0, 8999), (1, 6), (2, 0), (2, 129), (3, 2)];
    for (i, (tensor, element)) in bad.into_iter().enumerate() {
        grads[tensor][element] = f32::from_bits(NOT_FINITE[i]);
    }
    for mut run in every_path(&specs) {
        run.step(&grads);
        for record in run.records().records {
            assert_skipped(&run.path(), &record, 6, 0, 5000);
            let group = &specs[record.group].name;
            let begins = format!("step 0, \"{group}\": skipped");
            let words = [begins.as_str(), ", 6 non-finite elements, the first in tensor \"", "/0\" at index 5000"];
            assert_says(record, &words);
        }
    }
    // All elements of a large tensor are bad.
    grads[0].fill(f32::NAN);
    for mut run in every_path(&specs) {
        run.step(&grads);
        assert_skipped(&run.path(), &run.records().records[2], 9001 + 4, 0, 0);
    }
}

/// Parameters that are not finite would make the length of the first step NaN, so that the step waits until they have been repaired.
#[test]
fn parameters_that_are_not_finite_hold_up_the_automatic_first_step() {
    for bad in NOT_FINITE {
        for regime in [Regime::seesaw(), Regime::norm_ratio()] {
            let mut w = vec![1.0; 77];
            w[76] = f32::from_bits(bad);
            let spec = Spec::new(Rule::sgd(), regime, vec![vec![1.0; 3], w]);
            for mut run in every_path(std::slice::from_ref(&spec)) {
                let before = bits(&run.params());
                run.step(&[vec![1.0; 3], vec![1.0; 77]]);
                assert_eq!(bits(&run.params()), before, "{}, {bad:08x}", run.path());
                let record = run.records().records.remove(0);
                assert_skipped(&run.path(), &record, 1, 1, 76);
                assert!(record.flags.waiting() && record.ln_rate == f64::NEG_INFINITY, "{record:?}");
                assert_eq!(run.rates(), [0.0]);
            }
        }
    }
}

/// Coupled decay detects parameters that are not finite at any step, since the regularised gradient is not finite either.
#[test]
fn coupled_decay_sees_parameters_that_are_not_finite() {
    let spec = Spec {
        decay: WeightDecay::Coupled(0.5),
        ..Spec::new(Rule::sgd(), Regime::fixed(0.1), vec![vec![1.0, f32::INFINITY, 2.0]])
    };
    for mut run in every_path(&[spec]) {
        run.step(&[vec![1.0; 3]]);
        assert_eq!(run.params()[0], [1.0, f32::INFINITY, 2.0], "{}", run.path());
        assert!(run.records().records[0].flags.skipped());
    }
}

fn waiting(record: &Record) -> bool {
    record.flags.waiting() && record.flags.zero_gradient() && !record.flags.first()
}

#[test]
fn zero_gradients_before_the_first_step_wait_for_it() {
    let specs = &specs()[..1];
    let mut zeros = filled(specs, 0.0);
    zeros.iter_mut().for_each(|tensor| tensor.iter_mut().skip(1).step_by(2).for_each(|g| *g = -0.0));
    let grads = noise(specs, 5);
    for (mut run, mut at_once) in pairs(specs, specs) {
        let before = bits(&run.params());
        for _ in 0..3 {
            run.step(&zeros);
        }
        assert_eq!(bits(&run.params()), before, "{}", run.path());
        assert_eq!(run.rates(), [0.0]);
        let records = run.records().records;
        assert!(records.len() == 3 && records.iter().all(waiting), "{records:?}");
        assert!(records.iter().all(|record| record.ln_rate == f64::NEG_INFINITY && record.norm == 0.0));
        run.step(&grads);
        at_once.step(&grads);
        assert!(bits(&run.params()) == bits(&at_once.params()), "{}: waiting left a trace", run.path());
        assert_eq!(without_counts(&run.states()), without_counts(&at_once.states()), "{}", run.path());
        let record = run.records().records.remove(0);
        assert!(record.flags.first() && record.step == 3, "{record:?}");
    }
}

/// A zero gradient after the first step carries the rate over. Rules without momentum stand still, the momentum decays and moves the parameters, and
/// the regime keeps its state.
#[test]
fn zero_gradients_in_the_middle_carry_the_rate_over() {
    let mut numbers = Numbers(3);
    let w = numbers.vec(50);
    let rules = [Rule::sgd(), Rule::sign_sgd(), Rule::sgdm(0.5), Rule::nesterov(0.5), Rule::signum(0.5)];
    let specs = rules.map(|rule| Spec::new(rule, Regime::seesaw(), vec![w.clone()]).named(rule.name()));
    let first = numbers.vec(50);
    for mut run in every_path(&specs) {
        run.step(&vec![first.clone(); 5]);
        let (before, rates, states) = (run.params(), run.rates(), run.states());
        run.records();
        run.step(&vec![vec![-0.0; 50]; 5]);
        assert_eq!(run.rates(), rates, "{}", run.path());
        for (record, state) in run.records().records.iter().zip(&states) {
            assert!(record.flags.zero_gradient() && !record.flags.waiting(), "{record:?}");
            assert_eq!((record.norm, record.change()), (0.0, 0.0));
            assert_eq!(f64::from(record.learning_rate).ln() as f32, record.ln_rate as f32);
            assert!(record.smoothed_norm > 0.0);
            let after = run.states()[record.group];
            let of = |state: &GroupState| (state.smoothed.mantissa, state.mean_square.mantissa, state.smoothing_power);
            assert_eq!(of(&after), of(state));
        }
        let after = run.params();
        assert_eq!(bits(&after[..2]), bits(&before[..2]), "{}: plain rules stand still", run.path());
        for i in 0..50 {
            let wide = |x: f32| f64::from(x);
            // m is half of g. Nesterov halves it once more to look ahead. The sign that Signum uses does not change.
            let directions = [0.5 * wide(first[i]), 0.25 * wide(first[i]), wide(first[i]).signum()];
            for (group, direction) in (2..).zip(directions) {
                let expected = wide(before[group][i]) - wide(rates[group]) * direction;
                assert_close(format_args!("{}, rule {group}, {i}", run.path()), after[group][i], expected, 1e-7);
            }
        }
    }
}

/// Elements with a gradient of 0 or -0 do not move under sign rules, since sign(0) is 0.
#[test]
fn zero_elements_do_not_move_under_sign_rules() {
    for rule in [Rule::sign_sgd(), Rule::signum(0.9), Rule::lion()] {
        let spec = Spec::new(rule, Regime::fixed(0.5), vec![vec![1.0; 6]]);
        for mut run in every_path(std::slice::from_ref(&spec)) {
            run.step(&[vec![0.0, -0.0, 3.0, -3.0, 1e-30, -1e-30]]);
            assert_eq!(run.params()[0], [1.0, 1.0, 0.5, 1.5, 0.5, 1.5], "{}, {rule:?}", run.path());
        }
    }
}

/// The learning-rate buffer has the rate of the record after every step, skipped or not.
#[test]
fn the_rate_buffer_follows_the_record() {
    let specs = specs();
    for mut run in every_path(&specs) {
        assert_eq!(run.rates(), [0.0, 0.0, 0.01], "a given rate holds from the start");
        for t in 0..6 {
            let mut grads = noise(&specs, 20 + t);
            if t == 3 {
                grads[2][7] = f32::INFINITY;
            }
            run.step(&grads);
            let records = run.records().records;
            let rates = run.rates();
            for (record, rate) in records.iter().zip(&rates) {
                assert_eq!(record.learning_rate.to_bits(), rate.to_bits(), "{}, step {t}", run.path());
                assert!(*rate > 0.0 && ulps(*rate, record.ln_rate.exp()) <= 4.0, "{}, step {t}", run.path());
            }
            assert_eq!(rates[2], 0.01);
        }
    }
}

/// The longest possible loops, with every quad of the largest block bad in gradients and parameters, still skip the step and name the first element.
/// Some drivers silently stop an invocation after 65,535 trips.
#[test]
fn the_longest_loops_still_find_what_is_not_finite() {
    for gpu in &devices() {
        for partials in kinds_of_partials(gpu) {
            let tuning = Tuning { workgroup_size: 2, quads_per_invocation: 4096, partials, finish_workgroup_size: 2 };
            let gpu = gpu.clone().with_tuning(tuning).expect("the largest blocks");
            let len = 2 * 4096 * 4;
            let specs = [
                Spec::new(Rule::sgd(), Regime::seesaw(), vec![vec![1.0; 4]]).named("good"),
                Spec::new(Rule::sgdm(0.9), Regime::seesaw(), vec![vec![f32::NAN; len]]),
            ];
            let mut run = GpuRun::new(&gpu, &specs, packed(&specs, 0, 0));
            run.step(&[vec![1.0; 4], vec![f32::INFINITY; len]]);
            assert_skipped(&run.path(), &run.records().records[0], 2 * len as u32, 1, 0);
            assert!(run.params()[1].iter().all(|w| w.is_nan()));
            assert_eq!(run.params()[0], [1.0; 4]);
        }
    }
}
