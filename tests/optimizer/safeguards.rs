//! Promises: a gradient that is not finite changes nothing, is counted and named; a zero gradient carries the rate over; whatever
//! follows is as if the bad step had never been.
//!
//! Faults tried once by hand, each failed its test: pass 4 without its skip, a group that looks at its own norm only, the first bad
//! element located by lane.

use wgpu_optim::gpu::Tuning;
use wgpu_optim::{Record, Regime, Rule, WeightDecay};
use wgpu_optim_conformance as conformance;
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Run, Spec, bits, every_path, packed};
use wgpu_optim_conformance::spec::without_counts;
use wgpu_optim_conformance::{Numbers, ulps};

/// Every kind of f32 that is not finite.
const NONFINITE: [u32; 8] = [
    0x7f80_0000, // +inf
    0xff80_0000, // -inf
    0x7fc0_0000, // the quiet NaN
    0xffc0_0000, // negative
    0x7f80_0001, // signalling, the least payload
    0xff80_0001, // signalling, negative
    0x7fff_ffff, // the largest payload
    0x7fa5_a5a5, // signalling, a payload
];

/// Three groups of every kind of memory: counters, momentum with decay and clip, none. The first has two tensors, one of several
/// blocks.
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

fn gradients(specs: &[Spec], seed: u64) -> Vec<Vec<f32>> {
    let mut numbers = Numbers(seed);
    conformance::run::lengths(specs).map(|len| numbers.vec(len)).collect()
}

/// Where a bad element is put: tensor and index.
fn spots(specs: &[Spec]) -> Vec<(usize, usize)> {
    conformance::run::lengths(specs)
        .enumerate()
        .flat_map(|(tensor, len)| [(tensor, 0), (tensor, len / 2), (tensor, len - 1)])
        .collect()
}

#[test]
fn a_bad_element_anywhere_skips_the_step_bit_for_bit() {
    let specs = specs();
    let spots = spots(&specs);
    let good: Vec<Vec<Vec<f32>>> = (0..4).map(|seed| gradients(&specs, seed)).collect();
    for (mut run, mut undisturbed) in every_path(&specs).into_iter().zip(every_path(&specs)) {
        let mut skipped = 0;
        for (t, grads) in good.iter().enumerate() {
            // Before the first step and between steps, so that every state has been there.
            let (before, states, rates) = (bits(&run.params()), run.states(), run.rates());
            for (i, &(tensor, element)) in spots.iter().enumerate() {
                for bad in [NONFINITE[i % 8], NONFINITE[(i + t + 3) % 8]] {
                    let mut grads = grads.clone();
                    grads[tensor][element] = f32::from_bits(bad);
                    run.step(&grads);
                    skipped += 1;
                    let what = format!("{}, step {t}, {bad:08x} in tensor {tensor} at {element}", run.path());
                    assert!(bits(&run.params()) == before, "{what}: parameters changed");
                    let records = run.records().records;
                    assert_eq!(records.len(), specs.len(), "{what}");
                    for record in &records {
                        assert!(record.flags.skipped() && record.norm.is_nan(), "{what}: {record:?}");
                        assert_eq!(record.skipped, skipped, "{what}");
                        let found = record.nonfinite.expect("what was not finite");
                        assert_eq!((found.count, found.tensor, found.element), (1, tensor, element as u64), "{what}");
                    }
                }
            }
            assert_eq!(without_counts(&run.states()), without_counts(&states), "{}, step {t}", run.path());
            assert_eq!(run.rates(), rates, "{}, step {t}", run.path());
            run.step(grads);
            undisturbed.step(grads);
            run.records();
            // The momentum and the counters are seen in the steps that follow.
            let what = format!("{}, step {t}: the bad steps left a trace", run.path());
            assert!(bits(&run.params()) == bits(&undisturbed.params()), "{what}");
            assert_eq!(without_counts(&run.states()), without_counts(&undisturbed.states()), "{what}");
        }
    }
}

