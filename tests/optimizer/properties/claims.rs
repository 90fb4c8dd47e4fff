//! The properties P1 to P4 and P6.

use std::f64::consts::LN_10;

use super::{group_per_rule, records, repeated, seesaw, three_rules};
use proptest::prelude::*;
use wgpu_optim::{NormRatio, Regime, Rule, Seesaw, Term};
use wgpu_optim_conformance::run::{CpuRun, Run, Spec, bits, every_path};
use wgpu_optim_conformance::{Numbers, assert_close};

/// P1: The rate depends on the gradients alone. Other parameters of the same norm have the same rates, bit for bit. Parameters of another norm have
/// another first step and the same changes. (A step has neither a loss nor a schedule as an argument.)
#[test]
fn p1_rates_come_from_the_gradients_alone() {
    let mut numbers = Numbers(1);
    let w = numbers.vec(301);
    let flipped: Vec<f32> = w.iter().enumerate().map(|(i, w)| if i % 3 == 0 { -w } else { *w }).collect();
    let larger: Vec<f32> = w.iter().map(|w| 5.0 * w).collect();
    let steps: Vec<Vec<f32>> = (0..10).map(|_| numbers.vec(301)).collect();
    let mut other = steps.clone();
    other[4] = numbers.vec(301);
    // Returns the rates of each step, and the total change of ln η.
    let follow = |mut run: Box<dyn Run>, steps: &[Vec<f32>]| {
        let rates = steps.iter().map(|g| {
            run.step(&repeated(std::slice::from_ref(g), 3));
            bits(&[run.rates()])
        });
        let rates: Vec<_> = rates.collect();
        let changes: Vec<_> = run.states().iter().map(|s| (s.change.whole, s.change.fraction)).collect();
        (rates, changes)
    };
    let outcomes = |w: &[f32], steps: &[Vec<f32>]| -> Vec<_> {
        let specs = group_per_rule(&three_rules(), Regime::seesaw(), &[w.to_vec()]);
        every_path(&specs).into_iter().map(|run| follow(run, steps)).collect()
    };
    let of_w = outcomes(&w, &steps);
    assert_eq!(of_w, outcomes(&flipped, &steps), "other parameters of the same norm");
    let (of_larger, of_other) = (outcomes(&larger, &steps), outcomes(&w, &other));
    for ((a, larger), other) in of_w.iter().zip(&of_larger).zip(&of_other) {
        assert_eq!(a.1, larger.1, "the changes do not depend on the parameters");
        assert_ne!(a.0[0], larger.0[0], "the first step does");
        assert_eq!(a.0[..4], other.0[..4]);
        assert_ne!(a.0[4], other.0[4], "another gradient, another rate");
    }
}

/// A regime without alignment, whose rate follows from the norm term alone.
struct NormRegime {
    regime: Regime,
    /// The exponent p up to the first value of n̂, and above it.
    exponents: [f64; 2],
}

impl NormRegime {
    /// Returns by how much a norm lowers ln η, relative to the first norm.
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

fn group_per_regime(regimes: &[NormRegime], elements: usize) -> Vec<Spec> {
    let spec = |(i, of): (usize, &NormRegime)| {
        Spec::new(Rule::sgd(), of.regime, vec![vec![1.0; elements]]).named(format!("{i}"))
    };
    regimes.iter().enumerate().map(spec).collect()
}

/// Returns n̂ of a sequence of norms, in f64.
fn smoothed(regime: &Regime, norms: &[f32]) -> f64 {
    let beta = f64::from(regime.smoothing().0);
    let mean = norms.iter().fold(0.0, |mean, &n| beta * mean + (1.0 - beta) * f64::from(n) * f64::from(n));
    let unbiased = mean / (1.0 - beta.powi(norms.len() as i32));
    unbiased.sqrt().max(f64::from(*norms.last().expect("a norm")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// P2: With everything else equal, η falls strictly as n rises, for any history, any two norms that are far enough apart, and each regime. They
    /// are far enough apart where they exceed the rounding errors: 1 ulp of the norm, two of the term by ln, and three more of η.
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
        let specs = group_per_regime(&regimes, 1);
        let rates = [lower, higher].map(|last| {
            let mut run = CpuRun::new(&specs);
            for &n in history.iter().chain([&last]) {
                run.step(&vec![vec![n]; specs.len()]);
            }
            run.rates()
        });
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

/// P2 as an equation, on every path: η_t (n̂_t / n̂_1)^p is constant over a run, so that η falls as n̂ rises.
#[test]
fn p2_rate_times_norm_to_the_p_is_constant() {
    let regimes = norm_regimes();
    let specs = group_per_regime(&regimes, 33);
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
                // Each step adds a term below ln 10 with an error of three ulps, and n̂ has an error of two ulps.
                let allowed = (3.0 * LN_10 * f64::from(t) + 4.0) * f64::from(f32::EPSILON);
                let what = format_args!("{}, {:?}, step {t}", run.path(), specs[record.group].regime);
                assert_close(what, constant, constants[record.group], allowed);
            }
        }
        assert!(risen > 20 && fallen > 20, "{risen} {fallen}");
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// P3: The rate of the secant equation splits exactly into norm, variation and curvature (ALGORITHM 5.2), in f64 for random vectors. The first term
/// is the regime's norm term at p = 1/2, below and above the first norm. The last term is, to first order, half of the regime's alignment term.
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
        // Without smoothing n̂ is n. The momentum after one step is the previous gradient, so that a_slow is ρ.
        let regime = seesaw(|s| (s.exponent_above, s.smoothing, s.early_steps) = (s.exponent, 0.0, 0.0));
        let mut run = CpuRun::new(&[Spec::new(Rule::sgdm(0.9), regime, vec![vec![0.0; d]])]);
        run.step(&[previous]);
        run.step(&[next]);
        let record = records(&mut run, 0).remove(1);
        for (got, exact) in [
            (record.term(Term::Norm), norm_term),
            (record.slow_alignment, rho),
            (record.term(Term::Alignment), 0.1 * rho),
        ] {
            assert_close(format_args!("case {case}"), got, exact, 1e-5 * exact.abs().max(0.1));
        }
    }
}

/// A diagonal quadratic ½ Σ h (w - w*)², with its loss and gradient. `scale` multiplies the loss.
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
    /// Trains and returns the ratio of the final loss to the initial one.
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

/// P4: There is nothing to tune. The regime without arguments trains losses of scales from 1e-12 to 1e12, and no fixed rate does.
#[test]
fn p4_nothing_to_tune_from_1e_minus_12_to_1e12() {
    let scales = [1e-12, 1e-6, 1.0, 1e6, 1e12];
    for rule in three_rules() {
        for scale in scales {
            let left = Quadratic::new(40, 30.0, scale).train(rule, Regime::seesaw(), 150);
            assert!(left <= 0.05, "{rule:?} at scale {scale:e}: {left} of the loss is left");
        }
    }
    // The same test fails for every fixed rate of a wide grid.
    for exponent in -7..8 {
        let regime = Regime::fixed(10f32.powi(exponent));
        let trained =
            scales.iter().all(|&scale| Quadratic::new(40, 30.0, scale).train(Rule::sgd(), regime, 150) <= 0.05);
        assert!(!trained, "a fixed rate of 1e{exponent}");
    }
}

/// P6: One regime with the same settings works for the three rules.
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
