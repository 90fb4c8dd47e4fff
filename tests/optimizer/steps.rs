//! Tests of steps: on every path and over 20 steps, they follow the f64 oracle record by record and parameter by parameter, for eight rules and every
//! combination of regime, weight decay, clip and direction.
//!
//! Besides the seeded faults below, each of these faults was introduced by hand once and made a test fail: counters that saturate at 6 on the host,
//! and a Nesterov direction from m alone.

use std::collections::BTreeSet;
use std::fmt::Display;
use wgpu_optim_conformance as conformance;

use wgpu_optim::internals::KernelSource;
use wgpu_optim::{
    Gpu, Group, Hypergradient, NormRatio, Optimizer, OptimizerBuilder, Record, Regime, Rule, Seesaw, Sgdm, Term,
    WeightDecay,
};
use wgpu_optim_conformance::oracle::{Oracle, Outcome};
use wgpu_optim_conformance::run::{Run, Spec, every_path};
use wgpu_optim_conformance::{Numbers, assert_close, upload};

use crate::regimes::rules;

const LEN: usize = 61;
const STEPS: usize = 20;

fn regimes() -> Vec<(&'static str, Regime)> {
    let initial_rate = Regime::NormRatio(NormRatio {
        initial_rate: Some(0.02),
        exponent: 0.7,
        smoothing: 0.5,
        ..NormRatio::default()
    });
    let odd_constants = Regime::Seesaw(Seesaw {
        exponent: 0.25,
        exponent_above: 0.8,
        gain: 0.3,
        early_steps: 1.5,
        smoothing: 0.0,
        norm_floor: 0.5,
        brake_slack: 0.0,
        first_step: Some(0.05),
    });
    vec![
        ("seesaw", Regime::seesaw()),
        ("odd seesaw", odd_constants),
        ("norm-ratio", Regime::norm_ratio()),
        ("norm-ratio from 0.02", initial_rate),
        ("hypergradient", Regime::Hypergradient(Hypergradient { gain: 0.2, ..Hypergradient::default() })),
        ("fixed", Regime::fixed(0.03)),
    ]
}

fn every_case() -> Vec<Spec> {
    let mut numbers = Numbers(1);
    let mut specs = Vec::new();
    for ((rule_name, rule), (regime_name, regime)) in
        rules().into_iter().flat_map(|rule| regimes().into_iter().map(move |regime| (rule, regime)))
    {
        for decay in [WeightDecay::Coupled(0.0), WeightDecay::Coupled(0.05), WeightDecay::Decoupled(0.1)] {
            for (clip, maximize) in [(f32::INFINITY, false), (f32::INFINITY, true), (0.8, false), (0.8, true)] {
                let name = format!("{rule_name}, {regime_name}, {decay:?}, clip {clip}, maximize {maximize}");
                let spec = Spec::new(rule, regime, vec![numbers.vec(LEN)]).named(name);
                specs.push(Spec { decay, clip, maximize, ..spec });
            }
        }
    }
    specs
}

/// Returns the gradient of a noisy diagonal quadratic with condition number 100, or of its negative where the case maximizes.
fn gradient(w: &[f32], maximize: bool, noise: &mut Numbers) -> Vec<f32> {
    w.iter()
        .enumerate()
        .map(|(i, w)| {
            let h = 10f32.powf(-2.0 * i as f32 / LEN as f32);
            let g = h * (w - (i as f32).cos()) + 0.1 * noise.next();
            if maximize { -g } else { g }
        })
        .collect()
}

/// Each operation in f32 has one rounding, 2^-24. The terms of a record come from sums of 61 products (8 roundings deep), a quotient, a logarithm of
/// two ulps, and the parameters' errors, which coupled decay and momentum feed back over 20 steps.
const TOLERANCE: f64 = 64.0 / 16_777_216.0;

#[track_caller]
fn assert_near(what: impl Display, got: f64, expected: f64) {
    assert_close(what, got, expected, TOLERANCE * expected.abs().max(1.0));
}