/// A seeded fault that the test above must tell: an element that is large but finite is a step.
#[test]
fn the_largest_finite_gradient_is_no_reason_to_skip() {
    let specs = specs();
    for value in [f32::MAX, -f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1)] {
        let mut grads = gradients(&specs, 9);
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
    let mut grads = gradients(&specs, 2);
    let bad = [(0, 5000), (0, 8999), (1, 6), (2, 0), (2, 129), (3, 2)];
    for (i, (tensor, element)) in bad.into_iter().enumerate() {
        grads[tensor][element] = f32::from_bits(NONFINITE[i]);
    }
    for mut run in every_path(&specs) {
        run.step(&grads);
        for record in run.records().records {
            let found = record.nonfinite.expect("what was not finite");
            assert_eq!((found.count, found.tensor, found.element), (6, 0, 5000), "{}", run.path());
            let sentence = record.to_string();
            assert!(
                sentence.contains("skipped, 6 non-finite elements, the first in tensor 0 at index 5000"),
                "{sentence}"
            );
        }
    }
    // All of a large tensor.
    grads[0].fill(f32::NAN);
    for mut run in every_path(&specs) {
        run.step(&grads);
        let found = run.records().records[2].nonfinite.expect("what was not finite");
        assert_eq!((found.count, found.tensor, found.element), (9001 + 4, 0, 0), "{}", run.path());
    }
}

/// Parameters that are not finite would make the first step's length NaN: it waits until they are repaired elsewhere.
#[test]
fn parameters_that_are_not_finite_hold_up_the_automatic_first_step() {
    for bad in NONFINITE {
        for regime in [Regime::seesaw(), Regime::norm_ratio()] {
            let mut w = vec![1.0; 77];
            w[76] = f32::from_bits(bad);
            let spec = Spec::new(Rule::sgd(), regime, vec![vec![1.0; 3], w]);
            for mut run in every_path(std::slice::from_ref(&spec)) {
                let before = bits(&run.params());
                run.step(&[vec![1.0; 3], vec![1.0; 77]]);
                assert_eq!(bits(&run.params()), before, "{}, {bad:08x}", run.path());
                let record = run.records().records[0];
                assert!(record.flags.skipped() && record.flags.waiting(), "{record:?}");
                assert_eq!(record.ln_rate, f64::NEG_INFINITY);
                let found = record.nonfinite.expect("what was not finite");
                assert_eq!((found.count, found.tensor, found.element), (1, 1, 76), "{}", run.path());
                assert_eq!(run.rates(), [0.0]);
            }
        }
    }
}

/// Parameters that are not finite are seen through coupled decay at any time: the regularised gradient is not finite.
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
    let mut specs = specs();
    specs.truncate(1);
    let zeros: Vec<Vec<f32>> = conformance::run::lengths(&specs)
        .map(|len| (0..len).map(|i| if i % 2 == 0 { 0.0 } else { -0.0 }).collect())
        .collect();
    let grads = gradients(&specs, 5);
    for (mut run, mut at_once) in every_path(&specs).into_iter().zip(every_path(&specs)) {
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
        let record = run.records().records[0];
        assert!(record.flags.first() && record.step == 3, "{record:?}");
    }
}

