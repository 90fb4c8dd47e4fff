//! Promises: the properties P1 to P6 that the source claims of explainable learning rates (arXiv:2508.13639, abstract), as this
//! project's regimes have them; then the exact invariances, clamps and sums that the specification adds.
//!
//! Beside the kept faults below, tried once by hand: a clamp at 2.302 instead of ln 10.

use std::f64::consts::LN_10;
use wgpu_optim_conformance as conformance;

use proptest::prelude::*;
use wgpu_optim::gpu::PassName;
use wgpu_optim::{
    AdamW, Averaging, Gpu, MAX_CHANGE, NormRatio, OptimizerBuilder, Record, Regime, Rule, Seesaw, Sgdm, Term,
    WeightDecay, wgpu,
};
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Run, Spec, bits, devices, every_path, packed};
use wgpu_optim_conformance::{Numbers, ulps};

fn three_rules() -> [Rule; 3] {
    [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd()]
}

fn every_rule() -> Vec<Rule> {
    [&scale_free_rules()[..], &[Rule::adamw()]].concat()
}

/// All but AdamW, whose ε has a size.
fn scale_free_rules() -> [Rule; 7] {
    let dampened = Rule::Sgdm(Sgdm { momentum: 0.9, dampening: 0.5, nesterov: false });
    [Rule::sgd(), Rule::sgdm(0.9), dampened, Rule::nesterov(0.9), Rule::sign_sgd(), Rule::signum(0.9), Rule::lion()]
}

fn seesaw(change: impl FnOnce(&mut Seesaw)) -> Regime {
    let mut seesaw = Seesaw::default();
    change(&mut seesaw);
    Regime::Seesaw(seesaw)
}

/// A group per rule, each with tensors of these values.
fn group_per_rule(rules: &[Rule], regime: Regime, tensors: &[Vec<f32>]) -> Vec<Spec> {
    rules.iter().enumerate().map(|(i, &rule)| Spec::new(rule, regime, tensors.to_vec()).named(format!("{i}"))).collect()
}

fn repeated(grads: &[Vec<f32>], groups: usize) -> Vec<Vec<f32>> {
    (0..groups).flat_map(|_| grads.to_vec()).collect()
}

fn records(run: &mut dyn Run, group: usize) -> Vec<Record> {
    let records = run.records();
    assert_eq!(records.lost_steps, 0);
    records.records.into_iter().filter(|record| record.group == group).collect()
}

/// P1. The rate comes from the gradients alone: other parameters of the same norm, same rates, bit for bit; of another norm, another
/// first step and the same changes. (No loss value and no schedule can enter: a step takes none.)
#[test]
fn p1_rates_come_from_the_gradients_alone() {
    let mut numbers = Numbers(1);
    let w = numbers.vec(301);
    let flipped: Vec<f32> = w.iter().enumerate().map(|(i, w)| if i % 3 == 0 { -w } else { *w }).collect();
    let larger: Vec<f32> = w.iter().map(|w| 5.0 * w).collect();
    let other_grads = numbers.vec(301);
    let steps: Vec<Vec<f32>> = (0..10).map(|_| numbers.vec(301)).collect();
    let specs = |w: &[f32]| group_per_rule(&three_rules(), Regime::seesaw(), &[w.to_vec()]);
    let run = |w: &[f32], steps: &[Vec<f32>]| {
        every_path(&specs(w))
            .into_iter()
            .map(|mut run| {
                let mut rates = Vec::new();
                for g in steps {
                    run.step(&repeated(std::slice::from_ref(g), 3));
                    rates.push(run.rates().iter().map(|rate| rate.to_bits()).collect::<Vec<_>>());
                }
                let changes: Vec<_> = run.states().iter().map(|s| (s.change.whole, s.change.fraction)).collect();
                (rates, changes)
            })
            .collect::<Vec<_>>()
    };
    let of_w = run(&w, &steps);
    assert_eq!(of_w, run(&flipped, &steps), "other parameters of the same norm");
    let of_larger = run(&larger, &steps);
    let mut other = steps.clone();
    other[4] = other_grads;
    let of_other = run(&w, &other);
    for ((a, larger), other) in of_w.iter().zip(&of_larger).zip(&of_other) {
        assert_eq!(a.1, larger.1, "the changes do not depend on the parameters");
        assert_ne!(a.0[0], larger.0[0], "the first step does");
        assert_eq!(a.0[..4], other.0[..4]);
        assert_ne!(a.0[4], other.0[4], "another gradient, another rate");
    }
}

/// A regime without alignment: the norm term is all there is.
struct NormRegime {
    regime: Regime,
    /// p while n̂ is at most its first value, and above.
    exponents: [f64; 2],
}

impl NormRegime {
    /// What a norm lowers ln η by, from the first on.
    fn fall(&self, first: f64, norm: f64) -> f64 {
        self.exponents[usize::from(norm > first)] * (norm / first).ln()
    }
}

fn norm_regimes() -> Vec<NormRegime> {
    let ratio = |exponent, smoothing| {
        let regime = NormRatio { exponent, smoothing, initial_rate: Some(0.1), ..NormRatio::default() };
        NormRegime { regime: Regime::NormRatio(regime), exponents: [exponent.into(); 2] }
    };
    let seesaw = |exponent, exponent_above, smoothing| {
        let regime = Seesaw { exponent, exponent_above, smoothing, gain: 0.0, ..Seesaw::default() };
        NormRegime { regime: Regime::Seesaw(regime), exponents: [exponent.into(), exponent_above.into()] }
    };
    let default = Seesaw::default();
    vec![
        ratio(1.0, 0.9),
        ratio(0.5, 0.9),
        ratio(0.25, 0.0),
        seesaw(default.exponent, default.exponent_above, default.smoothing),
        seesaw(0.5, 0.5, 0.9),
        seesaw(1.0, 0.75, 0.5),
    ]
}

