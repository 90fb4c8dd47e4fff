//! Promise: every regime that says what the rate is, every schedule, and layer-wise rates do what their papers' formulas say, on every
//! path: record by record and parameter by parameter against the f64 oracle. What the terms say adds up.

use wgpu_optim::{
    AdaGradNorm, AutoSgd, BarzilaiBorwein, DoG, DoWG, Error, Group, Ngn, OptimizerBuilder, Polyak, Record, Regime,
    Rule, Schedule, SecantForm, Sgdm, Term, WeightDecay,
};
use wgpu_optim_conformance as conformance;
use wgpu_optim_conformance::Numbers;
use wgpu_optim_conformance::oracle::Oracle;
use wgpu_optim_conformance::run::{Spec, alone, bits, devices, every_path};

const LEN: usize = 61;
const STEPS: usize = 20;

/// The regimes that say what the rate is, and a bound of the secant's that acts.
fn formulas() -> Vec<(&'static str, Regime)> {
    let tight = Regime::BarzilaiBorwein(BarzilaiBorwein {
        max_change: 1.1,
        initial_rate: Some(0.01),
        ..BarzilaiBorwein::new(SecantForm::Geometric)
    });
    vec![
        ("adagrad-norm", Regime::AdaGradNorm(AdaGradNorm { scale: 0.3, offset: 0.5 })),
        ("bb-long", Regime::barzilai_borwein(SecantForm::Long)),
        ("bb-short", Regime::barzilai_borwein(SecantForm::Short)),
        ("bb-geometric, tight", tight),
        ("adgd", Regime::adgd()),
        ("dog", Regime::DoG(DoG { initial_distance: 1e-2 })),
        ("dowg", Regime::DoWG(DoWG { initial_distance: 1e-2 })),
        ("polyak", Regime::Polyak(Polyak { optimum: 0.1, factor: 2.0, max_rate: 0.2 })),
        ("ngn", Regime::Ngn(Ngn { rate: 0.5 })),
    ]
}

/// Streams that know after five rounds, and streams of which the middle one wins then.
fn streams() -> Vec<(&'static str, Regime)> {
    let auto = |factor, certainty| Regime::AutoSgd(AutoSgd { factor, certainty, rounds: 4, ..AutoSgd::default() });
    vec![("auto-sgd", auto(3.0, 0.0)), ("auto-sgd, never certain", auto(2.0, 1e9))]
}

