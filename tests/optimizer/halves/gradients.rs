//! Gradients that are sums of micro-batches, and gradients that are cleared, in every element type.

use super::{HALVES, LENGTHS, gradients, kept, paths_like, with_masters};
use wgpu_optim::{
    Averaging, Element, ErrorKind, LossScaler, NonFinitePolicy, Regime, Rounding, Rule, SecantForm, ShardSums,
    WeightDecay,
};
use wgpu_optim_conformance::run::{GpuRun, Place, Run, Setup, Spec, bits, devices, lengths, packed};
use wgpu_optim_conformance::{assert_all_close, tensors, times, ulps};

use crate::helpers::assert_same_bits;

/// Returns groups that use the gradient in different ways.
fn gradient_users() -> Vec<Spec> {
    let new = |rule, regime, name: &str| Spec::new(rule, regime, tensors(11, &LENGTHS)).named(name);
    let decay = WeightDecay::Coupled(0.1);
    let secant = Regime::barzilai_borwein(SecantForm::Geometric);
    vec![
        new(Rule::sgd(), Regime::seesaw(), "counters"),
        new(Rule::sgdm(0.9), Regime::seesaw(), "momentum"),
        new(Rule::adamw(), Regime::seesaw(), "adamw"),
        Spec { clip: 2.0, ..new(Rule::sgd(), Regime::norm_ratio(), "clip") },
        Spec { clip: 2.0, decay, maximize: true, ..new(Rule::nesterov(0.5), Regime::norm_ratio(), "clip and decay") },
        new(Rule::sgd(), Regime::barzilai_borwein(SecantForm::Long), "secant"),
        Spec { decay, ..new(Rule::sgdm(0.9), secant, "secant and decay") },
        new(Rule::sgd(), Regime::adgd(), "adgd"),
        Spec { averaging: Averaging::ScheduleFree, ..new(Rule::sgd(), Regime::seesaw(), "schedule-free") },
    ]
}

/// A sum of micro-batches gives the step of their mean. The bits are the same if the number of micro-batches is a power of two.
#[test]
fn a_sum_of_micro_batches_is_a_step_along_their_mean() {
    let scaler = Some(LossScaler { initial_scale: 16.0, growth_interval: 3, ..LossScaler::default() });
    let mut cases = Vec::new();
    for setup in [Setup::default(), Setup { scaler, ..Setup::default() }] {
        cases.extend([1, 3, 4].map(|micro_batches| (gradient_users(), setup, micro_batches)));
    }
    // Four times a 16-bit number is still exact in 16 bits.
    cases.extend(HALVES.map(|element| (with_masters(gradient_users(), element), Setup::default(), 4)));
    for (specs, setup, micro_batches) in cases {
        let sums = paths_like(&specs, &specs, Setup { micro_batches: Some(micro_batches), ..setup });
        for (mut sum, mut mean) in sums.into_iter().zip(paths_like(&specs, &specs, setup)) {
            let what = format!("{micro_batches} in {:?}, {setup:?}", specs[0].grads);
            for t in 1..=9 {
                assert_eq!(sum.loss_scale(), mean.loss_scale(), "{what}");
                let scale = if setup.scaler.is_some() { mean.loss_scale() } else { 1.0 };
                let grads = times(scale, &gradients(&specs, t));
                sum.step(&times(micro_batches as f32, &grads));
                mean.step(&grads);
                for (found, expected) in sum.records().records.iter().zip(&mean.records().records) {
                    let what = format!("{}, {what}, step {t}: {}", sum.path(), specs[found.group].name);
                    if micro_batches.is_power_of_two() {
                        assert_eq!(found, expected, "{what}");
                    } else {
                        assert!(ulps(found.norm, f64::from(expected.norm)) <= 4.0, "{what}");
                    }
                }
            }
            if micro_batches.is_power_of_two() {
                assert_same_bits(&*sum, &*mean, what);
                continue;
            }
            for (tensor, (found, expected)) in sum.params().iter().zip(&mean.params()).enumerate() {
                let what = format_args!("{}, {what}, {}", sum.path(), specs[tensor / LENGTHS.len()].name);
                let most = expected.iter().fold(1.0f64, |most, w| most.max(f64::from(w.abs())));
                assert_all_close(what, found, expected, 1e-4 * most);
            }
        }
    }
}

