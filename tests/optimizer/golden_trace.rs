//! Golden traces: on the CPU path and on every adapter, Seesaw follows its executable specification step by step, and the other regimes follow the
//! formulas of their papers. The numbers come from `tests/golden/make_golden.py`, `make_regimes.py`, `make_rate_free.py` and `make_auto_sgd.py`.

use wgpu_optim::{
    AdamW, AutoSgd, Averaging, DoG, DoWG, Mechanic, Outcome, Prodigy, Record, Regime, Rule, Schedule, SecantForm,
    Stream, Term, WeightDecay,
};
use wgpu_optim_conformance::assert_close;
use wgpu_optim_conformance::run::{Spec, every_path};

use crate::helpers::raw_tensor;

const D: usize = 64;

struct Golden {
    rule: String,
    numbers: Vec<f64>,
}

fn golden(rule: &str) -> Vec<Golden> {
    let rows: Vec<Golden> = include_str!("../golden/seesaw.csv")
        .lines()
        .skip(1)
        .map(|line| {
            let mut fields = line.split(',');
            let rule = fields.next().expect("a rule").to_owned();
            // Only schedule-free training has the columns for z and x.
            let numbers = fields.skip(1).filter(|x| !x.is_empty()).map(|x| x.parse().expect("a number")).collect();
            Golden { rule, numbers }
        })
        .filter(|row| row.rule == rule)
        .collect();
    assert_eq!(rows.len(), 24, "the golden steps of {rule}");
    rows
}

/// Returns the gradient of a diagonal quadratic with deterministic noise.
fn gradient(w: &[f32], t: usize) -> Vec<f32> {
    grown_gradient(w, t, 1.0)
}

/// Returns the same gradient with a factor, whose sign alternates up to step 18 and which grows from 1 to 10 from step 8 on.
fn turning_gradient(w: &[f32], t: usize) -> Vec<f32> {
    let turned = if t.min(18).is_multiple_of(2) { 1.0 } else { -1.0 };
    grown_gradient(w, t, turned * 1.5f64.powi((t as i32 - 7).max(0)).min(10.0))
}

fn grown_gradient(w: &[f32], t: usize, factor: f64) -> Vec<f32> {
    (0..D)
        .map(|i| {
            let h = 10f64.powf(-2.0 * i as f64 / (D - 1) as f64);
            let noise = 0.01 * (1.7 * i as f64 * (t + 1) as f64).sin();
            (factor * (h * (f64::from(w[i]) - (i as f64).cos()) + noise)) as f32
        })
        .collect()
}

/// Parameters and gradients are f32 and depend on each other, so that errors of 2^-24 per element accumulate over the steps.
const TOLERANCE: f64 = 4e-6;

fn compare(path: &str, row: &Golden, record: &Record, w: &[f32]) {
    let expected = &row.numbers;
    let got = [
        f64::from(record.norm),
        f64::from(record.smoothed_norm),
        record.ln_rate,
        f64::from(record.term(Term::Norm)),
        f64::from(record.term(Term::Alignment)),
        f64::from(record.term(Term::Brake)),
        f64::from(record.term(Term::Held)),
        f64::from(w[0]),
        f64::from(w[D - 1]),
    ];
    for (column, (got, expected)) in got.iter().zip(expected).enumerate() {
        let what = format_args!("{path}, {}, step {}, column {column}", row.rule, record.step);
        assert_close(what, *got, *expected, TOLERANCE * expected.abs().max(1.0));
    }
}

/// Asserts that the trace has all three cases: the floor holds all of a fall, a part of it, and nothing.
fn assert_the_gate_opens(rows: &[Golden]) {
    let rule = &rows[0].rule;
    let held = |row: &Golden| row.numbers[6];
    let wanted = |row: &Golden| row.numbers[4] + row.numbers[5];
    assert!(rows.iter().any(|row| held(row) > 0.4 && (held(row) + wanted(row)).abs() < 1e-12), "{rule}");
    assert!(rows.iter().any(|row| held(row) > 0.03 && held(row) + wanted(row) < -0.03), "{rule}");
    assert_eq!(held(&rows[18]), 0.0, "{rule}");
    // The change of ln η by contradiction, without the norm's term.
    let agreement: f64 = rows[..19].iter().map(|row| held(row) + wanted(row)).sum();
    assert!(agreement < -0.6, "{rule}: {agreement}");
}

