//! Promise: the CPU path, which can be built without wgpu, takes the steps of the f64 oracle under every setting of a group, and says so in its
//! records. It compiles in seconds, so that mutants of the CPU path are tried against it (docs/testing.md, "Mutants").

use wgpu_optim::{
    AmsGrad, Averaging, Element, LossScaler, Mechanic, NonFinitePolicy, Prodigy, Record, Regime, Rounding, Rule,
    ShardSums, Term, WeightDecay,
};
use wgpu_optim_conformance::oracle::{Oracle, Outcome};
use wgpu_optim_conformance::run::{CpuRun, Run, Setup, Spec};
use wgpu_optim_conformance::schedule::schedules;
use wgpu_optim_conformance::spec::regimes;
use wgpu_optim_conformance::stored::{half_ulp, rounded};
use wgpu_optim_conformance::{Numbers, assert_close, tensors, times};

/// From estimates whose steps are not lost in the rounding of the parameters, and that do not grow to where a decay of the parameters by so
/// much as they are makes differences of a last place grow.
const PRODIGY: Regime = Regime::Prodigy(Prodigy {
    learning_rate: 0.2,
    initial_estimate: 1e-2,
    coefficient: 1.0,
    growth: 1.2,
    beta3: None,
    bias_correction: false,
    safeguard_warmup: false,
});
const MECHANIC: Regime =
    Regime::Mechanic(Mechanic { learning_rate: 1.0, decay: 0.01, initial_scale: 1e-2, epsilon: 1e-8 });

/// Around the boundaries of SIMD registers and of blocks.
const LENGTHS: [usize; 4] = [37, 1, 0, 4099];

const STEPS: usize = 14;

/// Gradients of this step are not finite in one element, and of the next are zeros.
const BAD_STEP: usize = 9;

/// In units of the last place of the rate, the norm, or the largest parameter; of terms and alignments in those of 1.
const ULPS: f64 = 200.0;

fn spec(rule: Rule, regime: Regime) -> Spec {
    let name = format!("{}, {}", rule.name(), regime.name());
    Spec::new(rule, regime, tensors(1, &LENGTHS)).named(name)
}

/// By what gradients are multiplied: one in three by the first, the others by the second; and how much larger each step is than the next.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sizes {
    factors: [f32; 2],
    falls: f32,
}

const USUAL: Sizes = Sizes { factors: [1.0; 2], falls: 1.0 };

/// Gradients that agree for a while and then contradict each other, and whose norm falls and rises.
fn gradients(spec: &Spec, step: usize, sizes: Sizes) -> Vec<Vec<f32>> {
    let mut noise = Numbers(step as u64 + 2);
    let drift = if step < 7 { 1.0 } else { -1.0 };
    let size = [1.0, 0.8, 0.5, 0.4, 2.0, 3.0, 0.2][step % 7];
    let mut value = |(i, w): (usize, &f32)| {
        let g = size * (drift * w + 0.3 * noise.next());
        g * sizes.factors[usize::from(i % 3 > 0)] / sizes.falls.powi(step as i32)
    };
    let tensors = spec.tensors.iter();
    tensors
        .map(|tensor| rounded(spec.grads, &tensor.iter().enumerate().map(&mut value).collect::<Vec<f32>>()))
        .collect()
}

