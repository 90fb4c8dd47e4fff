//! The limits of the rate, and its first step.

use std::f64::consts::LN_10;

use super::{assert_terms_add_up, every_rule, group_per_rule, repeated, scale_free_rules, seesaw};
use wgpu_optim::internals::MAX_CHANGE;
use wgpu_optim::{NormRatio, Record, Regime, Rule, Term};
use wgpu_optim_conformance::run::{Spec, every_path};
use wgpu_optim_conformance::{Numbers, assert_close, times, ulps};

/// A norm that falls by 1e20 raises the rate by a factor of exactly ten per step. The record has what was clamped, and how much of it was made up for
/// later. A norm that rises lowers the rate at once.
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
        for _ in 0..2 {
            run.step(&[vec![1e20; 5], vec![1e-20; 5], vec![within; 5]]);
        }
        let records = run.records().records;
        // The average contains a tenth of the second square and is divided by 1 - 0.9². n̂ is the norm itself, which is larger.
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
            // ln η is exact to 2^-32, and the term of a fall has an error of three ulps.
            let allowed = if clamped { 2f64.powi(-31) } else { 2e-5 };
            assert_close(&what, moved, change, allowed);
            assert_eq!(of[step].flags.clamped_change(), clamped, "{what}");
            assert_close(format_args!("{what}, taken"), of[step].term(Term::Clamp), taken, 1e-4);
        }
    }
}

/// A norm that vanishes raises the rate until the norm is 1e-4 of its mean over the steps, and no further. A problem that is solved exactly thus does
/// not leave behind a rate that would make it diverge.
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
            let record = run.records().records.remove(0);
            let floor = 1e-4 * sum / f64::from(k + 1);
            let expected = (0.5 / norm.max(floor)).ln();
            assert_close(format_args!("{}, step {k}", run.path()), record.ln_rate, expected, 1e-4);
            assert!(record.ln_rate > last - 1e-6);
            last = record.ln_rate;
        }
        assert!(last < (0.5f64 / 1e-6).ln(), "{}: {last}", run.path());
    }
}

/// η stays within [1e-30, 1e30], the record reports the clamp, and the rate can return.
#[test]
fn the_rate_is_clamped_at_1e30_both_ways() {
    let spec = |name: &str, initial_rate| {
        let ratio = NormRatio { initial_rate: Some(initial_rate), smoothing: 0.0, ..NormRatio::default() };
        Spec::new(Rule::sgd(), Regime::NormRatio(ratio), vec![vec![0.0; 3]]).named(name)
    };
    let specs = [spec("low", 1e-29), spec("high", 1e29)];
    for mut run in every_path(&specs) {
        for k in [0, 1, 2, 3, 2, 1, 0] {
            // The norms change by a factor of 8 per step.
            let n = 8f32.powi(k);
            run.step(&[vec![n; 3], vec![1.0 / n; 3]]);
        }
        let records = run.records().records;
        for (group, limit) in [(0, 1e-30f64), (1, 1e30)] {
            let of: Vec<Record> = records.iter().filter(|record| record.group == group).cloned().collect();
            let clamped: Vec<bool> = of.iter().map(|record| record.flags.clamped_rate()).collect();
            let what = format!("{}, towards {limit:e}", run.path());
            assert_eq!(clamped, [false, false, true, true, true, false, false], "{what}");
            for record in &of[2..5] {
                assert_close(&what, record.ln_rate, limit.ln(), 1e-7);
                assert!(ulps(record.learning_rate, limit) <= 3.0, "{what}: η is {:e}", record.learning_rate);
            }
            assert_terms_add_up(&what, &of, 1e-5);
            // When the norm is back, so is the rate: the clamp has no lasting effect.
            assert_close(&what, of[6].ln_rate, of[0].ln_rate, 1e-6);
        }
    }
}

/// The first step has the length ε (1 + ‖w₀‖) in parameter space, whatever the rule, the scale of the loss and the trust ratio.
#[test]
fn the_first_step_has_the_length_it_should() {
    let mut numbers = Numbers(12);
    for (scale, epsilon, trust) in [
        (1.0f32, 1e-2f32, None),
        (1e-20, 1e-2, None),
        (1e20, 0.5, None),
        (1.0, 1e-2, Some(1e-3)),
        (1.0, 1e-2, Some(1.0)),
    ] {
        let (w, g) = (numbers.vec(500), times(scale, &[numbers.vec(500)]));
        // AdamW's ε is not small compared with the smallest gradients.
        let rules = if scale < 1.0 { scale_free_rules().to_vec() } else { every_rule() };
        let mut specs = group_per_rule(&rules, seesaw(|s| s.first_step = Some(epsilon)), std::slice::from_ref(&w));
        specs.iter_mut().for_each(|spec| spec.trust = trust);
        for mut run in every_path(&specs) {
            run.step(&repeated(&g, specs.len()));
            let w_norm = w.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
            for (after, spec) in run.params().iter().zip(&specs) {
                let moved = after.iter().zip(&w).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
                let length = moved.sum::<f64>().sqrt();
                let mut expected = f64::from(epsilon) * (1.0 + w_norm);
                if spec.rule == Rule::nesterov(0.9) {
                    // u = g + μ m = 1.9 g, but the rate follows from g.
                    expected *= 1.0 + f64::from(0.9f32);
                }
                // Each parameter is rounded once, to 2^-25. There are 500 of them, and the step is 0.1 long.
                assert_close(format_args!("{}, {:?}", run.path(), spec.rule), length, expected, 1e-5 * expected);
            }
        }
    }
}