fn compare(what: &str, record: &Record, out: &Outcome, oracle: &Oracle) {
    let wide = |x: f32| f64::from(x);
    let asked = |alignment: f64| if oracle.regime.needs_alignment() { alignment } else { 0.0 };
    for (field, got, expected) in [
        ("norm", wide(record.norm), out.norm),
        ("smoothed norm", wide(record.smoothed_norm), oracle.smoothed),
        ("slow alignment", wide(record.slow_alignment), asked(out.slow)),
        ("fast alignment", wide(record.fast_alignment), asked(out.fast)),
        ("norm term", wide(record.term(Term::Norm)), out.norm_term),
        ("alignment term", wide(record.term(Term::Alignment)), out.alignment_term),
        ("brake term", wide(record.term(Term::Brake)), out.brake_term),
        ("held term", wide(record.term(Term::Held)), out.held_term),
        ("clamp term", wide(record.term(Term::Clamp)), out.clamp_term),
        ("schedule term", wide(record.term(Term::Schedule)), 0.0),
        ("ln rate", record.ln_rate, oracle.ln_rate.expect("started")),
        ("rate", wide(record.learning_rate) / out.rate, 1.0),
    ] {
        assert_near(format_args!("{what}: {field}"), got, expected);
    }
    assert_eq!(record.flags.first(), out.first, "{what}");
    assert!(!record.flags.zero_gradient() && !record.flags.skipped(), "{what}");
}

#[test]
fn twenty_steps_of_every_combination_follow_the_oracle() {
    let specs = every_case();
    assert_eq!(specs.len(), 8 * 6 * 3 * 2 * 2);
    for mut run in every_path(&specs) {
        let mut noise = Numbers(2);
        let mut oracles: Vec<Oracle> = specs.iter().map(Spec::oracle).collect();
        let (mut clipped, mut braked, mut decayed) = (0, 0, 0);
        for t in 0..STEPS {
            let params = run.params();
            let grads: Vec<Vec<f32>> =
                params.iter().zip(&specs).map(|(w, spec)| gradient(w, spec.maximize, &mut noise)).collect();
            run.step(&grads);
            let records = run.records().records;
            assert_eq!(records.len(), specs.len());
            for (i, spec) in specs.iter().enumerate() {
                let out = oracles[i].step(&grads[i]);
                let what = format!("{}, {}, step {t}", run.path(), spec.name);
                compare(&what, &records[i], &out, &oracles[i]);
                clipped += usize::from(records[i].flags.clipped());
                braked += usize::from(records[i].term(Term::Brake) < 0.0);
                decayed += usize::from(spec.decay != WeightDecay::Coupled(0.0));
            }
        }
        for ((params, spec), oracle) in run.params().iter().zip(&specs).zip(&oracles) {
            for (i, (w, expected)) in params.iter().zip(&oracle.w).enumerate() {
                assert_near(format_args!("{}, {}, parameter {i}", run.path(), spec.name), f64::from(*w), *expected);
            }
            let moved = params.iter().zip(&spec.tensors[0]).any(|(w, w0)| (w - w0).abs() > 0.01);
            assert!(moved, "{}: nothing was learnt", spec.name);
        }
        // Enough cases are clipped, braked and decayed.
        assert!(clipped > 1000 && braked > 100 && decayed > 1000, "{clipped} {braked} {decayed}");
    }
}