fn rules() -> [(&'static str, Rule); 5] {
    [
        ("sgd", Rule::sgd()),
        ("sgdm", Rule::sgdm(0.9)),
        ("signsgd", Rule::sign_sgd()),
        ("adamw", Rule::adamw()),
        ("lion", Rule::lion()),
    ]
}

/// Compares the record and y. In schedule-free training, where `Sgd` and `SignSgd` are compared with y - z, also compares z and x.
#[test]
fn every_path_follows_the_golden_trace() {
    let free = [("sgd-free", Rule::sgd()), ("signsgd-free", Rule::sign_sgd())];
    let adamw = ("adamw-free", Rule::adamw_without_momentum());
    for (name, rule) in rules().into_iter().chain(free).chain([adamw]) {
        let rows = golden(name);
        assert_the_gate_opens(&rows);
        let is_free = name.ends_with("-free");
        let averaging = if is_free { Averaging::ScheduleFree } else { Averaging::Off };
        let spec = Spec { averaging, ..Spec::new(rule, Regime::seesaw(), vec![vec![0.0; D]]) };
        for mut run in every_path(std::slice::from_ref(&spec)) {
            for (t, row) in rows.iter().enumerate() {
                let w = run.params().remove(0);
                run.step(&[turning_gradient(&w, t)]);
                let records = run.records().records;
                assert_eq!(records.len(), 1);
                let [y, x] = [run.params().remove(0), run.averages().remove(0)];
                compare(&run.path(), row, &records[0], &y);
                if is_free {
                    let bytes = run.checkpoint().to_bytes();
                    let (.., base) = raw_tensor(&bytes, &format!("base_iterates/{}", spec.tensor_name(0)));
                    let z: Vec<f32> = bytemuck::pod_collect_to_vec(&base);
                    for (got, &expected) in [z[0], z[D - 1], x[0], x[D - 1]].into_iter().zip(&row.numbers[9..]) {
                        assert_close(format_args!("{}, {name}, step {t}", run.path()), got, expected, TOLERANCE);
                    }
                }
            }
        }
    }
}

/// Returns a regime of `tests/golden/make_regimes.py`.
fn regime(name: &str) -> Regime {
    let initial_distance = 1e-2;
    match name {
        "adagrad-norm" => Regime::adagrad_norm(),
        "bb-long" => Regime::barzilai_borwein(SecantForm::Long),
        "bb-short" => Regime::barzilai_borwein(SecantForm::Short),
        "bb-geometric" => Regime::barzilai_borwein(SecantForm::Geometric),
        "adgd" => Regime::adgd(),
        "dog" => Regime::DoG(DoG { initial_distance }),
        "dowg" => Regime::DoWG(DoWG { initial_distance }),
        "polyak" => Regime::polyak(),
        "ngn" => Regime::ngn(),
        "schedule-free-plus" => Regime::schedule_free_plus(),
        other => panic!("no regime is called {other}"),
    }
}

/// The formulas use differences of parameters and of gradients, whose rounding errors accumulate over the steps.
const FORMULA_TOLERANCE: f64 = 1e-4;

/// Returns ½ Σ h (w - target)² + 0.05, the loss of the specification.
fn loss(w: &[f32]) -> f32 {
    let curvature = |i: usize| 10f64.powf(-2.0 * i as f64 / (D - 1) as f64);
    let terms = w.iter().enumerate().map(|(i, &w)| curvature(i) * (f64::from(w) - (i as f64).cos()).powi(2));
    (0.05 + 0.5 * terms.sum::<f64>()) as f32
}

/// Asserts that the loss, the record's norm and rate, and two parameters are those of a trace.
#[track_caller]
fn compare_with_trace(what: &str, expected: &[&str], loss: f32, record: &Record, after: &[f32], tolerance: f64) {
    let [loss, norm, first, last] = [loss, record.norm, after[0], after[D - 1]].map(f64::from);
    for (column, (got, expected)) in [loss, norm, record.ln_rate, first, last].into_iter().zip(expected).enumerate() {
        let expected: f64 = expected.parse().expect("a number");
        let allowed = tolerance * expected.abs().max(1.0);
        assert_close(format_args!("{what}, column {column}"), got, expected, allowed);
    }
}

#[test]
fn every_path_follows_the_golden_traces_of_the_formulas() {
    let traces: Vec<Vec<&str>> =
        include_str!("../golden/regimes.csv").lines().skip(1).map(|line| line.split(',').collect()).collect();
    assert_eq!(traces.len(), (3 * 9 + 2) * 12);
    for trace in traces.chunks(12) {
        let (rule_name, regime_name) = (trace[0][0], trace[0][1]);
        let (_, rule) = rules().into_iter().find(|(name, _)| *name == rule_name).expect("a rule");
        let spec = Spec::new(rule, regime(regime_name), vec![vec![0.0; D]]);
        for mut run in every_path(&[spec]) {
            for (t, row) in trace.iter().enumerate() {
                let w = run.params().remove(0);
                run.set_loss(loss(&w));
                run.step(&[gradient(&w, t)]);
                let record = run.records().records.remove(0);
                let after = run.params().remove(0);
                let what = format!("{}, {rule_name}, {regime_name}, step {t}", run.path());
                compare_with_trace(&what, &row[3..], loss(&w), &record, &after, FORMULA_TOLERANCE);
            }
        }
    }
}

/// Returns a case of `tests/golden/make_rate_free.py` and its tolerance.
fn rate_free(regime: &str, case: &str) -> (Spec, f64) {
    let tiny = Rule::AdamW(AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-15 });
    let slow = Schedule::InverseSqrt { warmup: 5 };
    let of = |rule, regime, decay, schedule| Spec {
        decay: WeightDecay::Decoupled(decay),
        schedule,
        ..Spec::new(rule, regime, vec![vec![0.0; D]])
    };
    let prodigy = |rule, change: &dyn Fn(&mut Prodigy), decay, schedule| {
        let mut regime = Prodigy::default();
        change(&mut regime);
        of(rule, Regime::Prodigy(regime), decay, schedule)
    };
    let plain = Schedule::Constant;
    match (regime, case) {
        // The published package multiplies ε by the estimate of another step.
        ("prodigy", "published") => (prodigy(Rule::adamw(), &|_| {}, 0.0, plain), 1e-4),
        ("prodigy", "tiny-epsilon") => (prodigy(tiny, &|_| {}, 0.0, plain), PACKAGES_TOLERANCE),
        ("prodigy", "decay") => {
            let change = |p: &mut Prodigy| {
                (p.coefficient, p.beta3, p.initial_estimate) = (2.0, Some(0.9), 1e-4);
            };
            (prodigy(tiny, &change, 0.1, slow), PACKAGES_TOLERANCE)
        }
        ("prodigy", "corrected") => {
            let change = |p: &mut Prodigy| (p.bias_correction, p.growth) = (true, 1.3);
            (prodigy(tiny, &change, 0.0, plain), PACKAGES_TOLERANCE)
        }
        ("prodigy", "safeguard") => {
            let change = |p: &mut Prodigy| (p.safeguard_warmup, p.learning_rate) = (true, 0.5);
            (prodigy(tiny, &change, 0.0, slow), PACKAGES_TOLERANCE)
        }
        ("mechanic", "sgd") => (of(Rule::sgd(), Regime::mechanic(), 0.0, plain), PACKAGES_TOLERANCE),
        ("mechanic", "sgdm") => (of(Rule::sgdm(0.9), Regime::mechanic(), 0.0, plain), PACKAGES_TOLERANCE),
        ("mechanic", "adamw") => (of(Rule::adamw(), Regime::mechanic(), 0.1, slow), PACKAGES_TOLERANCE),
        ("mechanic", "lion") => {
            let regime = Mechanic { initial_scale: 1e-4, decay: 0.1, ..Mechanic::default() };
            (of(Rule::lion(), Regime::Mechanic(regime), 0.0, plain), PACKAGES_TOLERANCE)
        }
        other => panic!("no case is called {other:?}"),
    }
}