/// n̂ in f64 of a history of norms.
fn smoothed(regime: &Regime, norms: &[f32]) -> f64 {
    let beta = f64::from(regime.smoothing().0);
    let mean = norms.iter().fold(0.0, |mean, &n| beta * mean + (1.0 - beta) * f64::from(n) * f64::from(n));
    let unbiased = mean / (1.0 - beta.powi(norms.len() as i32));
    unbiased.sqrt().max(f64::from(*norms.last().expect("a norm")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// P2. With everything else equal η falls strictly as n rises: for any history, any two norms that are told apart, on each
    /// regime. What is "told apart" is counted: the norm has 1 ulp, ln two of the term, η three more.
    #[test]
    fn p2_rate_falls_strictly_as_the_norm_rises(
        history in prop::collection::vec(-1.0f32..1.0, 1..6),
        n in -1.0f32..1.0,
        apart in 1u32..2_000_000,
    ) {
        let history: Vec<f32> = history.into_iter().map(f32::exp).collect();
        let lower = n.exp();
        let higher = f32::from_bits(lower.to_bits() + apart);
        let regimes = norm_regimes();
        let specs: Vec<Spec> = regimes
            .iter()
            .enumerate()
            .map(|(i, of)| Spec::new(Rule::sgd(), of.regime, vec![vec![1.0]]).named(format!("{i}")))
            .collect();
        let rates: Vec<Vec<f32>> = [lower, higher]
            .into_iter()
            .map(|last| {
                let mut run = CpuRun::new(&specs);
                for &n in history.iter().chain([&last]) {
                    run.step(&vec![vec![n]; specs.len()]);
                }
                run.rates()
            })
            .collect();
        for (i, norm_regime) in regimes.iter().enumerate() {
            let regime = &norm_regime.regime;
            let of = |last: f32| {
                let norm = smoothed(regime, &[history.as_slice(), &[last]].concat());
                norm_regime.fall(history[0].into(), norm)
            };
            let fall = of(higher) - of(lower);
            let exponent = norm_regime.exponents[0].max(norm_regime.exponents[1]).max(1.0);
            let told_apart = (exponent * (1.0 + 2.0 * 2.0) + 3.0) * f64::from(f32::EPSILON);
            if fall >= told_apart {
                prop_assert!(rates[1][i] < rates[0][i], "{regime:?}: η {} at n {lower}, {} at {higher}", rates[0][i], rates[1][i]);
            } else {
                prop_assert!(f64::from(rates[1][i]) <= f64::from(rates[0][i]) * (1.0 + told_apart));
            }
        }
    }
}

/// P2 on every path: a ladder of 200 norms, a group each, after the same history: η strictly falls from rung to rung.
#[test]
fn p2_a_ladder_of_norms_is_a_ladder_of_rates() {
    for NormRegime { regime, exponents } in norm_regimes() {
        let norms: Vec<f32> = (0..200).map(|i| 0.5 * 1.02f32.powi(i)).collect();
        let specs: Vec<Spec> = (0..norms.len())
            .map(|i| Spec::new(Rule::sgd(), regime, vec![vec![0.0; 4]]).named(format!("{i}")))
            .collect();
        for mut run in every_path(&specs) {
            run.step(&vec![vec![3.0, 0.0, -4.0, 0.0]; norms.len()]);
            run.step(&norms.iter().map(|&n| vec![0.0, 0.6 * n, 0.0, 0.8 * n]).collect::<Vec<_>>());
            let rates = run.rates();
            for (pair, n) in rates.windows(2).zip(&norms) {
                assert!(
                    pair[1] < pair[0],
                    "{}, p {exponents:?}: η {} at n {n}, {} above",
                    run.path(),
                    pair[0],
                    pair[1]
                );
            }
        }
    }
}

/// P2 as an equation: η_t (n̂_t / n̂_1)^p is constant over a whole run.
#[test]
fn p2_rate_times_norm_to_the_p_is_constant() {
    let regimes = norm_regimes();
    let specs: Vec<Spec> = regimes
        .iter()
        .enumerate()
        .map(|(i, of)| Spec::new(Rule::sgd(), of.regime, vec![vec![1.0; 33]]).named(format!("{i}")))
        .collect();
    for mut run in every_path(&specs) {
        let mut numbers = Numbers(2);
        let mut constants = vec![0.0; specs.len()];
        let mut first = vec![0.0; specs.len()];
        let (mut risen, mut fallen) = (0, 0);
        for t in 0..50 {
            let scale = (1.5 * numbers.next()).exp();
            let g: Vec<f32> = numbers.vec(33).iter().map(|g| scale * g).collect();
            run.step(&vec![g; specs.len()]);
            for record in run.records().records {
                let norm = f64::from(record.smoothed_norm);
                if t == 0 {
                    first[record.group] = norm;
                    constants[record.group] = record.ln_rate;
                }
                risen += u32::from(norm > first[record.group]);
                fallen += u32::from(norm < first[record.group]);
                let constant = record.ln_rate + regimes[record.group].fall(first[record.group], norm);
                assert!(!record.flags.clamped_change(), "the case must not clamp");
                // Each step adds a term below ln 10 with an error of three ulps, and n̂ has two of its own.
                let allowed = (3.0 * LN_10 * f64::from(t) + 4.0) * f64::from(f32::EPSILON);
                let off = (constant - constants[record.group]).abs();
                assert!(off <= allowed, "{}, {:?}, step {t}: off by {off:e}", run.path(), specs[record.group].regime);
            }
        }
        assert!(risen > 20 && fallen > 20, "{risen} {fallen}");
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// P3. The secant equation's rate splits exactly into norm, variation and curvature (ALGORITHM 5.2), in f64 for random vectors;
/// the first is the regime's norm term at p = 1/2, below and above the first norm alike, the last, to first order, half of what the regime calls alignment.
#[test]
fn p3_the_two_terms_are_those_of_the_secant_rate() {
    let mut numbers = Numbers(3);
    for case in 0..40 {
        let d = 2 + case;
        let scale = (4.0 * numbers.next()).exp();
        let previous: Vec<f32> = numbers.vec(d);
        let lean = numbers.next();
        let next: Vec<f32> = previous.iter().map(|g| scale * (lean * g + 0.7 * numbers.next())).collect();
        let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| f64::from(x)).collect() };
        let (a, b) = (wide(&previous), wide(&next));
        let eta = 0.37;
        let s: Vec<f64> = a.iter().map(|g| -eta * g).collect();
        let y: Vec<f64> = b.iter().zip(&a).map(|(b, a)| b - a).collect();
        let norm = |x: &[f64]| dot(x, x).sqrt();
        let x = (norm(&b) / norm(&a)).ln();
        let rho = dot(&a, &b) / (norm(&a) * norm(&b));
        let secant = (norm(&s) / norm(&y)).ln() - eta.ln();
        let (norm_term, variation) = (-x / 2.0, -0.5 * (2.0 * x.cosh()).ln());
        let z = rho / x.cosh();
        let curvature = -0.5 * (1.0 - z).ln();
        assert!((secant - (norm_term + variation + curvature)).abs() <= 1e-12, "case {case}");
        assert!(variation < 0.0, "the variation only lowers the rate");
        assert!(z.abs() > 0.5 || (curvature - z / 2.0).abs() <= z * z / 2.0, "case {case}");
        // Without smoothing n̂ is n; the momentum after one step is the gradient before, so that a_slow is ρ.
        let spec = Spec::new(
            Rule::sgdm(0.9),
            seesaw(|s| (s.exponent_above, s.smoothing, s.early_steps) = (s.exponent, 0.0, 0.0)),
            vec![vec![0.0; d]],
        );
        let mut run = CpuRun::new(&[spec]);
        run.step(&[previous]);
        run.step(&[next]);
        let record = records(&mut run, 0)[1];
        let close = |got: f32, exact: f64| (f64::from(got) - exact).abs() <= 1e-5 * exact.abs().max(0.1);
        assert!(
            close(record.term(Term::Norm), norm_term),
            "case {case}: {} instead of {norm_term}",
            record.term(Term::Norm)
        );
        assert!(close(record.slow_alignment, rho), "case {case}: {} instead of {rho}", record.slow_alignment);
        assert!(close(record.term(Term::Alignment), 0.1 * rho), "case {case}");
    }
}

/// A diagonal quadratic ½ Σ h (w - w*)², its loss and gradient; `scale` multiplies the loss.
struct Quadratic {
    h: Vec<f64>,
    target: Vec<f64>,
}

impl Quadratic {
    fn new(dimensions: usize, condition: f64, scale: f64) -> Self {
        let last = (dimensions - 1) as f64;
        Quadratic {
            h: (0..dimensions).map(|i| scale * condition.powf(-(i as f64) / last)).collect(),
            target: (0..dimensions).map(|i| (i as f64).cos()).collect(),
        }
    }
    fn loss(&self, w: &[f32]) -> f64 {
        w.iter().zip(&self.h).zip(&self.target).map(|((&w, h), t)| 0.5 * h * (f64::from(w) - t).powi(2)).sum()
    }
    fn gradient(&self, w: &[f32]) -> Vec<f32> {
        w.iter().zip(&self.h).zip(&self.target).map(|((&w, h), t)| (h * (f64::from(w) - t)) as f32).collect()
    }
    /// Final loss over initial loss.
    fn train(&self, rule: Rule, regime: Regime, steps: usize) -> f64 {
        let w = vec![0.0; self.h.len()];
        let mut run = CpuRun::new(&[Spec::new(rule, regime, vec![w.clone()])]);
        for _ in 0..steps {
            let g = self.gradient(&run.params()[0]);
            run.step(&[g]);
        }
        self.loss(&run.params()[0]) / self.loss(&w)
    }
}

/// P4. Nothing to tune: the regime without arguments trains losses of scales 1e-12 to 1e12 alike; no fixed rate does.
#[test]
fn p4_nothing_to_tune_from_1e_minus_12_to_1e12() {
    let scales = [1e-12, 1e-6, 1.0, 1e6, 1e12];
    for rule in three_rules() {
        for scale in scales {
            let left = Quadratic::new(40, 30.0, scale).train(rule, Regime::seesaw(), 150);
            assert!(left <= 0.05, "{rule:?} at scale {scale:e}: {left} of the loss is left");
        }
    }
    // The same test refuses every fixed rate of a wide grid, so that it asks for something.
    for exponent in -7..8 {
        let regime = Regime::fixed(10f32.powi(exponent));
        let trained =
            scales.iter().all(|&scale| Quadratic::new(40, 30.0, scale).train(Rule::sgd(), regime, 150) <= 0.05);
        assert!(!trained, "a fixed rate of 1e{exponent}");
    }
}

/// P6. One regime, the same value, under the three rules.
#[test]
fn p6_one_regime_serves_three_rules() {
    let regime = Regime::default();
    for rule in three_rules() {
        for condition in [1.0, 100.0] {
            let left = Quadratic::new(50, condition, 3.0).train(rule, regime, 400);
            assert!(left <= 0.01, "{rule:?}, condition {condition}: {left} of the loss is left");
        }
    }
}

/// P5. The order of cost of SGD itself: the dispatches of SGD with a fixed rate and a clip, one sweep over the gradient and one
/// update; one byte per parameter of memory for the rules without momentum, none beside the momentum for the others.
#[test]
fn p5_no_more_dispatches_than_sgd_with_a_clip_and_one_byte_per_parameter() {
    let passes =
        [PassName::ReduceGradient, PassName::FinishReduction, PassName::LearningRate, PassName::UpdateParameters];
    for gpu in &devices() {
        for rule in three_rules() {
            let mut spec = Spec::new(rule, Regime::seesaw(), vec![vec![0.0; 4096]]);
            let automatic = GpuRun::new(gpu, std::slice::from_ref(&spec), packed(std::slice::from_ref(&spec), 0, 0));
            spec.regime = Regime::fixed(0.1);
            spec.clip = 1.0;
            let fixed = GpuRun::new(gpu, std::slice::from_ref(&spec), packed(std::slice::from_ref(&spec), 0, 0));
            let names = |run: &GpuRun| -> Vec<PassName> { run.optimizer.dispatches().iter().map(|d| d.pass).collect() };
            assert_eq!(names(&automatic), passes);
            assert_eq!(names(&automatic), names(&fixed));
        }
    }
}

/// P5, memory on the host, from the allocator: what a million parameters more cost.
#[test]
fn p5_bytes_per_parameter_on_the_cpu_path() {
    for (rule, regime, expected) in expected_bytes() {
        let bytes = |elements: usize| {
            let values = vec![0.0f32; elements];
            let mut optimizer = None;
            let info = allocation_counter::measure(|| {
                let group = Spec::new(rule, regime, vec![]).group().tensor("w", &values, &values);
                optimizer = Some(OptimizerBuilder::new(rule).group(group).build_cpu().expect("builds"));
            });
            drop(optimizer);
            info.bytes_current
        };
        let per_parameter = (bytes(3 << 20) - bytes(1 << 20)) as f64 / f64::from(2 << 20);
        // Block tables and partials: some 150 bytes per 8192 parameters.
        assert!(
            (expected..=expected + 0.05).contains(&per_parameter),
            "{rule:?}, {regime:?}: {per_parameter} bytes per parameter"
        );
    }
}

fn expected_bytes() -> Vec<(Rule, Regime, f64)> {
    vec![
        (Rule::sgd(), Regime::fixed(0.1), 0.0),
        (Rule::sgd(), Regime::norm_ratio(), 0.0),
        (Rule::sgd(), Regime::seesaw(), 1.0),
        (Rule::sign_sgd(), Regime::seesaw(), 1.0),
        (Rule::sgdm(0.9), Regime::fixed(0.1), 4.0),
        (Rule::sgdm(0.9), Regime::seesaw(), 4.0),
        (Rule::signum(0.9), Regime::seesaw(), 4.0),
        (Rule::lion(), Regime::seesaw(), 4.0),
        (Rule::adamw(), Regime::fixed(0.1), 8.0),
        (Rule::adamw(), Regime::seesaw(), 8.0),
    ]
}

/// P5, memory on the device, from wgpu's allocator, where the backend has one.
#[test]
fn p5_bytes_per_parameter_on_the_device() {
    for adapter in pollster::block_on(Gpu::adapters(None)) {
        // A device of its own, so that nothing else allocates on it meanwhile.
        let gpu = pollster::block_on(Gpu::open(&adapter)).expect("opens");
        let allocated = || gpu.device().generate_allocator_report().map(|report| report.total_allocated_bytes);
        if allocated().is_none() {
            assert_ne!(adapter.get_info().backend, wgpu::Backend::Vulkan, "wgpu allocates for Vulkan");
            continue;
        }
        for (rule, regime, expected) in expected_bytes() {
            let bytes = |elements: usize| {
                let values = vec![0.0; elements];
                let buffer = conformance::upload(&gpu, &values);
                let grads = conformance::upload(&gpu, &values);
                gpu.queue().submit([]);
                gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("polls");
                let before = allocated().expect("a report") as f64;
                let group = Spec::new(rule, regime, vec![]).group().tensor(
                    "w",
                    buffer.slice(..4 * elements as u64),
                    grads.slice(..4 * elements as u64),
                );
                let optimizer = OptimizerBuilder::new(rule).record_steps(1).group(group).build(&gpu).expect("builds");
                gpu.queue().submit([]);
                gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("polls");
                let after = allocated().expect("a report") as f64;
                drop(optimizer);
                after - before
            };
            let per_parameter = (bytes(3 << 20) - bytes(1 << 20)) / f64::from(2 << 20);
            // 28 bytes per block and 60 per partial; wgpu stages what set-up uploads.
            let tuning = gpu.tuning();
            let per_block = 28.0 * 2.0 + 60.0 * f64::from(tuning.partials_per_block());
            let slack = per_block / f64::from(tuning.block_elements()) + 0.1;
            assert!(
                (expected - 0.01..=expected + slack).contains(&per_parameter),
                "{}, {rule:?}, {regime:?}: {per_parameter} bytes per parameter",
                gpu.describe()
            );
        }
    }
}

/// Gradients of a noisy loss that depend on nothing but the step, so that runs can be compared.
fn noisy_gradients(lengths: &[usize], steps: usize, seed: u64) -> Vec<Vec<Vec<f32>>> {
    let mut numbers = Numbers(seed);
    (0..steps)
        .map(|t| {
            let scale = (2.0 * numbers.next()).exp();
            lengths
                .iter()
                .map(|&len| (0..len).map(|i| scale * (0.5 * ((i + t) as f32).sin() + numbers.next())).collect())
                .collect()
        })
        .collect()
}

/// Runs all rules on the same gradients times each power of two, on every path, and wants the same bits after every step.
fn assert_rescaling_changes_no_bit(powers: &[i32]) {
    let lengths = [2000, 77];
    let mut numbers = Numbers(6);
    let tensors: Vec<Vec<f32>> = lengths.iter().map(|&len| numbers.vec(len)).collect();
    let specs = group_per_rule(&scale_free_rules(), Regime::seesaw(), &tensors);
    let steps = noisy_gradients(&lengths, 8, 7);
    let run = |c: f32| -> Vec<(String, Vec<Vec<Vec<u32>>>)> {
        every_path(&specs)
            .into_iter()
            .map(|mut run| {
                let trace = steps
                    .iter()
                    .map(|grads| {
                        let scaled: Vec<Vec<f32>> = grads.iter().map(|g| g.iter().map(|g| c * g).collect()).collect();
                        run.step(&repeated(&scaled, specs.len()));
                        bits(&run.params())
                    })
                    .collect();
                (run.path(), trace)
            })
            .collect()
    };
    let as_it_is = run(1.0);
    for &power in powers {
        for ((path, scaled), (_, unscaled)) in run(2f32.powi(power)).iter().zip(&as_it_is) {
            let first = scaled.iter().zip(unscaled).position(|(a, b)| a != b);
            assert_eq!(first, None, "{path}: the first step that differs at 2^{power}");
        }
    }
    // A factor that is no power of two rounds, and is told.
    assert!(run(1.1)[0].1 != as_it_is[0].1);
}

/// Rescaling the loss by a power of two leaves every step as it is, bit for bit, for any rule.
#[test]
fn rescaling_the_loss_by_powers_of_two_changes_no_bit() {
    assert_rescaling_changes_no_bit(&[-60, -20, -1, 20, 60]);
}

#[test]
fn rescaling_across_the_border_of_a_range_changes_no_bit() {
    assert_rescaling_changes_no_bit(&[-42, -41, -40, -39, -38, 38, 39, 40, 41, 42]);
}

/// AdamW's ε is an absolute size. Far below the gradients it changes nothing, and neither does their scale; its usual 1e-8 changes the
/// steps of rescaled gradients by so much, but no bit of the rates.
#[test]
fn rescaling_changes_of_adamw_what_epsilon_adds() {
    let lengths = [500];
    let tensors = [Numbers(6).vec(500)];
    let with = |epsilon| Rule::AdamW(AdamW { beta1: 0.9, beta2: 0.999, epsilon });
    let specs = group_per_rule(&[with(1e-30), with(1e-8)], Regime::seesaw(), &tensors);
    let steps = noisy_gradients(&lengths, 8, 7);
    for power in [-16, 30] {
        for (mut run, mut other) in every_path(&specs).into_iter().zip(every_path(&specs)) {
            for grads in &steps {
                let scaled: Vec<Vec<f32>> =
                    grads.iter().map(|g| g.iter().map(|g| 2f32.powi(power) * g).collect()).collect();
                run.step(&repeated(grads, specs.len()));
                other.step(&repeated(&scaled, specs.len()));
                let what = format!("{}, 2^{power}", run.path());
                assert_eq!(bits(&[run.rates()]), bits(&[other.rates()]), "{what}");
                let (a, b) = (bits(&run.params()), bits(&other.params()));
                assert!(a[0] == b[0], "{what}");
                assert!(a[1] != b[1], "{what}: ε has no size");
            }
        }
    }
}

#[test]
fn the_terms_add_up_to_the_change_of_ln_eta() {
    let lengths = [65];
    let tensors = [Numbers(8).vec(65)];
    for regime in
        [Regime::seesaw(), Regime::norm_ratio(), Regime::hypergradient(), seesaw(|s| (s.gain, s.exponent) = (2.0, 3.0))]
    {
        let specs = group_per_rule(&every_rule(), regime, &tensors);
        for mut run in every_path(&specs) {
            for grads in noisy_gradients(&lengths, 60, 9) {
                run.step(&repeated(&grads, specs.len()));
            }
            let records = run.records().records;
            for group in 0..specs.len() {
                let of_group: Vec<&Record> = records.iter().filter(|record| record.group == group).collect();
                assert_eq!(of_group.len(), 60);
                assert!(of_group[0].flags.first() && of_group[0].change() == 0.0);
                let mut moved = 0.0;
                for pair in of_group.windows(2) {
                    let change = pair[1].ln_rate - pair[0].ln_rate;
                    moved += change.abs();
                    assert!(
                        (pair[1].change() - change).abs() <= 1e-6,
                        "{}, group {group}: terms {} but ln η changed by {change}: {:?}",
                        run.path(),
                        pair[1].change(),
                        pair[1]
                    );
                    let rate = pair[1].ln_rate.exp();
                    assert!(ulps(pair[1].learning_rate, rate) <= 4.0, "η and ln η agree");
                }
                assert!(moved > 0.02, "a run in which nothing changes proves nothing");
            }
        }
    }
}

#[test]
fn repeats_have_the_same_bits() {
    let lengths = [9000, 31];
    let mut numbers = Numbers(10);
    let tensors: Vec<Vec<f32>> = lengths.iter().map(|&len| numbers.vec(len)).collect();
    let specs = group_per_rule(&every_rule(), Regime::seesaw(), &tensors);
    let steps = noisy_gradients(&lengths, 5, 11);
    let trace = || -> Vec<_> {
        every_path(&specs)
            .into_iter()
            .map(|mut run| {
                for grads in &steps {
                    run.step(&repeated(grads, specs.len()));
                }
                (bits(&run.params()), run.states(), run.records())
            })
            .collect()
    };
    assert!(trace() == trace(), "two runs differ");
}

/// A norm that falls by 1e20 raises the rate by a factor of ten a step, exactly, and the record says what was taken away, and what of it was
/// given back later. One that rises lowers the rate by all of it.
#[test]
fn a_jump_of_the_norm_raises_the_rate_by_ten_at_most() {
    let ratio = |smoothing| {
        Regime::NormRatio(NormRatio { initial_rate: Some(0.5), smoothing, norm_floor: 0.0, ..NormRatio::default() })
    };
    let spec = |name: &str, smoothing| Spec::new(Rule::sgd(), ratio(smoothing), vec![vec![0.0; 5]]).named(name);
    let log = f64::from(MAX_CHANGE);
    assert!((log - LN_10).abs() <= 1e-7);
    let specs = [spec("up", 0.9), spec("down", 0.0), spec("just within", 0.0)];
    for mut run in every_path(&specs) {
        run.step(&[vec![1.0; 5], vec![1.0; 5], vec![1.0; 5]]);
        // e^2.3 is below ten.
        let within = 1.0 / 2.3f32.exp();
        run.step(&[vec![1e20; 5], vec![1e-20; 5], vec![within; 5]]);
        run.step(&[vec![1e20; 5], vec![1e-20; 5], vec![within; 5]]);
        let records = run.records().records;
        // The average takes a tenth of the second square and is corrected by 1 - 0.9²: n̂ is the norm itself, the larger one.
        let up = -20.0 * LN_10;
        for (group, step, change, clamped, taken) in [
            (0, 1, up, false, 0.0),
            (1, 1, log, true, log + up),
            (1, 2, log, true, log),
            (2, 1, 2.3, false, 0.0),
            (2, 2, 0.0, false, 0.0),
        ] {
            let of: Vec<&Record> = records.iter().filter(|record| record.group == group).collect();
            let what = format!("{}, {}, step {step}", run.path(), specs[group].name);
            let moved = of[step].ln_rate - of[step - 1].ln_rate;
            // ln η is held to 2^-32; the term of a fall has three ulps.
            let allowed = if clamped { 2f64.powi(-31) } else { 2e-5 };
            assert!((moved - change).abs() <= allowed, "{what}: {moved}");
            assert_eq!(of[step].flags.clamped_change(), clamped, "{what}");
            let clamp = f64::from(of[step].term(Term::Clamp));
            assert!((clamp - taken).abs() <= 1e-4, "{what}: {clamp}");
        }
    }
}

/// A norm that vanishes raises the rate until it is 1e-4 of its mean over the steps, and no further: a problem that is solved to the
/// last bit must not leave a rate behind that throws it away.
#[test]
fn a_vanishing_norm_does_not_raise_the_rate_without_end() {
    let regime = Regime::NormRatio(NormRatio { initial_rate: Some(0.5), smoothing: 0.0, ..NormRatio::default() });
    let spec = Spec::new(Rule::sgd(), regime, vec![vec![0.0; 4]]);
    for mut run in every_path(&[spec]) {
        let (mut sum, mut last) = (0.0, f64::NEG_INFINITY);
        for k in 0..20 {
            let norm = 0.2f64.powi(k);
            sum += norm;
            run.step(&[vec![(norm / 2.0) as f32; 4]]);
            let record = run.records().records[0];
            let floor = 1e-4 * sum / f64::from(k + 1);
            let expected = (0.5 / norm.max(floor)).ln();
            assert!(
                (record.ln_rate - expected).abs() <= 1e-4,
                "{}, step {k}: {} instead of {expected}",
                run.path(),
                record.ln_rate
            );
            assert!(record.ln_rate > last - 1e-6);
            last = record.ln_rate;
        }
        assert!(last < (0.5f64 / 1e-6).ln(), "{}: {last}", run.path());
    }
}

/// Seesaw's p: 1/2 up to the first smoothed norm whatever the rule, and above it 3/2 for the rules whose step grows with the gradient, 1/2 for
/// signs, AdamW and Lion; schedule-free too. The two pieces meet at the first norm, and the way there is of no consequence.
#[test]
fn above_the_first_norm_the_slope_depends_on_the_rule() {
    let mut rules: Vec<(Rule, f64)> = [
        Rule::sgd(),
        Rule::sgdm(0.9),
        Rule::sgdm(0.0),
        Rule::nesterov(0.9),
        Rule::Sgdm(Sgdm { momentum: 0.9, dampening: 0.5, nesterov: false }),
    ]
    .map(|rule| (rule, 1.5))
    .to_vec();
    let others = [Rule::sign_sgd(), Rule::signum(0.9), Rule::adamw(), Rule::adamw_without_momentum(), Rule::lion()];
    rules.extend(others.map(|rule| (rule, 0.5)));
    let mut specs = Vec::new();
    let mut slopes = Vec::new();
    for (rule, above) in rules {
        for averaging in [Averaging::Off, Averaging::ScheduleFree] {
            if averaging.fits(&rule) {
                // With alignment, so that what the record calls the norm's part is told from the rest.
                let regime = seesaw(|s| s.smoothing = 0.0);
                let name = format!("{} {}", rule.name(), specs.len());
                specs.push(Spec { averaging, ..Spec::new(rule, regime, vec![vec![0.0; 4]]).named(name) });
                slopes.push(above);
            }
        }
    }
    let norms = [1.0f32, 1.25, 7.0, 7.5, 2.0, 0.5, 0.25, 1.5, 0.75, 1.0, 40.0, 0.9];
    for mut run in every_path(&specs) {
        for norm in norms {
            run.step(&vec![vec![norm / 2.0; 4]; specs.len()]);
        }
        for (group, (spec, above)) in specs.iter().zip(&slopes).enumerate() {
            let mut last = 0.0;
            for (record, norm) in records(run.as_mut(), group).iter().zip(norms) {
                let slope = if norm > 1.0 { *above } else { 0.5 };
                let fallen = -slope * f64::from(norm).ln();
                let what = format!("{}, {}, norm {norm}", run.path(), spec.name);
                assert!((record.smoothed_norm - norm).abs() <= 1e-6 * norm, "{what}");
                assert!(
                    (f64::from(record.term(Term::Norm)) - (fallen - last)).abs() <= 1e-5,
                    "{what}: {} instead of {}",
                    record.term(Term::Norm),
                    fallen - last
                );
                last = fallen;
            }
        }
    }
}

/// One gradient 1e8 times the others lowers the rate for as long as the average remembers it, and leaves it where it was: no clamp of the
/// fall keeps a part of it, and no floor from the mean norm holds the rate down.
#[test]
fn an_outlier_leaves_the_rate_where_it_was() {
    let regime = seesaw(|s| s.gain = 0.0);
    let spec = Spec::new(Rule::sgd(), regime, vec![vec![0.0; 4]]);
    for mut run in every_path(&[spec]) {
        for t in 0..500 {
            let norm = if t == 20 { 1e8 } else { 1.0 };
            run.step(&[vec![norm / 2.0; 4]]);
        }
        let records = run.records().records;
        let lowest = records[20].ln_rate - records[19].ln_rate;
        // √(0.1/(1 - 0.9²¹)) of the outlier is in the average, but n̂ is the outlier itself, and above the first norm p is 3/2.
        assert!((lowest + 1.5 * 1e8f64.ln()).abs() <= 1e-5, "{}: {lowest}", run.path());
        // 0.9⁴⁷⁹ of its square is left, which is nothing.
        let back = records[499].ln_rate - records[19].ln_rate;
        assert!(back.abs() <= 1e-4, "{}: {back}", run.path());
    }
}

/// The gain of the k-th gradient is max(κ, h/(h + k - 2)), told from the alignment term of gradients that agree.
#[test]
fn the_first_gradients_move_the_rate_most() {
    let regime = seesaw(|s| (s.gain, s.early_steps) = (0.25, 2.0));
    let specs = group_per_rule(&[Rule::sgd(), Rule::sgdm(0.9)], regime, &[vec![0.0; 8]]);
    for mut run in every_path(&specs) {
        for _ in 0..12 {
            run.step(&repeated(&[vec![1.0; 8]], specs.len()));
        }
        for record in run.records().records {
            let k = f64::from(record.step as u32 + 1);
            let early = 2.0 / k;
            let expected = if record.flags.first() { 0.0 } else { early.max(0.25) };
            assert!(
                (f64::from(record.term(Term::Alignment)) - expected).abs() <= 1e-6,
                "{}, gradient {k}: {} instead of {expected}",
                run.path(),
                record.term(Term::Alignment)
            );
        }
    }
}

/// The rate of a run under Seesaw and the smoothed norm hang together: what the alignment did is the rest.
fn agreements(spec: &Spec, records: &[&Record]) -> Vec<f64> {
    let exponents = match spec.regime {
        Regime::Seesaw(seesaw) if spec.rule.is_scale_free() => (seesaw.exponent, seesaw.exponent),
        Regime::Seesaw(seesaw) => (seesaw.exponent, seesaw.exponent_above),
        _ => (0.0, 0.0),
    };
    let first = records[0];
    let anchor = f64::from(first.smoothed_norm).ln();
    records
        .iter()
        .map(|record| {
            let exponent = if record.smoothed_norm > first.smoothed_norm { exponents.1 } else { exponents.0 };
            let from_norm = f64::from(exponent) * (anchor - f64::from(record.smoothed_norm).ln());
            record.ln_rate - first.ln_rate - from_norm
        })
        .collect()
}

/// Gradients that contradict each other without end leave the rate at its anchor as long as the norm has not doubled, whatever the rule.
/// The record tells what was held, and says it in words.
#[test]
fn contradiction_alone_does_not_lower_the_rate_below_its_anchor() {
    let rules = every_rule();
    let specs = group_per_rule(&rules, Regime::seesaw(), &[vec![0.0; 8]]);
    for mut run in every_path(&specs) {
        for t in 0..400 {
            let sign = if t % 2 == 0 { 1.0 } else { -1.99 };
            run.step(&repeated(&[vec![sign; 8]], specs.len()));
        }
        let records = run.records().records;
        for (group, spec) in specs.iter().enumerate() {
            let of_group: Vec<&Record> = records.iter().filter(|record| record.group == group).collect();
            let what = format!("{}, {}", run.path(), spec.rule.name());
            for (record, agreement) in of_group.iter().zip(agreements(spec, &of_group)) {
                assert!(agreement >= -2e-6, "{what}: A is {agreement}");
                assert!(record.term(Term::Held) >= 0.0, "{what}: {record:?}");
            }
            let held: f32 = of_group.iter().map(|record| record.term(Term::Held)).sum();
            assert!(held > 1.0, "{what}: only {held} was held");
            let sentence = of_group
                .iter()
                .map(|record| record.to_string())
                .find(|sentence| sentence.contains("rate held"))
                .expect("a sentence");
            assert!(sentence.contains(", but the norm has not risen since the start: rate held (+"), "{sentence}");
        }
    }
}

/// The gate: of a contradiction below the least agreement so far nothing counts up to twice the first norm, half of it at 2√2 times, all of it from
/// four times on. A fall that counted is kept when the norm has come back, and the floor is then where it ended.
#[test]
fn a_risen_norm_lets_contradiction_count() {
    let regime = seesaw(|s| (s.exponent, s.exponent_above, s.smoothing) = (0.0, 0.0, 0.0));
    for (size, share) in [(1.0, 0.0), (1.99, 0.0), (8f32.sqrt(), 0.5), (4.01, 1.0), (1e6, 1.0)] {
        let specs = group_per_rule(&[Rule::sgdm(0.0)], regime, &[vec![0.0; 8]]);
        for mut run in every_path(&specs) {
            for factor in [1.0, -size, 1.0, 1.0] {
                run.step(&[vec![factor; 8]]);
            }
            let records = run.records().records;
            let what = format!("{}, {size} times the first norm", run.path());
            // At the second gradient κ is 1 and the cosine -1.
            assert!((f64::from(records[1].term(Term::Alignment)) + 1.0).abs() <= 1e-6, "{what}");
            let fall = records[1].ln_rate - records[0].ln_rate;
            assert!((fall + share).abs() <= 1e-6, "{what}: {fall} instead of {share}");
            assert!(
                (f64::from(records[1].term(Term::Held)) - (1.0 - share)).abs() <= 1e-6,
                "{what}: {} held",
                records[1].term(Term::Held)
            );
            // The third contradicts the second at an ordinary norm: held at what the floor is now. The fourth agrees.
            let kept = records[2].ln_rate - records[1].ln_rate;
            assert!(kept.abs() <= 1e-6, "{what}: {kept} after the norm came back");
            assert!(records[3].ln_rate > records[2].ln_rate + 0.1, "{what}");
        }
    }
}

/// What agreement gave contradiction takes back, held by nothing, until the rate is where it began.
#[test]
fn contradiction_takes_back_what_agreement_gave() {
    let specs = group_per_rule(&[Rule::sgdm(0.0)], Regime::seesaw(), &[vec![0.0; 8]]);
    for mut run in every_path(&specs) {
        for t in 0..60 {
            let sign = if t < 5 || t % 2 == 0 { 1.0 } else { -1.0 };
            run.step(&[vec![sign; 8]]);
        }
        let records = run.records().records;
        let records: Vec<&Record> = records.iter().collect();
        let agreement = agreements(&specs[0], &records);
        assert!(agreement[4] > 2.0, "{}: {agreement:?}", run.path());
        for (t, pair) in agreement.windows(2).enumerate().skip(5) {
            let (before, record) = (pair[0], records[t + 1]);
            if before > 1.0 {
                assert_eq!(record.term(Term::Held), 0.0, "{}, step {t}", run.path());
                assert!(pair[1] < before, "{}, step {t}", run.path());
            }
        }
        assert!(agreement[59].abs() <= 2e-6, "{}: {}", run.path(), agreement[59]);
    }
}

/// A rate that agreement has carried to its limit comes back as soon as gradients contradict each other: what lies beyond the limit is not
/// stored. The terms tell of it, and the state is one that a checkpoint takes back.
#[test]
fn agreement_beyond_the_limit_of_the_rate_is_not_stored() {
    let regime = seesaw(|s| (s.gain, s.exponent) = (1.0, 0.0));
    let specs = group_per_rule(&[Rule::sgdm(0.0)], regime, &[vec![0.0; 8]]);
    let limit = 1e30f64.ln();
    for mut run in every_path(&specs) {
        for t in 0..600 {
            let sign = if t < 300 || t % 2 == 0 { 1e-12 } else { -1e-12 };
            run.step(&[vec![sign; 8]]);
        }
        let records = run.records().records;
        let path = run.path();
        assert!((records[299].ln_rate - limit).abs() <= 1e-5, "{path}");
        assert!(records[299].flags.clamped_rate(), "{path}");
        // A is 138 at most, and falls by 1 a step.
        let ended = records[300..].iter().position(|r| r.ln_rate < limit - 1.0);
        let ended = ended.expect("it comes back");
        assert!((60..=120).contains(&ended), "{path}: after {ended} steps");
        for pair in records.windows(2) {
            let change = pair[1].ln_rate - pair[0].ln_rate;
            let terms = pair[1].change();
            assert!((terms - change).abs() <= 1e-4, "{path}: {terms}, but {change}");
        }
        let checkpoint = run.checkpoint();
        run.restore(&checkpoint).expect("its own checkpoint");
    }
}

/// η stays within [1e-30, 1e30], says so, and comes back.
#[test]
fn the_rate_is_clamped_at_1e30_both_ways() {
    let ratio = |initial_rate| {
        let regime = NormRatio { initial_rate: Some(initial_rate), smoothing: 0.0, ..NormRatio::default() };
        Regime::NormRatio(regime)
    };
    let specs = [
        Spec::new(Rule::sgd(), ratio(1e-29), vec![vec![0.0; 3]]).named("low"),
        Spec::new(Rule::sgd(), ratio(1e29), vec![vec![0.0; 3]]).named("high"),
    ];
    for mut run in every_path(&specs) {
        for k in [0, 1, 2, 3, 2, 1, 0] {
            // Factors of 8 a step.
            let n = 8f32.powi(k);
            run.step(&[vec![n; 3], vec![1.0 / n; 3]]);
        }
        let records = run.records().records;
        for (group, limit) in [(0, 1e-30f64), (1, 1e30)] {
            let of: Vec<&Record> = records.iter().filter(|record| record.group == group).collect();
            let clamped: Vec<bool> = of.iter().map(|record| record.flags.clamped_rate()).collect();
            let what = format!("{}, towards {limit:e}", run.path());
            assert_eq!(clamped, [false, false, true, true, true, false, false], "{what}");
            for record in &of[2..5] {
                assert!((record.ln_rate - limit.ln()).abs() <= 1e-7, "{what}: ln η is {}", record.ln_rate);
                assert!(ulps(record.learning_rate, limit) <= 3.0, "{what}: η is {:e}", record.learning_rate);
            }
            for pair in of.windows(2) {
                let change = pair[1].ln_rate - pair[0].ln_rate;
                assert!((pair[1].change() - change).abs() <= 1e-5, "{what}: clamps are in the terms");
            }
            // With the norm the rate is back where it was: nothing of the clamp is left.
            let left = of[6].ln_rate - of[0].ln_rate;
            assert!(left.abs() <= 1e-6, "{what}: {left}");
        }
    }
}

/// The first step is ε (1 + ‖w₀‖) long in parameter space, whatever the rule and the scale of the loss.
#[test]
fn the_first_step_has_the_length_it_should() {
    let mut numbers = Numbers(12);
    for (scale, epsilon) in [(1.0f32, 1e-2f32), (1e-20, 1e-2), (1e20, 0.5)] {
        let w = numbers.vec(500);
        let g: Vec<f32> = numbers.vec(500).iter().map(|g| scale * g).collect();
        // AdamW's ε is not small beside the smallest gradients.
        let rules = if scale < 1.0 { scale_free_rules().to_vec() } else { every_rule() };
        let specs = group_per_rule(&rules, seesaw(|s| s.first_step = Some(epsilon)), std::slice::from_ref(&w));
        for mut run in every_path(&specs) {
            run.step(&repeated(std::slice::from_ref(&g), specs.len()));
            let w_norm = w.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
            for (after, spec) in run.params().iter().zip(&specs) {
                let length =
                    after.iter().zip(&w).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt();
                let mut expected = f64::from(epsilon) * (1.0 + w_norm);
                if spec.rule == Rule::nesterov(0.9) {
                    // u = g + μ m = 1.9 g: the rate is that of g.
                    expected *= 1.0 + f64::from(0.9f32);
                }
                // Each parameter is rounded to 2^-25 once; 500 of them against a step of 0.1.
                assert!(
                    (length / expected - 1.0).abs() <= 1e-5,
                    "{}, {:?}: {length} instead of {expected}",
                    run.path(),
                    spec.rule
                );
            }
        }
    }
}

/// The kept gradient is what the regime of a decayed loss sees; a decoupled decay is not.
#[test]
fn coupled_decay_is_seen_by_the_regime_and_decoupled_is_not() {
    let spec = |decay| Spec { decay, ..Spec::new(Rule::sgd(), Regime::seesaw(), vec![vec![2.0; 4]]) };
    for (decay, norm) in [(WeightDecay::Coupled(0.5), 4.0), (WeightDecay::Decoupled(0.5), 2.0)] {
        for mut run in every_path(&[spec(decay)]) {
            run.step(&[vec![1.0; 4]]);
            assert_eq!(records(run.as_mut(), 0)[0].norm, norm, "{}, {decay:?}", run.path());
        }
    }
}