/// A zero gradient later: the rate is carried over, plain rules stand still, momentum coasts, and the regime goes on from where
/// it was.
#[test]
fn zero_gradients_in_the_middle_carry_the_rate_over() {
    let mut numbers = Numbers(3);
    let w = numbers.vec(50);
    let rules = [Rule::sgd(), Rule::sign_sgd(), Rule::sgdm(0.5), Rule::nesterov(0.5), Rule::signum(0.5)];
    let specs: Vec<Spec> = rules
        .iter()
        .enumerate()
        .map(|(i, &rule)| Spec::new(rule, Regime::seesaw(), vec![w.clone()]).named(format!("{i}")))
        .collect();
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
            assert_eq!(after.smoothed.mantissa, state.smoothed.mantissa);
            assert_eq!(
                (after.mean_square.mantissa, after.smoothing_power),
                (state.mean_square.mantissa, state.smoothing_power)
            );
        }
        let after = run.params();
        assert_eq!(bits(&after[..2]), bits(&before[..2]), "{}: plain rules stand still", run.path());
        for i in 0..50 {
            let wide = |x: f32| f64::from(x);
            // m is g, halved; Nesterov looks ahead by another half; Signum's sign stays.
            for (group, direction) in
                [(2, 0.5 * wide(first[i])), (3, 0.25 * wide(first[i])), (4, wide(first[i]).signum())]
            {
                let expected = wide(before[group][i]) - wide(rates[group]) * direction;
                let off = (wide(after[group][i]) - expected).abs();
                assert!(off <= 1e-7, "{}, rule {group}, {i}: coasts to {} not {expected}", run.path(), after[group][i]);
            }
        }
    }
}

/// A tensor of zeros beside others, and single elements of either zero: sign(0) is 0.
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

/// The learning-rate buffer is what the record says, step after step, skipped or not.
#[test]
fn the_rate_buffer_follows_the_record() {
    let specs = specs();
    for mut run in every_path(&specs) {
        assert_eq!(run.rates(), [0.0, 0.0, 0.01], "a given rate holds from the start");
        for t in 0..6 {
            let mut grads = gradients(&specs, 20 + t);
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

/// The step counter is 64 bits wide and counts skipped steps too.
#[test]
fn steps_are_counted_in_order() {
    let spec = Spec::new(Rule::sgd(), Regime::norm_ratio(), vec![vec![1.0; 4]]);
    for mut run in every_path(std::slice::from_ref(&spec)) {
        for t in 0..10 {
            run.step(&[vec![if t % 3 == 1 { f32::NAN } else { 1.0 }; 4]]);
        }
        let records = run.records().records;
        let steps: Vec<u64> = records.iter().map(|record| record.step).collect();
        assert_eq!(steps, (0..10).collect::<Vec<u64>>(), "{}", run.path());
        assert_eq!(records[9].skipped, 3);
        let state = run.states()[0];
        assert_eq!((state.steps_low, state.steps_high, state.skipped), (10, 0, 3));
    }
    // The CPU path alone is enough to see that a run of good steps is not a run of skips.
    let mut good = CpuRun::new(&[spec]);
    good.step(&[vec![1.0; 4]]);
    assert_eq!(good.states()[0].skipped, 0);
}

/// The longest loops there are: every quad of the largest block bad, in gradients and parameters. Some drivers stop an invocation
/// after 65,535 trips in silence; the step must be skipped and the first element named all the same.
#[test]
fn the_longest_loops_still_find_what_is_not_finite() {
    for gpu in &conformance::run::devices() {
        for partials in conformance::kinds_of_partials(gpu) {
            let tuning = Tuning { workgroup_size: 2, quads_per_invocation: 4096, partials, finish_workgroup_size: 2 };
            let gpu = gpu.clone().with_tuning(tuning).expect("the largest blocks");
            let len = 2 * 4096 * 4;
            let specs = [
                Spec::new(Rule::sgd(), Regime::seesaw(), vec![vec![1.0; 4]]).named("good"),
                Spec::new(Rule::sgdm(0.9), Regime::seesaw(), vec![vec![f32::NAN; len]]),
            ];
            let mut run = GpuRun::new(&gpu, &specs, packed(&specs, 0, 0));
            run.step(&[vec![1.0; 4], vec![f32::INFINITY; len]]);
            let record = run.records().records[0];
            let found = record.nonfinite.expect("none is finite");
            assert_eq!(
                (found.count as usize, found.tensor, found.element),
                (2 * len, 1, 0),
                "{}, {partials:?}",
                run.path()
            );
            assert!(run.params()[1].iter().all(|w| w.is_nan()));
            assert_eq!(run.params()[0], [1.0; 4]);
        }
    }
}
