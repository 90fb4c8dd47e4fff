//! Tests of every regime that computes the rate, of every schedule, and of trust ratios and rates per tensor. On every path they follow the formulas
//! of their papers: record by record and parameter by parameter they agree with the f64 oracle, and the terms of a record add up to the rate's
//! change.

use std::fmt::Display;

use wgpu_optim::{
    AdaGradNorm, AutoSgd, BarzilaiBorwein, Curvature, CurvatureForm, DoG, DoWG, Mechanic, Ngn, Polyak, Prodigy, Record,
    Regime, Rule, Schedule, ScheduleFreePlus, SecantForm, Sgdm, Term, WeightDecay,
};
use wgpu_optim_conformance::oracle::Oracle;
use wgpu_optim_conformance::run::{Spec, devices, every_path};
use wgpu_optim_conformance::schedule::{factor_at, schedules};
use wgpu_optim_conformance::{Numbers, assert_close, noise, tensors};

use crate::helpers::{assert_alike, pairs};

const LEN: usize = 61;
const STEPS: usize = 20;

/// Returns the regimes that compute the rate by a formula, one of them with a limit that acts.
pub fn formulas() -> Vec<(&'static str, Regime)> {
    let tight = Regime::BarzilaiBorwein(BarzilaiBorwein {
        max_change: 1.1,
        initial_rate: Some(0.01),
        ..BarzilaiBorwein::new(SecantForm::Geometric)
    });
    let alone = Curvature { smoothing: 0.5, ..Curvature::new(CurvatureForm::Geometric) };
    vec![
        ("adagrad-norm", Regime::AdaGradNorm(AdaGradNorm { scale: 0.3, offset: 0.5 })),
        ("bb-long", Regime::barzilai_borwein(SecantForm::Long)),
        ("bb-short", Regime::barzilai_borwein(SecantForm::Short)),
        ("bb-geometric, tight", tight),
        ("adgd", Regime::adgd()),
        ("look-short", Regime::curvature(CurvatureForm::Short)),
        ("look-long", Regime::curvature(CurvatureForm::Long)),
        ("look-geometric", Regime::Curvature(alone)),
        ("look-newton", Regime::curvature(CurvatureForm::Newton)),
        ("dog", Regime::DoG(DoG { initial_distance: 1e-2 })),
        ("dowg", Regime::DoWG(DoWG { initial_distance: 1e-2 })),
        ("polyak", Regime::Polyak(Polyak { optimum: 0.1, factor: 2.0, max_rate: 0.2 })),
        ("ngn", Regime::Ngn(Ngn { rate: 0.5 })),
        ("prodigy", Regime::Prodigy(Prodigy { initial_estimate: 1e-2, learning_rate: 0.3, ..Prodigy::default() })),
        ("mechanic", Regime::Mechanic(Mechanic { initial_scale: 1e-2, ..Mechanic::default() })),
        ("schedule-free-plus", Regime::ScheduleFreePlus(ScheduleFreePlus { optimum: 0.1, factor: 0.5 })),
    ]
}

/// Returns streams whose test is certain after five rounds, and streams whose test never is, of which the middle one wins.
fn streams() -> Vec<(&'static str, Regime)> {
    let auto = |factor, certainty| Regime::AutoSgd(AutoSgd { factor, certainty, rounds: 4, ..AutoSgd::default() });
    vec![("auto-sgd", auto(3.0, 0.0)), ("auto-sgd, never certain", auto(2.0, 1e9))]
}

