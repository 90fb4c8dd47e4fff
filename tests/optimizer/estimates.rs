//! Tests of the estimates of Prodigy and Mechanic: they are those of the published methods, also where f32 cannot represent a difference of
//! parameters. Their state is in checkpoints, and records show what a rate follows from. `golden_trace` and `regimes` test the formulas.

use wgpu_optim::{AdamW, Estimate, Mechanic, Prodigy, Record, Regime, Rule, Term, WeightDecay};
use wgpu_optim_conformance::run::{Spec, bits, every_path};
use wgpu_optim_conformance::{Numbers, assert_close, tensors, times};

use crate::helpers::{assert_alike, pairs, raw_tensor};

const LENGTHS: [usize; 3] = [5, 66, 300];

fn spec(rule: Rule, regime: Regime, seed: u64) -> Spec {
    Spec::new(rule, regime, tensors(seed, &LENGTHS)).named(format!("{}, {}", rule.name(), regime.name()))
}

/// Returns gradients that do not depend on the parameters: a constant part with noise.
fn gradients(step: usize) -> Vec<Vec<f32>> {
    let mut noise = Numbers(step as u64 + 11);
    LENGTHS.map(|len| (0..len).map(|i| 0.3 * (i as f32).sin() + 0.05 * noise.next()).collect()).into()
}

/// The estimates follow the scale of the gradients: multiplying the loss by a power of two changes no bit of the steps, for AdamW with an ε far below
/// the gradients.
#[test]
fn a_rescaled_loss_changes_no_bit_under_prodigy() {
    let adamw = Rule::AdamW(AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-30 });
    let specs = [Rule::sign_sgd(), Rule::signum(0.9), Rule::lion(), adamw].map(|rule| spec(rule, Regime::prodigy(), 3));
    let repeated = |grads: &[Vec<f32>]| specs.iter().flat_map(|_| grads.to_vec()).collect::<Vec<_>>();
    for exponent in [-30i32, -7, 1, 30] {
        let alike = assert_alike(format_args!("2^{exponent}"), pairs(&specs, &specs), 30, |step, _| {
            let grads = repeated(&gradients(step as usize));
            [grads.clone(), times(2f32.powi(exponent), &grads)]
        });
        for (run, other) in alike {
            assert_eq!(bits(&[run.rates()]), bits(&[other.rates()]), "{}", run.path());
            assert!(run.rates().iter().all(|&rate| rate > 1e-4), "{:?}: d has grown", run.rates());
        }
    }
}

/// One ulp of parameters near 1000 is 6e-5, and the first steps at S = 1e-6 are lost in it. The displacement keeps them: where no decay depends on
/// the parameters, the scale has the bits that it has for parameters of 0, and the parameters move as far.
#[test]
fn mechanic_loses_no_step_in_large_parameters() {
    let regime = Regime::Mechanic(Mechanic { decay: 0.0, ..Mechanic::default() });
    let of = |value: f32| {
        let tensors = LENGTHS.map(|len| vec![value; len]).into();
        Spec { decay: WeightDecay::Coupled(0.0), ..Spec::new(Rule::adamw(), regime, tensors) }
    };
    for (mut small, mut large) in pairs(&[of(0.0)], &[of(1000.0)]) {
        for step in 0..60 {
            small.step(&gradients(step));
            large.step(&gradients(step));
            assert_eq!(bits(&[small.rates()]), bits(&[large.rates()]), "{}, step {step}", small.path());
        }
        let displacements = [&mut small, &mut large].map(|run| {
            let bytes = run.checkpoint().to_bytes();
            LENGTHS
                .map(|_| ())
                .iter()
                .enumerate()
                .map(|(i, ())| raw_tensor(&bytes, &format!("displacement/group/{i}")).2)
                .collect::<Vec<_>>()
        });
        assert_eq!(displacements[0], displacements[1], "{}", small.path());
        for (small, large) in small.params().concat().into_iter().zip(large.params().concat()) {
            assert!(small.abs() > 1e-4, "{small}");
            // 60 steps round by half an ulp each.
            assert_close("moved", f64::from(large) - 1000.0, f64::from(small), 60.0 * 3.1e-5);
        }
    }
}