/// Seeded faults: an oracle with one wrong number is detected, so that the tolerance is not too wide.
#[test]
fn an_oracle_with_one_wrong_number_is_refused() {
    let w = Numbers(3).vec(LEN);
    type Alter = fn(&mut Oracle);
    let faults: Vec<(&str, Alter)> = vec![
        ("nothing", |_| {}),
        ("momentum", |o| o.rule = Rule::sgdm(0.899)),
        ("dampening", |o| o.rule = Rule::Sgdm(Sgdm { momentum: 0.9, dampening: 0.001, nesterov: false })),
        ("nesterov", |o| o.rule = Rule::nesterov(0.9)),
        ("decay", |o| o.decay = WeightDecay::Coupled(1e-3)),
        ("decoupled decay", |o| o.decay = WeightDecay::Decoupled(1e-2)),
        ("clip", |o| o.clip = 2.0),
        ("maximize", |o| o.maximize = true),
        ("exponent", |o| o.regime = Regime::Seesaw(Seesaw { exponent: 0.501, ..Seesaw::default() })),
        ("exponent above the first norm", |o| {
            o.regime = Regime::Seesaw(Seesaw { exponent_above: 1.501, ..Seesaw::default() })
        }),
        ("gain", |o| o.regime = Regime::Seesaw(Seesaw { gain: 0.5, ..Seesaw::default() })),
        ("early steps", |o| {
            o.regime = Regime::Seesaw(Seesaw { early_steps: 1.01 * Seesaw::default().early_steps, ..Seesaw::default() })
        }),
        ("smoothing", |o| o.regime = Regime::Seesaw(Seesaw { smoothing: 0.899, ..Seesaw::default() })),
        ("first step", |o| o.regime = Regime::Seesaw(Seesaw { first_step: Some(0.01001), ..Seesaw::default() })),
    ];
    for (name, alter) in faults {
        let mut wrong = Oracle::new(Rule::sgdm(0.9), Regime::seesaw(), &w);
        alter(&mut wrong);
        let spec = Spec::new(Rule::sgdm(0.9), Regime::seesaw(), vec![w.clone()]);
        let mut run = conformance::run::CpuRun::new(&[spec]);
        let mut noise = Numbers(4);
        let mut agree = true;
        for _ in 0..STEPS {
            let g = gradient(&run.params()[0], false, &mut noise);
            run.step(std::slice::from_ref(&g));
            let record = run.records().records.remove(0);
            let out = wrong.step(&g);
            agree &= std::panic::catch_unwind(|| compare(name, &record, &out, &wrong)).is_ok();
            let far =
                run.params()[0].iter().zip(&wrong.w).any(|(w, expected)| (f64::from(*w) - expected).abs() > TOLERANCE);
            agree &= !far;
        }
        assert_eq!(agree, name == "nothing", "a wrong {name}");
    }
}

/// Three steps have the results of `torch.optim.SGD`, computed by hand with η = 1/8, w = 1 and the gradients 1, 2, -1. All numbers are dyadic, so
/// that the results are exact. PyTorch's step is: g += λw; buf = g at first, then μ buf + (1-δ) g; g + μ buf with Nesterov; w -= η g.
#[test]
#[expect(clippy::excessive_precision, reason = "exact dyadic numbers, written out")]
fn fixed_is_torch_sgd() {
    let sgdm = |momentum, dampening, nesterov| Rule::Sgdm(Sgdm { momentum, dampening, nesterov });
    let half = Rule::sgdm(0.5);
    let coupled = WeightDecay::Coupled;
    let decoupled = WeightDecay::Decoupled;
    // 1 - 1/8 = 0.875; - 2/8 = 0.625; + 1/8 = 0.75.
    let cases: Vec<(&str, Rule, WeightDecay, bool, [f32; 3])> = vec![
        ("sgd", Rule::sgd(), coupled(0.0), false, [0.875, 0.625, 0.75]),
        ("climbing", Rule::sgd(), coupled(0.0), true, [1.125, 1.375, 1.25]),
        // buf 1, 2.5, 0.25.
        ("momentum 1/2", half, coupled(0.0), false, [0.875, 0.5625, 0.53125]),
        // buf 1, 0.5 + 1 = 1.5, 0.75 - 0.5 = 0.25: the first buffer is not dampened.
        ("dampening 1/2", sgdm(0.5, 0.5, false), coupled(0.0), false, [0.875, 0.6875, 0.65625]),
        // buf 1, 2.5, 0.25; u 1.5, 3.25, -0.875.
        ("nesterov 1/2", sgdm(0.5, 0.0, true), coupled(0.0), false, [0.8125, 0.40625, 0.515625]),
        // g 1.5, 2 + 0.40625 = 2.40625, …: w 0.8125, 0.51171875, -1 + 0.255859375 → 0.604736328125.
        ("weight decay 1/2", Rule::sgd(), coupled(0.5), false, [0.8125, 0.511_718_75, 0.604_736_328_125]),
        // w (1 - 1/16) - g/8 gives 0.8125, 0.51171875, 0.604736328125 as well. The two kinds of decay differ only with a momentum.
        ("decoupled 1/2", Rule::sgd(), decoupled(0.5), false, [0.8125, 0.511_718_75, 0.604_736_328_125]),
        // g 1.5, 2.40625, …; buf 1.5, 3.15625, …: w 0.8125, 0.41796875; g -0.791015625, buf 0.787109375.
        ("momentum, weight decay", half, coupled(0.5), false, [0.8125, 0.417_968_75, 0.319_580_078_125]),
        // buf 1, 2.5, 0.25: w 0.9375 - 0.125, 0.8125·15/16 - 0.3125, ….
        ("momentum, decoupled", half, decoupled(0.5), false, [0.8125, 0.449_218_75, 0.389_892_578_125]),
        // g -1 + 0.5 = -0.5, …: climbing with decay flips g only: w 1.0625, then -2 + 0.53125 = -1.46875, 1.24609375; 1 + 0.623046875.
        ("climbing with decay", Rule::sgd(), coupled(0.5), true, [1.0625, 1.246_093_75, 1.043_212_890_625]),
        ("signsgd", Rule::sign_sgd(), coupled(0.0), false, [0.875, 0.75, 0.875]),
        // m 0.5, 1.25, 0.125.
        ("signum 1/2", Rule::signum(0.5), coupled(0.0), false, [0.875, 0.75, 0.625]),
    ];
    let specs: Vec<Spec> = cases
        .iter()
        .map(|(name, rule, decay, maximize, _)| Spec {
            decay: *decay,
            maximize: *maximize,
            ..Spec::new(*rule, Regime::fixed(0.125), vec![vec![1.0; 7]]).named(*name)
        })
        .collect();
    for mut run in every_path(&specs) {
        for (t, g) in [1.0, 2.0, -1.0].into_iter().enumerate() {
            run.step(&vec![vec![g; 7]; specs.len()]);
            for (params, (name, .., expected)) in run.params().iter().zip(&cases) {
                assert_eq!(params, &vec![expected[t]; 7], "{}, {name}, step {t}", run.path());
            }
        }
    }
}