fn rules() -> [(&'static str, Rule); 8] {
    let dampened = Rule::Sgdm(Sgdm { momentum: 0.8, dampening: 0.3, nesterov: false });
    [
        ("sgd", Rule::sgd()),
        ("sgdm", Rule::sgdm(0.9)),
        ("dampened", dampened),
        ("nesterov", Rule::nesterov(0.9)),
        ("signsgd", Rule::sign_sgd()),
        ("signum", Rule::signum(0.9)),
        ("adamw", Rule::adamw()),
        ("lion", Rule::lion()),
    ]
}

/// Gradients that do not depend on the parameters, so that errors do not feed back: a pull that turns and fades, and noise.
fn gradient(t: usize, noise: &mut Numbers) -> Vec<f32> {
    (0..LEN).map(|i| ((i + 2 * t) as f32).cos() / (1.0 + 0.2 * t as f32) + 0.3 * noise.next()).collect()
}

/// It falls with noise, jumps once, and is below any optimum in the end.
fn loss(t: usize, noise: &mut Numbers) -> f32 {
    match t {
        11 => 40.0,
        19 => -1.0,
        _ => 3.0 / (1.0 + t as f32) + 0.2 * noise.next().abs(),
    }
}

/// A record's terms come from sums of 61 products, a quotient and a logarithm or two; a secant's y is a difference, which is as
/// uncertain as the two gradients are; 20 steps add up.
const TOLERANCE: f64 = 256.0 / 16_777_216.0;

fn assert_close(what: &str, got: f64, expected: f64) {
    assert!(
        (got - expected).abs() <= TOLERANCE * expected.abs().max(1.0),
        "{what}: {got} but the oracle says {expected}"
    );
}

/// Runs 20 steps of all specs, which have one tensor each, on every path; hands every record to `see`.
fn follow_the_oracle(specs: &[Spec], mut see: impl FnMut(usize, &Record)) {
    for mut run in every_path(specs) {
        let mut noise = Numbers(5);
        let mut last_rates = vec![None; specs.len()];
        let mut oracles: Vec<Oracle> = specs.iter().map(Spec::oracle).collect();
        for t in 0..STEPS {
            let grads: Vec<Vec<f32>> = specs.iter().map(|_| gradient(t, &mut noise)).collect();
            let loss = loss(t, &mut noise);
            run.set_loss(loss);
            run.step(&grads);
            let records = run.records().records;
            assert_eq!(records.len(), specs.len());
            for (i, spec) in specs.iter().enumerate() {
                oracles[i].loss = f64::from(loss);
                let out = oracles[i].step(&grads[i]);
                let what = format!("{}, {}, step {t}", run.path(), spec.name);
                assert_close(&format!("{what}: norm"), f64::from(records[i].norm), out.norm);
                assert_close(&format!("{what}: ln rate"), records[i].ln_rate, out.rate.ln());
                let rate = f64::from(records[i].learning_rate);
                assert_close(&format!("{what}: rate"), rate / out.rate, 1.0);
                assert_eq!(records[i].flags.first(), out.first, "{what}");
                // The terms are the change, whatever was clamped.
                if let Some(last) = last_rates[i].replace(records[i].ln_rate) {
                    let change = records[i].ln_rate - last;
                    assert_close(&format!("{what}: sum of terms"), records[i].change(), change);
                }
                see(i, &records[i]);
            }
        }
        for ((params, spec), oracle) in run.params().iter().zip(specs).zip(&oracles) {
            for (i, (w, expected)) in params.iter().zip(&oracle.w).enumerate() {
                let what = format!("{}, {}, parameter {i}", run.path(), spec.name);
                assert_close(&what, f64::from(*w), *expected);
            }
            assert_ne!(params, &spec.tensors[0], "{}: nothing was learnt", spec.name);
        }
    }
}

#[test]
fn every_formula_follows_the_oracle() {
    let _alone = alone();
    let mut numbers = Numbers(1);
    let (mut clamped, mut clipped) = (0, 0);
    for some_rules in rules().chunks(6) {
        let mut specs = Vec::new();
        for &(rule_name, rule) in some_rules {
            for (regime_name, regime) in formulas() {
                for (decay, clip, maximize) in [
                    (WeightDecay::Coupled(0.0), f32::INFINITY, false),
                    (WeightDecay::Coupled(0.05), f32::INFINITY, true),
                    (WeightDecay::Decoupled(0.01), 2.0, false),
                ] {
                    specs.push(Spec {
                        decay,
                        clip,
                        maximize,
                        ..Spec::new(rule, regime, vec![numbers.vec(LEN)])
                            .named(format!("{rule_name}, {regime_name}, {decay:?}, clip {clip}"))
                    });
                }
            }
        }
        follow_the_oracle(&specs, |_, record| {
            clamped += usize::from(record.flags.clamped_change());
            clipped += usize::from(record.flags.clipped());
        });
    }
    // The cases exercise what they name.
    assert!(clamped > 50 && clipped > 500, "{clamped} {clipped}");
}

/// In an optimizer of its own: streams take turns in all of it.
#[test]
fn streams_follow_the_oracle() {
    let _alone = alone();
    for (name, regime) in streams() {
        for maximize in [false, true] {
            let mut specs = Vec::new();
            for rule in [Rule::sgd(), Rule::sign_sgd()] {
                for (decay, clip, schedule) in [
                    (WeightDecay::Coupled(0.0), f32::INFINITY, Schedule::Constant),
                    (WeightDecay::Coupled(0.05), f32::INFINITY, Schedule::InverseSqrt { warmup: 3 }),
                    (WeightDecay::Decoupled(0.01), 2.0, Schedule::Constant),
                ] {
                    specs.push(Spec {
                        decay,
                        clip,
                        maximize,
                        schedule,
                        ..Spec::new(rule, regime, vec![Numbers(3).vec(LEN)])
                            .named(format!("{}, {name}, {decay:?}, maximize {maximize}", rule.name()))
                    });
                }
            }
            let mut ends = 0;
            let mut outcomes = Vec::new();
            follow_the_oracle(&specs, |_, record| {
                ends += usize::from(record.flags.episode_ends());
                outcomes.extend(record.outcome);
            });
            assert_eq!(ends, specs.len() * (1 + devices().len()), "{name}");
            assert_eq!(outcomes.len(), ends);
        }
    }
}

#[test]
fn every_schedule_multiplies_every_kind_of_regime() {
    let _alone = alone();
    let schedules = [
        Schedule::Constant,
        Schedule::WarmupCosine { warmup: 4, steps: 15, last: 0.0 },
        Schedule::WarmupCosine { warmup: 0, steps: 30, last: 0.1 },
        Schedule::InverseSqrt { warmup: 3 },
        Schedule::Step { every: 6, factor: 0.3 },
        Schedule::OneCycle { rise: 6, steps: 18, first: 0.04, last: 0.001 },
    ];
    let regimes =
        [Regime::fixed(0.1), Regime::seesaw(), Regime::polyak(), Regime::barzilai_borwein(SecantForm::Geometric)];
    let mut specs = Vec::new();
    for schedule in schedules {
        for regime in regimes {
            specs.push(Spec {
                schedule,
                ..Spec::new(Rule::sgdm(0.9), regime, vec![Numbers(3).vec(LEN)])
                    .named(format!("{schedule:?}, {}", regime.name()))
            });
        }
    }
    let mut moved = vec![0.0f32; specs.len()];
    follow_the_oracle(&specs, |i, record| moved[i] += record.term(Term::Schedule).abs());
    for (spec, moved) in specs.iter().zip(moved) {
        let constant = spec.schedule == Schedule::Constant;
        assert_eq!(moved == 0.0, constant, "{}: {moved}", spec.name);
    }
}

#[test]
fn a_skipped_step_does_not_advance_the_schedule_or_any_state() {
    let _alone = alone();
    let specs: Vec<Spec> = formulas()
        .into_iter()
        .map(|(name, regime)| Spec {
            schedule: Schedule::InverseSqrt { warmup: 3 },
            ..Spec::new(Rule::sgdm(0.9), regime, vec![Numbers(3).vec(LEN)]).named(name)
        })
        .collect();
    for (mut run, mut other) in every_path(&specs).into_iter().zip(every_path(&specs)) {
        let mut noise = Numbers(8);
        for t in 0..6 {
            let grads: Vec<Vec<f32>> = specs.iter().map(|_| gradient(t, &mut noise)).collect();
            run.step(&grads);
            other.step(&grads);
            // One of the two also meets a NaN, and a loss that is none.
            let mut bad = grads.clone();
            bad[2][7] = f32::NAN;
            run.step(&bad);
            run.set_loss(f32::INFINITY);
            run.step(&grads);
            run.set_loss(1.0);
            let records = run.records().records;
            let skipped: Vec<&Record> = records.iter().filter(|r| r.flags.skipped()).collect();
            assert_eq!(skipped.len(), 2 * specs.len());
            assert!(skipped[0].nonfinite.is_some() && !skipped[0].flags.nonfinite_loss());
            let last = skipped[skipped.len() - 1];
            assert!(last.nonfinite.is_none() && last.flags.nonfinite_loss());
            assert!(last.to_string().contains("the loss is not finite"), "{last}");
        }
        assert_eq!(bits(&run.params()), bits(&other.params()), "{}", run.path());
        assert_eq!(run.rates(), other.rates(), "{}", run.path());
    }
}

#[test]
fn a_loss_that_nobody_gave_is_asked_for() {
    let _alone = alone();
    let w = [1.0f32; 4];
    let needs = |group: Group<_>| group.regime(Regime::polyak());
    let mut optimizer = OptimizerBuilder::new(Rule::sgd())
        .group(needs(Group::new("all")).tensor("w", &w[..], &w[..]))
        .build_cpu()
        .expect("builds");
    let mut params = w;
    let error = optimizer.step(&mut [&mut params], &[&w]).unwrap_err();
    assert!(matches!(error, Error::MissingLoss { .. }), "{error}");
    assert_eq!(params, w);
    for gpu in &devices() {
        let buffer = conformance::upload(gpu, &w);
        let other = conformance::upload(gpu, &w);
        let group = Group::new("all").regime(Regime::ngn());
        let error = OptimizerBuilder::new(Rule::sgd())
            .group(group.tensor("w", buffer.slice(..), other.slice(..)))
            .build(gpu)
            .unwrap_err();
        assert!(error.to_string().contains("OptimizerBuilder::loss"), "{error}");
    }
}

/// A group with a rate per tensor is as many groups of one tensor each, bit for bit, in no more dispatches.
#[test]
fn per_tensor_is_a_group_for_each_tensor() {
    let _alone = alone();
    let mut numbers = Numbers(4);
    let tensors: Vec<Vec<f32>> = [7, 300, 1, 64].map(|len| numbers.vec(len)).into();
    for regime in [Regime::seesaw(), Regime::dowg(), Regime::adgd()] {
        let mut together = Spec::new(Rule::sgd(), regime, tensors.clone());
        together.per_tensor = true;
        let apart: Vec<Spec> = tensors
            .iter()
            .enumerate()
            .map(|(i, tensor)| Spec::new(Rule::sgd(), regime, vec![tensor.clone()]).named(format!("{i}")))
            .collect();
        let runs = every_path(&[together]).into_iter().zip(every_path(&apart));
        for (mut run, mut other) in runs {
            assert_eq!(run.groups()[1].name, "group/group/1");
            for _ in 0..5 {
                let grads: Vec<Vec<f32>> = tensors.iter().map(|t| numbers.vec(t.len())).collect();
                run.step(&grads);
                other.step(&grads);
            }
            assert_eq!(run.rates(), other.rates(), "{}", run.path());
            assert_eq!(bits(&run.params()), bits(&other.params()), "{}", run.path());
            let rates = run.rates();
            assert!(rates.windows(2).all(|pair| pair[0] != pair[1]), "{rates:?}");
        }
    }
}