/// The tolerance relative to the larger of the number and 1, and twice that of a rate, for 50 steps whose gradients depend on the parameters.
const PACKAGES_TOLERANCE: f64 = 4e-6;

/// Compares with the authors' own packages in f64 over 50 steps, in which the estimates grow by five orders of magnitude.
#[test]
fn every_path_follows_the_golden_traces_of_the_authors_packages() {
    const STEPS: usize = 50;
    let traces: Vec<Vec<&str>> =
        include_str!("../golden/rate_free.csv").lines().skip(1).map(|line| line.split(',').collect()).collect();
    assert_eq!(traces.len(), 9 * STEPS);
    for trace in traces.chunks(STEPS) {
        let (regime_name, case) = (trace[0][0], trace[0][1]);
        let (spec, tolerance) = rate_free(regime_name, case);
        for mut run in every_path(&[spec]) {
            for (t, row) in trace.iter().enumerate() {
                let w = run.params().remove(0);
                run.step(&[gradient(&w, t)]);
                let record = run.records().records.remove(0);
                let after = run.params().remove(0);
                let what = format!("{}, {regime_name}, {case}, step {t}", run.path());
                compare_with_trace(&what, &row[3..], loss(&w), &record, &after, tolerance);
                let ln_rate: f64 = row[5].parse().expect("a number");
                assert_close(format_args!("{what}: rate"), record.ln_rate, ln_rate, 0.5 * tolerance);
            }
        }
    }
}