/// Clipping follows `torch.nn.utils.clip_grad_norm_`, in numbers that are exact: a norm of 4 and a clip of 1.
#[test]
fn clip_scales_the_gradient_and_the_record_says_so() {
    let spec = Spec::new(Rule::sgd(), Regime::fixed(0.5), vec![vec![0.0; 16]]);
    for mut run in every_path(&[Spec { clip: 1.0, ..spec }]) {
        run.step(&[vec![1.0; 16]]);
        run.step(&[vec![0.25; 16]]);
        let records = run.records().records;
        assert_eq!((records[0].norm, records[0].clip_factor, records[0].flags.clipped()), (4.0, 0.25, true));
        assert_eq!((records[1].norm, records[1].clip_factor, records[1].flags.clipped()), (1.0, 1.0, false));
        assert_eq!(run.params()[0], vec![-0.25; 16]);
    }
}

/// A device keeps its pipelines, so that a second optimizer of the same kind compiles nothing, whatever the sizes of its tensors.
#[test]
fn a_second_optimizer_of_the_same_kind_compiles_nothing() {
    for gpu in conformance::adapters() {
        let built = |gpu: &Gpu, rule, sizes: &[u64]| {
            let mut builder = OptimizerBuilder::new(rule).telemetry(true);
            for (index, &size) in sizes.iter().enumerate() {
                let buffers = [(); 2].map(|()| upload(gpu, &vec![0.0; size as usize]));
                let [params, grads] = [0, 1].map(|at| buffers[at].slice(..4 * size));
                let group = Group::new(format!("g{index}")).tensor(format!("t{index}"), params, grads);
                builder = builder.group(group);
            }
            conformance::build(builder, gpu)
        };
        // Clones of a pipeline share one source, whose address therefore identifies the pipeline.
        let kernels = |optimizer: &Optimizer| -> BTreeSet<*const KernelSource> {
            let dispatches = optimizer.dispatches().iter();
            dispatches.map(|dispatch| std::ptr::from_ref(dispatch.pipeline.source())).collect()
        };
        let first = built(&gpu, Rule::sgdm(0.9), &[64]);
        let second = built(&gpu.clone(), Rule::sgdm(0.9), &[4_096, 100_000]);
        assert_eq!(kernels(&first).len(), 5, "passes 1 to 5");
        assert_eq!(kernels(&first), kernels(&second), "{} compiled something again", gpu.describe());
        let other = built(&gpu, Rule::lion(), &[64]);
        assert_ne!(kernels(&first), kernels(&other));
        // Another device shares no pipelines with this one.
        let elsewhere = Gpu::from_parts(gpu.device().clone(), gpu.queue().clone());
        let apart = built(&elsewhere, Rule::sgdm(0.9), &[64]);
        assert!(kernels(&first).is_disjoint(&kernels(&apart)));
    }
}