fn assert_record(what: &str, record: &Record, out: &Outcome, oracle: &Oracle) {
    let near = |field: &str, got: f64, expected: f64, size: f64| {
        let allowed = ULPS * f64::from(f32::EPSILON) * size.abs();
        assert_close(format_args!("{what}: {field}"), got, expected, allowed);
    };
    near("rate", record.learning_rate.into(), out.rate, out.rate_size);
    assert_eq!((record.flags.skipped(), record.flags.zero_gradient()), (out.skipped, out.zero), "{what}");
    assert_eq!((record.flags.first(), record.flags.halted()), (out.first, false), "{what}");
    if out.skipped || out.zero {
        return;
    }
    let norm = out.norm.min(f32::MAX.into());
    near("norm", record.norm.into(), norm, norm);
    near("smoothed norm", record.smoothed_norm.into(), oracle.smoothed.min(f32::MAX.into()), oracle.smoothed);
    if oracle.regime.needs_alignment() {
        near("slow alignment", record.slow_alignment.into(), out.slow, 1.0);
        near("fast alignment", record.fast_alignment.into(), out.fast, 1.0);
    }
    // Of formulas that give the rate itself the oracle has no terms.
    if matches!(oracle.regime, Regime::Seesaw(_) | Regime::NormRatio(_) | Regime::Hypergradient(_)) {
        for (term, expected) in [
            (Term::Norm, out.norm_term),
            (Term::Alignment, out.alignment_term),
            (Term::Brake, out.brake_term),
            (Term::Held, out.held_term),
        ] {
            near(term.name(), record.term(term).into(), expected, 1.0);
        }
    }
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

/// Steps of one optimizer, or of several ranks that have every other tensor each, against the oracle.
fn follow_the_oracle(spec: &Spec, setup: Setup, sizes: Sizes, ranks: usize) {
    let Spec { decay, clip, trust, schedule, params, .. } = spec;
    let group = format!("{decay:?}, clip {clip}, trust {trust:?}, {schedule:?}, {params:?}");
    let name = format!("{}, {group}, {setup:?}, {sizes:?}, {ranks} ranks", spec.name);
    let part = |all: &[Vec<f32>], rank: usize| -> Vec<Vec<f32>> {
        let piece = |t: &Vec<f32>| t[t.len() * rank / ranks..t.len() * (rank + 1) / ranks].to_vec();
        all.iter().map(piece).collect()
    };
    let run_of = |rank| {
        let tensors = part(&spec.tensors, rank);
        let shard = (ranks > 1).then_some((rank as u32, ranks as u32));
        CpuRun::with(&[Spec { tensors, telemetry: ranks == 1, ..spec.clone() }], Setup { shard, ..setup })
    };
    let mut runs: Vec<CpuRun> = (0..ranks).map(run_of).collect();
    let mut oracle = spec.oracle();
    let (mut skipped, mut last_rates) = (0, vec![0.0; ranks]);
    for step in 0..STEPS {
        let what = format!("{name}, step {step}");
        let mut grads = gradients(spec, step, sizes);
        match step {
            BAD_STEP => grads[3][4098] = f32::NAN,
            _ if step == BAD_STEP + 1 => grads.iter_mut().flatten().for_each(|g| *g = 0.0),
            _ => {}
        }
        let loss = (3.0 + 0.1 * step as f32) / (step + 1) as f32;
        oracle.loss = f64::from(loss);
        let out = oracle.step(&grads.concat());
        skipped += u32::from(out.skipped);
        let before: Vec<Vec<Vec<f32>>> = runs.iter().map(CpuRun::params).collect();
        let scaled = times(runs[0].loss_scale() * setup.micro_batches.unwrap_or(1) as f32, &grads);
        runs.iter_mut().for_each(|run| run.set_loss(loss));
        if ranks == 1 {
            runs[0].step(&scaled);
        } else {
            let parts: Vec<_> = (0..ranks).map(|rank| part(&scaled, rank)).collect();
            let sums: Vec<ShardSums> = runs.iter_mut().zip(&parts).map(|(run, part)| run.measure(part)).collect();
            let combined = ShardSums::combine(&sums).expect("sums of one step");
            for (run, part) in runs.iter_mut().zip(&parts) {
                run.try_apply(part, &combined).expect("applies");
            }
        }
        let after_step: Vec<Vec<Vec<f32>>> = runs.iter().map(CpuRun::params).collect();
        if ranks == 1 && spec.regime.needs_looks() {
            // Mostly smaller than those of the step, as where the curvature is above 0.
            let mut look = gradients(spec, step, sizes);
            let shrinks = if step % 5 == 4 { 1.5 } else { 0.4 };
            look.iter_mut().flatten().enumerate().for_each(|(i, g)| *g *= shrinks + 0.1 * (i % 3) as f32);
            oracle.look(&look.concat());
            let scale = runs[0].loss_scale() * setup.micro_batches.unwrap_or(1) as f32;
            runs[0].look(&times(scale, &look));
            assert_eq!(runs[0].params(), after_step[0], "{what}: a look moves nothing");
        }
        for (rank, (run, before)) in runs.iter_mut().zip(&before).enumerate() {
            let records = run.records();
            let (record, last_rate) = (&records.records[0], last_rates[rank]);
            assert_record(&what, record, &out, &oracle);
            assert_eq!((record.step, record.skipped), (step as u64, skipped), "{what}");
            let rate = f64::from(record.learning_rate);
            if last_rate > 0.0 {
                assert_close(format_args!("{what}: sum of the terms"), record.change(), (rate / last_rate).ln(), 1e-4);
            }
            last_rates[rank] = rate;
            let named = record.nonfinite.map(|found| (found.count, found.tensor));
            assert_eq!(named, (out.skipped && rank == ranks - 1).then_some((1, 3)), "{what}");
            let after = run.params();
            assert_eq!(records.tensors.len(), after.len() * usize::from(ranks == 1), "{what}");
            for ((record, after), before) in records.tensors.iter().zip(&after).zip(before) {
                let wide = |x: &f32| f64::from(*x);
                let moved = norm(after.iter().zip(before).map(|(a, b)| wide(a) - wide(b)));
                let size = norm(after.iter().map(wide));
                // Of 16 bits the masters are measured, of streams the one whose turn it was.
                if spec.params == Element::F32 && !spec.regime.needs_streams() {
                    assert_close(&what, record.parameter_norm, size, 1e-5 * size);
                    assert_close(&what, record.step_norm, moved, 1e-5 * moved);
                }
                assert_eq!((record.step, record.skipped), (step as u64, out.skipped), "{what}");
            }
            if out.skipped && !spec.regime.needs_streams() {
                assert_eq!(&after, before, "{what}");
            }
        }
        if sizes == USUAL {
            let whole = |of_run: &dyn Fn(&CpuRun) -> Vec<Vec<f32>>| -> Vec<f32> {
                let pieces: Vec<_> = runs.iter().map(of_run).collect();
                (0..LENGTHS.len()).flat_map(|tensor| pieces.iter().flat_map(move |p| p[tensor].clone())).collect()
            };
            let largest = oracle.w.iter().fold(0f64, |most, w| most.max(w.abs()));
            let lost = if spec.params == Element::F32 { 0.0 } else { half_ulp(spec.params, 2.0 * largest) };
            let allowed = lost + ULPS * f64::from(f32::EPSILON) * largest;
            let averages = oracle.average.as_ref().unwrap_or(&oracle.w);
            for (kind, got, expected) in
                [("parameter", whole(&CpuRun::params), &oracle.w), ("average", whole(&CpuRun::averages), averages)]
            {
                assert_eq!(got.len(), expected.len(), "{what}");
                for (i, (got, expected)) in got.into_iter().zip(expected).enumerate() {
                    assert_close(format_args!("{what}, {kind} {i}"), got, *expected, allowed);
                }
            }
        }
    }
    if let Some(scaler) = setup.scaler {
        // Doubled after steps 3, 6, 9 and 13, and halved by the bad one.
        assert_eq!(runs[0].loss_scale(), 8.0 * scaler.initial_scale, "{name}");
    }
}

fn alone(spec: &Spec) {
    follow_the_oracle(spec, Setup::default(), USUAL, 1);
}

#[test]
fn every_rule_and_regime_follows_the_oracle() {
    // v falls with a small β₂, so that the largest one is another.
    let falling = Rule::AmsGrad(AmsGrad { beta2: 0.25, ..AmsGrad::default() });
    for rule in Rule::all().into_iter().chain(Rule::of_matrices()).chain([falling]) {
        for regime in regimes().filter(|regime| regime.fits(&rule)) {
            alone(&spec(rule, regime));
        }
    }
}

/// Prodigy and Mechanic under every setting: what they keep is made of steps and gradients with all that is laid over them.
#[test]
fn estimates_follow_the_oracle_under_every_setting() {
    let Regime::Prodigy(prodigy) = PRODIGY else { unreachable!() };
    let prodigies = [
        prodigy,
        Prodigy { bias_correction: true, growth: 1.1, ..prodigy },
        Prodigy { safeguard_warmup: true, coefficient: 0.5, beta3: Some(0.8), learning_rate: 0.5, ..prodigy },
    ];
    let prodigies = prodigies.into_iter().flat_map(|prodigy| {
        let rules = [Rule::adamw(), Rule::adamw_without_momentum(), Rule::nadamw(), Rule::signum(0.9), Rule::lion()];
        rules.map(|rule| (rule, Regime::Prodigy(prodigy)))
    });
    let rules = [Rule::sgd(), Rule::sgdm(0.9), Rule::adamw(), Rule::lion()];
    for (rule, regime) in prodigies.chain(rules.map(|rule| (rule, MECHANIC))) {
        let plain = || spec(rule, regime);
        for decay in [WeightDecay::Coupled(0.1), WeightDecay::Decoupled(0.1)] {
            alone(&Spec { decay, clip: 3.0, maximize: true, ..plain() });
        }
        alone(&Spec { trust: Some(0.02), ..plain() });
        for schedule in schedules(7) {
            alone(&Spec { schedule, ..plain() });
        }
        alone(&Spec { averaging: Averaging::Exponential { decay: 0.75, start: 2 }, ..plain() });
        for element in [Element::F16, Element::Bf16] {
            alone(&plain().stored(element, element, Rounding::Masters));
        }
    }
}

#[test]
fn every_setting_of_a_group_follows_the_oracle() {
    let rules = [Rule::sgd(), Rule::nesterov(0.9), Rule::sign_sgd(), Rule::signum(0.9), Rule::adamw(), Rule::lion()];
    for (rule, regime) in rules.into_iter().flat_map(|rule| [Regime::seesaw(), Regime::fixed(0.01)].map(|r| (rule, r)))
    {
        let plain = || spec(rule, regime);
        for decay in [WeightDecay::Coupled(0.1), WeightDecay::Decoupled(0.1)] {
            alone(&Spec { decay, ..plain() });
            alone(&Spec { decay, clip: 3.0, maximize: true, ..plain() });
        }
        alone(&Spec { trust: Some(0.02), ..plain() });
        for schedule in schedules(7) {
            alone(&Spec { schedule, ..plain() });
        }
        for averaging in [
            Averaging::Running { start: 0 },
            Averaging::Exponential { decay: 0.75, start: 2 },
            Averaging::PolynomialDecay { eta: 8.0, start: 1 },
        ] {
            alone(&Spec { averaging, ..plain() });
        }
        for element in [Element::F16, Element::Bf16] {
            alone(&plain().stored(element, element, Rounding::Masters));
            alone(&plain().stored(Element::F32, element, Rounding::Masters));
        }
    }
    for rule in [Rule::sgd(), Rule::sign_sgd(), Rule::adamw_without_momentum()] {
        alone(&Spec { averaging: Averaging::ScheduleFree, ..spec(rule, Regime::seesaw()) });
        let decay = WeightDecay::Decoupled(0.1);
        alone(&Spec { averaging: Averaging::ScheduleFree, decay, ..spec(rule, Regime::fixed(0.01)) });
    }
}

#[test]
fn ranks_scales_and_micro_batches_follow_the_oracle() {
    let scaler = Some(LossScaler { growth_interval: 3, ..LossScaler::default() });
    for (rule, regime) in [
        (Rule::sgd(), Regime::seesaw()),
        (Rule::sgdm(0.9), Regime::norm_ratio()),
        (Rule::adamw(), Regime::seesaw()),
        (Rule::sgd(), Regime::polyak()),
        (Rule::sign_sgd(), Regime::schedule_free_plus()),
        (Rule::adamw(), PRODIGY),
        (Rule::sgdm(0.9), MECHANIC),
    ] {
        let plain = spec(rule, regime);
        let clipped = Spec { clip: 3.0, decay: WeightDecay::Coupled(0.1), ..plain.clone() };
        for spec in [plain, clipped] {
            follow_the_oracle(&spec, Setup { scaler, ..Setup::default() }, USUAL, 1);
            follow_the_oracle(&spec, Setup { micro_batches: Some(4), ..Setup::default() }, USUAL, 1);
            follow_the_oracle(&spec, Setup::default(), USUAL, 3);
        }
    }
}

/// Squares and sums that f32 cannot hold, of one size and of two. Parameters are then beyond what is compared.
#[test]
fn gradients_of_any_size_follow_the_oracle() {
    for rule in [Rule::sgd(), Rule::sgdm(0.5), Rule::sign_sgd(), Rule::adamw()] {
        for regime in [Regime::seesaw(), Regime::norm_ratio()] {
            for factors in [[1e30, 1e30], [1e-30, 1e-30], [1e30, 1e-30], [1e-13, 1.0], [1e13, 1.0], [1.9e12, 9e-13]] {
                follow_the_oracle(&spec(rule, regime), Setup::default(), Sizes { factors, ..USUAL }, 1);
            }
            // What is remembered is 10^19 times what comes.
            let falling = Sizes { factors: [1e37; 2], falls: 1e19 };
            follow_the_oracle(&spec(rule, regime), Setup::default(), falling, 1);
        }
    }
}

/// Twice in a row is a halt, and nothing moves until the caller goes on.
#[test]
fn steps_that_are_not_finite_halt_and_a_resumed_run_goes_on() {
    let spec = spec(Rule::sgdm(0.9), Regime::seesaw());
    let policy = NonFinitePolicy::Error { after: 2 };
    let mut run = CpuRun::with(std::slice::from_ref(&spec), Setup { policy, ..Setup::default() });
    let mut other = CpuRun::new(std::slice::from_ref(&spec));
    let good = gradients(&spec, 0, USUAL);
    let mut bad = good.clone();
    bad[0][0] = f32::INFINITY;
    for run in [&mut run, &mut other] {
        run.step(&good);
        run.step(&bad);
    }
    assert!(run.try_step(&bad).is_err() && run.try_step(&good).is_err());
    assert_eq!(run.params(), other.params());
    run.resume();
    run.step(&good);
    other.step(&good);
    assert_eq!(run.params(), other.params());
}
