//! Tests of pass 3: for numbers of every size, a rate and its terms agree with f64 to a relative error of a few ulps, on every path.

use wgpu_optim::{Regime, Rule, Term};
use wgpu_optim_conformance::oracle::Oracle;
use wgpu_optim_conformance::run::{Spec, every_path};
use wgpu_optim_conformance::{Numbers, assert_close};

const LEN: usize = 257;

/// The tolerance of a term that is 0.1 times a cosine. The cosine comes from sums of 257 products of mixed sign, divided by norms, and has an
/// absolute error of about 30 · 2^-24.
const ALIGNMENT: f64 = 2e-7;
/// The tolerance of the logarithm of a norm, whose relative error is about 20 · 2^-24.
const LOGARITHM: f64 = 2e-6;

#[test]
fn rates_and_terms_are_right_at_every_scale() {
    let start = Numbers(3).vec(LEN);
    for rule in [Rule::sgd(), Rule::sgdm(0.9), Rule::sign_sgd(), Rule::signum(0.9), Rule::adamw(), Rule::lion()] {
        for scale in [1e-20f32, 1e-8, 1.0, 1e8, 1e20] {
            let specs = [Spec::new(rule, Regime::seesaw(), vec![start.clone()])];
            for mut run in every_path(&specs) {
                let mut oracle = Oracle::new(rule, Regime::seesaw(), &start);
                for step in 0..12u64 {
                    let grow = scale * (1.0 + step as f32 * 0.1);
                    let grads: Vec<f32> = Numbers(100 + step)
                        .vec(LEN)
                        .iter()
                        .zip(&start)
                        .map(|(noise, pull)| grow * (noise + 0.5 * pull))
                        .collect();
                    let expected = oracle.step(&grads);
                    run.step(&[grads]);
                    let records = run.records().records;
                    let record = records.last().expect("a record");
                    let what = format!("{}, {}, {scale:e}, step {step}", run.path(), rule.name());
                    let near = |got: f32, exact: f64, tolerance: f64, name: &str| {
                        assert_close(format_args!("{what}: {name}"), got, exact, tolerance);
                    };
                    near(record.norm, expected.norm, 3e-6 * expected.norm, "norm");
                    near(record.slow_alignment, expected.slow, 10.0 * ALIGNMENT, "a_slow");
                    near(record.fast_alignment, expected.fast, 10.0 * ALIGNMENT, "a_fast");
                    near(record.term(Term::Norm), expected.norm_term, LOGARITHM, "norm term");
                    near(record.term(Term::Alignment), expected.alignment_term, ALIGNMENT, "alignment");
                    near(record.term(Term::Brake), expected.brake_term, ALIGNMENT, "brake");
                    let rate = expected.rate;
                    // The errors of the norm's terms telescope over the steps. The errors of the other terms add up.
                    let drift = LOGARITHM + step as f64 * ALIGNMENT;
                    near(record.learning_rate, rate, drift * rate, "rate");
                    assert!(rate > 0.0);
                }
            }
        }
    }
}

/// A fixed rate is used exactly as given, up to the largest f32, without a clamp.
#[test]
fn a_fixed_rate_is_exact() {
    for rate in [1e-30, 0.1, 0.3, 1e30] {
        let specs = [Spec::new(Rule::sgd(), Regime::fixed(rate), vec![vec![0.0; 5]])];
        for mut run in every_path(&specs) {
            for _ in 0..3 {
                run.step(&[vec![1e-20; 5]]);
            }
            for record in run.records().records {
                assert_eq!(record.learning_rate, rate, "{}", run.path());
                assert!(!record.flags.clamped_rate(), "{}, {rate}", run.path());
                assert_eq!(record.change(), 0.0);
            }
        }
    }
}