/// Returns eight rules, one of them with dampening.
pub fn rules() -> [(&'static str, Rule); 8] {
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

/// Returns gradients that do not depend on the parameters, so that errors do not feed back: a part that rotates and fades, and noise.
fn gradient(t: usize, noise: &mut Numbers) -> Vec<f32> {
    (0..LEN).map(|i| ((i + 2 * t) as f32).cos() / (1.0 + 0.2 * t as f32) + 0.3 * noise.next()).collect()
}

/// Returns a loss that falls with noise, jumps once, and is below any optimum in the last step.
fn loss(t: usize, noise: &mut Numbers) -> f32 {
    match t {
        11 => 40.0,
        19 => -1.0,
        _ => 3.0 / (1.0 + t as f32) + 0.2 * noise.next().abs(),
    }
}

/// The terms of a record come from sums of 61 products, a quotient and one or two logarithms. The y of a secant is a difference of two gradients and
/// has the errors of both. The errors of 20 steps add up.
const TOLERANCE: f64 = 256.0 / 16_777_216.0;

#[track_caller]
fn assert_near(what: impl Display, got: impl Into<f64>, expected: f64) {
    assert_close(what, got, expected, TOLERANCE * expected.abs().max(1.0));
}

/// Takes 20 steps with all specs, which have one tensor each, on every path. Compares them with the oracle and passes every record to `see`.
fn follow_the_oracle(specs: &[Spec], mut see: impl FnMut(usize, &Record)) {
    for mut run in every_path(specs) {
        let mut noise = Numbers(5);
        let mut last_rates = vec![None; specs.len()];
        let mut oracles: Vec<Oracle> = specs.iter().map(Spec::oracle).collect();
        for t in 0..STEPS {
            let mut grads: Vec<Vec<f32>> = specs.iter().map(|_| gradient(t, &mut noise)).collect();
            // One gradient is zero, so that the trust ratio is carried over, except where a coupled decay makes the gradient nonzero.
            if t == 5 {
                grads.iter_mut().zip(specs).filter(|(_, spec)| spec.trust.is_some()).for_each(|(g, _)| g.fill(0.0));
            }
            let loss = loss(t, &mut noise);
            run.set_loss(loss);
            run.step(&grads);
            // The rates rise and fall.
            let turn = [0.5, -1.0][t % 2];
            let looks: Vec<Vec<f32>> =
                grads.iter().map(|g| g.iter().map(|g| turn * g + 0.1 * noise.next()).collect()).collect();
            if specs.iter().any(|spec| spec.regime.needs_looks()) {
                run.look(&looks);
            }
            let records = run.records().records;
            assert_eq!(records.len(), specs.len());
            for (i, spec) in specs.iter().enumerate() {
                oracles[i].loss = f64::from(loss);
                let out = oracles[i].step(&grads[i]);
                oracles[i].look(&looks[i]);
                let what = format!("{}, {}, step {t}", run.path(), spec.name);
                assert_near(format_args!("{what}: norm"), records[i].norm, out.norm);
                let allowed = TOLERANCE * out.rate_size / out.rate;
                let of_logarithm = allowed * out.rate.ln().abs().max(1.0);
                assert_close(format_args!("{what}: ln rate"), records[i].ln_rate, out.rate.ln(), of_logarithm);
                let ratio = f64::from(records[i].learning_rate) / out.rate;
                assert_close(format_args!("{what}: rate"), ratio, 1.0, allowed);
                assert_eq!(records[i].flags.first(), out.first, "{what}");
                // The terms add up to the change, whether or not it was clamped.
                if let Some(last) = last_rates[i].replace(records[i].ln_rate) {
                    assert_near(format_args!("{what}: terms"), records[i].change(), records[i].ln_rate - last);
                }
                see(i, &records[i]);
            }
        }
        for ((params, spec), oracle) in run.params().iter().zip(specs).zip(&oracles) {
            for (i, (w, expected)) in params.iter().zip(&oracle.w).enumerate() {
                // The distances of DoG and DoWG depend on the parameters and feed back on them: with momentum the errors reach 1.07 times TOLERANCE.
                let allowed = 2.0 * TOLERANCE * expected.abs().max(1.0);
                assert_close(format_args!("{}, {}, parameter {i}", run.path(), spec.name), *w, *expected, allowed);
            }
            assert_ne!(params, &spec.tensors[0], "{}: nothing was learnt", spec.name);
        }
    }
}

#[test]
fn every_formula_follows_the_oracle() {
    let mut numbers = Numbers(1);
    let (mut clamped, mut clipped) = (0, 0);
    for some_rules in rules().chunks(6) {
        let mut specs = Vec::new();
        let pairs = some_rules.iter().flat_map(|rule| formulas().into_iter().map(move |of| (rule, of)));
        for (of_rule, regime) in pairs.filter(|(rule, of)| of.1.fits(&rule.1)) {
            for (decay, clip, maximize) in [
                (WeightDecay::Coupled(0.0), f32::INFINITY, false),
                (WeightDecay::Coupled(0.05), f32::INFINITY, true),
                (WeightDecay::Decoupled(0.01), 2.0, false),
            ] {
                // DoWG with momentum is close to its tolerance, so that adding a regime must not change the random numbers of the others.
                let values = if regime.1.needs_schedule_free() { tensors(3, &[LEN]) } else { vec![numbers.vec(LEN)] };
                let spec = Spec::new(of_rule.1, regime.1, values);
                let name = format!("{}, {}, {decay:?}, clip {clip}", of_rule.0, regime.0);
                specs.push(Spec { decay, clip, maximize, ..spec.named(name) });
            }
        }
        follow_the_oracle(&specs, |_, record| {
            clamped += usize::from(record.flags.clamped_change());
            clipped += usize::from(record.flags.clipped());
        });
    }
    // Enough cases are clamped or clipped.
    assert!(clamped > 50 && clipped > 500, "{clamped} {clipped}");
}

/// These regimes need an optimizer by themselves, since all of its groups take turns.
#[test]
fn streams_follow_the_oracle() {
    for (name, regime) in streams() {
        for maximize in [false, true] {
            let mut specs = Vec::new();
            for rule in [Rule::sgd(), Rule::sign_sgd()] {
                for (decay, clip, schedule) in [
                    (WeightDecay::Coupled(0.0), f32::INFINITY, Schedule::Constant),
                    (WeightDecay::Coupled(0.05), f32::INFINITY, Schedule::InverseSqrt { warmup: 3 }),
                    (WeightDecay::Decoupled(0.01), 2.0, Schedule::Constant),
                ] {
                    let spec = Spec::new(rule, regime, tensors(3, &[LEN]));
                    let name = format!("{}, {name}, {decay:?}, maximize {maximize}", rule.name());
                    specs.push(Spec { decay, clip, maximize, schedule, ..spec.named(name) });
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
    let regimes =
        [Regime::fixed(0.1), Regime::seesaw(), Regime::polyak(), Regime::barzilai_borwein(SecantForm::Geometric)];
    let spec = |(schedule, regime): (Schedule, Regime)| {
        let name = format!("{schedule:?}, {}", regime.name());
        Spec { schedule, ..Spec::new(Rule::sgdm(0.9), regime, tensors(3, &[LEN])).named(name) }
    };
    let pairs = schedules(18).into_iter().flat_map(|schedule| regimes.map(|regime| (schedule.clone(), regime)));
    let specs: Vec<Spec> = pairs.map(spec).collect();
    let mut moved = vec![0.0f32; specs.len()];
    follow_the_oracle(&specs, |i, record| moved[i] += record.term(Term::Schedule).abs());
    for (spec, moved) in specs.iter().zip(moved) {
        let factor = |t| factor_at(&spec.schedule, t);
        let constant = (1..STEPS as u32).all(|t| factor(t) == factor(0));
        assert_eq!(moved == 0.0, constant, "{}: {moved}", spec.name);
    }
}

/// The trust ratio follows the oracle for every rule, decay and kind of regime, as a factor and as a cap. One case starts from parameters of zero,
/// whose ratio is 1 until they have moved.
#[test]
fn the_trust_ratio_is_the_oracles() {
    let regimes = [
        Regime::seesaw(),
        Regime::norm_ratio(),
        Regime::fixed(0.3),
        Regime::adagrad_norm(),
        Regime::barzilai_borwein(SecantForm::Geometric),
        Regime::DoG(DoG { initial_distance: 1e-2 }),
    ];
    let mut specs = Vec::new();
    let pairs = Rule::all().into_iter().flat_map(|rule| regimes.map(|regime| (rule, regime)));
    let pairs = pairs.filter(|(rule, regime)| regime.fits(rule));
    for ((rule, regime), caps) in pairs.flat_map(|pair| [(pair, false), (pair, true)]) {
        let at = specs.len();
        let spec = Spec::new(rule, regime, tensors(21 + at as u64, &[LEN])).named(format!(
            "{at}: {}, {}",
            rule.name(),
            regime.name()
        ));
        specs.push(Spec {
            trust: Some(0.02),
            trust_caps: caps,
            decay: [WeightDecay::Coupled(0.05), WeightDecay::Decoupled(0.05)][at / 2 % 2],
            schedule: if at % 3 == 0 { Schedule::InverseSqrt { warmup: 3 } } else { Schedule::Constant },
            ..spec
        });
    }
    specs[14].tensors[0].fill(0.0);
    let mut capped = 0;
    follow_the_oracle(&specs, |at, record| {
        capped += usize::from(specs[at].trust_caps && record.trust_ratio < 1.0);
        let spec = &specs[at];
        assert!(!spec.trust_caps || record.trust_ratio <= 1.0, "{}", spec.name);
        let follows = record.flags.first() && spec.regime == Regime::seesaw() && !spec.trust_caps;
        if follows && spec.decay.decoupled() == 0.0 {
            // The length of the first step does not depend on the ratio.
            assert!(record.trust_ratio != 1.0 || at == 14, "{}", spec.name);
        }
    });
    assert!(capped > STEPS, "caps lowered {capped} rates");
}

/// A group with a rate per tensor has the bits of one group for each tensor.
#[test]
fn per_tensor_is_a_group_for_each_tensor() {
    let tensors = tensors(4, &[7, 300, 1, 64]);
    for regime in [Regime::seesaw(), Regime::dowg(), Regime::adgd()] {
        let together = Spec { per_tensor: true, ..Spec::new(Rule::sgd(), regime, tensors.clone()) };
        let spec = |(i, tensor): (usize, &Vec<f32>)| {
            Spec::new(Rule::sgd(), regime, vec![tensor.clone()]).named(format!("{i}"))
        };
        let apart: Vec<Spec> = tensors.iter().enumerate().map(spec).collect();
        let alike = assert_alike(regime.name(), pairs(&[together], &apart), 5, |step, _| {
            [(); 2].map(|()| noise(&apart, 40 + step))
        });
        for (run, other) in alike {
            assert_eq!(run.groups()[1].name, "group/group/1");
            let rates = run.rates();
            assert_eq!(rates, other.rates(), "{}", run.path());
            assert!(rates.windows(2).all(|pair| pair[0] != pair[1]), "{rates:?}");
        }
    }
}