/// The rate is γ d or γ S, and the terms of the record add up to its change.
#[test]
fn records_say_what_the_rate_follows_from() {
    let prodigy = Regime::Prodigy(Prodigy { learning_rate: 0.5, ..Prodigy::default() });
    let mechanic = Regime::Mechanic(Mechanic { learning_rate: 2.0, ..Mechanic::default() });
    let specs = [spec(Rule::adamw(), prodigy, 5), spec(Rule::sgdm(0.9), mechanic, 6)];
    for mut run in every_path(&specs) {
        let mut last: [Option<Record>; 2] = [None, None];
        let mut best = 0.0f32;
        for step in 0..40 {
            let mut grads = [gradients(step), gradients(step)].concat();
            match step {
                20 => grads[0][1] = f32::NAN,
                21 => grads.iter_mut().flatten().for_each(|g| *g = 0.0),
                _ => {}
            }
            run.step(&grads);
            let records = run.records().records;
            let what = format!("{}, step {step}", run.path());
            for (record, last) in records.iter().zip(&mut last) {
                if step == 20 || step == 21 {
                    assert_eq!(record.estimate, None, "{what}");
                    assert_eq!(record.learning_rate, last.as_ref().expect("a record").learning_rate, "{what}");
                    continue;
                }
                let (scale, factor, term) = match record.estimate {
                    Some(Estimate::Distance { numerator, denominator, distance }) => {
                        if denominator > 0.0 {
                            best = best.max(numerator / denominator);
                        }
                        assert_close(&what, distance, f64::from(best.max(1e-6)), 1e-5 * f64::from(distance));
                        (distance, 0.5, Term::Distance)
                    }
                    Some(Estimate::Scale { scale, product }) => {
                        assert_eq!(product == 0.0, step == 0, "{what}");
                        (scale, 2.0, Term::Alignment)
                    }
                    other => panic!("{what}: {other:?}"),
                };
                assert_close(&what, record.learning_rate, f64::from(factor * scale), 1e-6 * f64::from(scale));
                if let Some(last) = last {
                    let change = record.ln_rate - last.ln_rate;
                    assert_close(&what, record.term(term), change, 1e-5);
                    assert_close(&what, record.change(), change, 1e-5);
                }
                *last = Some(record.clone());
            }
        }
        let grown = last.map(|record| record.expect("a record").learning_rate);
        assert!(grown.iter().all(|&rate| rate > 1e-4), "{grown:?}");
    }
}

/// No stored value becomes infinite, neither by gradients whose sum overflows f32 nor in the steps after them.
#[test]
fn gradients_of_any_size_leave_all_finite() {
    for (rule, regime) in [
        (Rule::adamw(), Regime::prodigy()),
        (Rule::signum(0.9), Regime::prodigy()),
        (Rule::sgd(), Regime::mechanic()),
        (Rule::adamw(), Regime::mechanic()),
    ] {
        let spec = spec(rule, regime, 7);
        for mut run in every_path(std::slice::from_ref(&spec)) {
            for step in 0..40 {
                let size = [1.0, 1e37, 1e-37, 1e20, 1e-3, 1e-20][step % 6];
                run.step(&times(size, &gradients(step)));
                let what = format!("{}, {}, step {step}", run.path(), spec.name);
                assert!(run.params().concat().iter().all(|w| w.is_finite()), "{what}");
                assert!(run.rates().iter().all(|rate| rate.is_finite() && *rate > 0.0), "{what}: {:?}", run.rates());
            }
            let bytes = run.checkpoint().to_bytes();
            let kind = if regime.needs_estimate() { "estimate" } else { "displacement" };
            for (tensor, len) in LENGTHS.into_iter().enumerate() {
                let (.., data) = raw_tensor(&bytes, &format!("{kind}/{}", spec.tensor_name(tensor)));
                let values: Vec<f32> = bytemuck::pod_collect_to_vec(&data);
                assert_eq!(values.len(), len * if regime.needs_estimate() { 2 } else { 1 });
                assert!(values.iter().all(|x| x.is_finite()), "{}, {}", run.path(), spec.name);
            }
        }
    }
}

/// Where every gradient changes its sign, Mechanic's scale falls and the parameters return to their start.
#[test]
fn parameters_go_back_with_mechanics_scale() {
    let spec = Spec { decay: WeightDecay::Coupled(0.0), ..spec(Rule::sgd(), Regime::mechanic(), 8) };
    for mut run in every_path(std::slice::from_ref(&spec)) {
        let (mut farthest, mut far) = (0f32, 0f32);
        let mut scales = Vec::new();
        for step in 0..120 {
            let turned = if step < 60 { 1.0 } else { -1.0 };
            run.step(&times(turned, &gradients(step)));
            let ways = run.params().concat().into_iter().zip(spec.tensors.concat());
            far = ways.map(|(w, first)| (w - first).abs()).fold(0.0, f32::max);
            farthest = farthest.max(far);
            let record = run.records().records.pop().expect("a record");
            let Some(Estimate::Scale { scale, .. }) = record.estimate else { panic!("{record:?}") };
            scales.push(scale);
        }
        assert!(farthest > 10.0 && far < 1e-3 * farthest, "{}: {farthest} {far}", run.path());
        assert!(scales[59] > 1.0 && scales[119] < 1e-3 * scales[59], "{}: {scales:?}", run.path());
    }
}