/// Asserts that the gradients are zeros, and that nothing around the tensors has changed.
#[track_caller]
fn assert_cleared(run: &mut GpuRun, what: &str) {
    run.expect_cleared();
    assert!(bits(&run.grads()).concat().iter().all(|&bits| bits == 0), "{}, {what}", run.path());
    run.assert_surroundings_untouched();
}

/// Returns settings whose kernels read the gradients in different ways before they clear them.
fn cleared(element: Element) -> Vec<Spec> {
    let mut specs = gradient_users();
    specs[0].telemetry = true;
    specs[1].trust = Some(0.1);
    for spec in &mut specs {
        spec.tensors.push(vec![]);
        spec.grads = element;
    }
    specs
}

#[test]
fn gradients_are_cleared_whatever_became_of_the_step() {
    let policy = NonFinitePolicy::Error { after: 2 };
    for element in [Element::F32, Element::F16, Element::Bf16] {
        let specs = cleared(element);
        for gpu in &devices() {
            // Parameters and gradients are in two buffers. In f32, a second layout has them in one.
            let mut layouts = vec![packed(&specs, 2, 1)];
            if element == Element::F32 {
                let end: usize = lengths(&specs).map(|len| len + 3).sum();
                let one = packed(&specs, 1, 2).into_iter();
                layouts.push(one.map(|place| Place { grads: (0, place.grads.1 + end), ..place }).collect());
            }
            for places in layouts {
                let run = |clears| {
                    GpuRun::with(gpu, &specs, places.clone(), |builder| {
                        let builder = builder.nonfinite_policy(policy);
                        if clears { builder.clear_gradients() } else { builder }
                    })
                };
                let (mut run, mut staying) = (run(true), run(false));
                for (t, what) in (1..).zip([
                    "a step",
                    "a second step",
                    "a skipped step",
                    "a step after it",
                    "a skipped step",
                    "the one that halts",
                    "a halted one",
                ]) {
                    let mut grads = gradients(&specs, t);
                    if t == 3 || t >= 5 {
                        grads[5][4098] = if t == 5 { f32::INFINITY } else { f32::NAN };
                    }
                    run.step(&grads);
                    staying.step(&grads);
                    assert_cleared(&mut run, &format!("{element:?}, {what}"));
                    staying.assert_surroundings_untouched();
                    assert_eq!(bits(&run.params()), bits(&staying.params()), "{}, {element:?}, {what}", run.path());
                }
                assert_eq!(run.try_records().map_err(|error| error.kind()).err(), Some(ErrorKind::Halted));
            }
        }
    }
}

#[test]
fn streams_and_ranks_clear_gradients_too() {
    let streams = Spec::new(Rule::sgd(), Regime::auto_sgd(), tensors(12, &LENGTHS));
    let streams = [streams.stored(Element::Bf16, Element::Bf16, Rounding::Masters)];
    let ranks = kept(Element::F16);
    for gpu in &devices() {
        let mut run = GpuRun::with(gpu, &streams, packed(&streams, 2, 1), |builder| builder.clear_gradients());
        for t in 1..=9 {
            let mut grads = gradients(&streams, t);
            if t == 5 {
                grads[2][1] = f32::NAN;
            }
            run.step(&grads);
            assert_cleared(&mut run, &format!("streams, {t}"));
        }
        let places = packed(&ranks, 2, 1);
        let mut run = GpuRun::with(gpu, &ranks, places, |builder| builder.clear_gradients().sharded(0, 1));
        for t in 1..=3 {
            let mut grads = gradients(&ranks, t);
            if t == 2 {
                grads[2][1] = f32::NAN;
            }
            let sums = run.measure(&grads);
            assert!(bits(&run.grads()).concat().iter().any(|&bits| bits != 0), "they are read again");
            let combined = ShardSums::combine(&[sums]).expect("combine");
            run.try_apply(&grads, &combined).expect("applies");
            assert_cleared(&mut run, &format!("ranks, {t}"));
        }
    }
}