/// Returns a case of `tests/golden/make_auto_sgd.py`.
fn auto_sgd(rule: &str, case: &str) -> Regime {
    let high = if rule == "signsgd" { 2.0 } else { 8.0 };
    let (initial_rate, rounds) = match case {
        "automatic" => (None, 64),
        "too high" => (Some(high), 64),
        "short" => (Some(high / 4.0), 5),
        other => panic!("no case is called {other}"),
    };
    Regime::AutoSgd(AutoSgd { initial_rate, rounds, certainty: 2.0, ..AutoSgd::default() })
}

/// Returns the loss and the gradient of the specification's batch, which is the same for the three steps of a round.
fn shared_batch(w: &[f32], t: usize) -> (f32, Vec<f32>) {
    let batch = t / 3;
    let factor = 1.0 + 0.02 * (2.3 * batch as f64).sin();
    ((f64::from(loss(w)) * factor) as f32, gradient(w, batch))
}

#[test]
fn every_path_follows_the_golden_traces_of_three_streams() {
    const STEPS: usize = 90;
    let traces: Vec<Vec<&str>> =
        include_str!("../golden/auto_sgd.csv").lines().skip(1).map(|line| line.split(',').collect()).collect();
    assert_eq!(traces.len(), 2 * 3 * STEPS);
    for trace in traces.chunks(STEPS) {
        let (rule_name, case) = (trace[0][0], trace[0][1]);
        let (_, rule) = rules().into_iter().find(|(name, _)| *name == rule_name).expect("a rule");
        let spec = Spec::new(rule, auto_sgd(rule_name, case), vec![vec![0.0; D]]);
        for mut run in every_path(&[spec]) {
            for (t, row) in trace.iter().enumerate() {
                let what = format!("{}, {rule_name}, {case}, step {t}", run.path());
                let w = run.params().remove(0);
                let (loss, gradient) = shared_batch(&w, t);
                run.set_loss(loss);
                run.step(&[gradient]);
                let record = run.records().records.remove(0);
                let after = run.params().remove(0);
                let stream = [Stream::Middle, Stream::Slower, Stream::Faster][t % 3];
                assert_eq!(record.stream, Some(stream), "{what}");
                assert_eq!(row[4], (t % 3).to_string(), "{what}");
                assert_eq!(row[3], record.episode.to_string(), "{what}");
                let outcome = match row[5] {
                    "" => None,
                    "increase" => Some(Outcome::Won(Stream::Faster)),
                    "stay" => Some(Outcome::Won(Stream::Middle)),
                    "decrease" => Some(Outcome::Won(Stream::Slower)),
                    "restart" => Some(Outcome::TakenBack),
                    other => panic!("no outcome is called {other}"),
                };
                assert_eq!(record.outcome, outcome, "{what}");
                compare_with_trace(&what, &row[6..], loss, &record, &after, FORMULA_TOLERANCE);
            }
        }
    }
}
