//! The effect of norms, agreement and contradiction on Seesaw.

use super::{assert_terms_add_up, every_rule, group_per_rule, records, repeated, seesaw};
use wgpu_optim::{Averaging, Record, Regime, Rule, Sgdm, Term};
use wgpu_optim_conformance::assert_close;
use wgpu_optim_conformance::run::{Spec, every_path};

/// Seesaw's p is 1/2 up to the first smoothed norm for every rule. Above it p is 3/2 for the rules whose step grows with the gradient, and 1/2 for
/// signs, AdamW and Lion, in schedule-free training as well. The two pieces meet at the first norm, so that the rate does not depend on the path.
#[test]
fn above_the_first_norm_the_slope_depends_on_the_rule() {
    let dampened = Rule::Sgdm(Sgdm { momentum: 0.9, dampening: 0.5, nesterov: false });
    let steep = [Rule::sgd(), Rule::sgdm(0.9), Rule::sgdm(0.0), Rule::nesterov(0.9), dampened];
    let others = [Rule::sign_sgd(), Rule::signum(0.9), Rule::adamw(), Rule::adamw_without_momentum(), Rule::lion()];
    let mut specs = Vec::new();
    let mut slopes = Vec::new();
    for (rule, above) in steep.map(|rule| (rule, 1.5)).into_iter().chain(others.map(|rule| (rule, 0.5))) {
        for averaging in [Averaging::Off, Averaging::ScheduleFree] {
            if averaging.fits(&rule) {
                // The regime has alignment, so that the record must separate the norm's term from the others.
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
                assert_close(&what, record.smoothed_norm, norm, 1e-6 * f64::from(norm));
                assert_close(&what, record.term(Term::Norm), fallen - last, 1e-5);
                last = fallen;
            }
        }
    }
}

/// A gradient 1e8 times as large as the others lowers the rate while it is in the average, and then the rate is the same as before. No clamp keeps a
/// part of the fall, and no floor from the mean norm keeps the rate low.
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
        // The average contains √(0.1/(1 - 0.9²¹)) of the outlier. n̂ is the outlier itself, and p is 3/2 above the first norm.
        assert_close(run.path(), lowest, -1.5 * 1e8f64.ln(), 1e-5);
        // Only 0.9⁴⁷⁹ of its square is left, which is negligible.
        let back = records[499].ln_rate - records[19].ln_rate;
        assert_close(run.path(), back, 0.0, 1e-4);
    }
}

/// The gain of the k-th gradient is max(κ, h/(h + k - 2)), as the alignment terms of gradients that agree show.
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
            assert_close(format_args!("{}, gradient {k}", run.path()), record.term(Term::Alignment), expected, 1e-6);
        }
    }
}

/// Returns the part of ln η that the alignment has caused, which is what the smoothed norm does not explain.
fn agreements(spec: &Spec, records: &[Record]) -> Vec<f64> {
    let exponents = match spec.regime {
        Regime::Seesaw(seesaw) if spec.rule.is_scale_free() => (seesaw.exponent, seesaw.exponent),
        Regime::Seesaw(seesaw) => (seesaw.exponent, seesaw.exponent_above),
        _ => (0.0, 0.0),
    };
    let first = &records[0];
    let anchor = f64::from(first.smoothed_norm).ln();
    let agreement = |record: &Record| {
        let exponent = match record.smoothed_norm > first.smoothed_norm {
            true => exponents.1,
            false => exponents.0,
        };
        let from_norm = f64::from(exponent) * (anchor - f64::from(record.smoothed_norm).ln());
        record.ln_rate - first.ln_rate - from_norm
    };
    records.iter().map(agreement).collect()
}

/// Gradients that contradict each other endlessly do not lower the rate below its anchor while the norm has not doubled, whatever the rule. The
/// record has what was held, and its sentence says so.
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
            let of_group: Vec<Record> = records.iter().filter(|record| record.group == group).cloned().collect();
            let what = format!("{}, {}", run.path(), spec.rule.name());
            for (record, agreement) in of_group.iter().zip(agreements(spec, &of_group)) {
                assert!(agreement >= -2e-6, "{what}: A is {agreement}");
                assert!(record.term(Term::Held) >= 0.0, "{what}: {record:?}");
            }
            let held: f32 = of_group.iter().map(|record| record.term(Term::Held)).sum();
            assert!(held > 1.0, "{what}: only {held} was held");
            let mut sentences = of_group.iter().map(Record::to_string);
            let sentence = sentences.find(|sentence| sentence.contains("rate held")).expect("a sentence");
            assert!(sentence.contains(", but the norm has not risen since the start: rate held (+"), "{sentence}");
        }
    }
}

/// Of a contradiction below the least agreement so far, nothing counts up to twice the first norm, half of it at 2√2 times, and all of it from four
/// times on. A fall that counted remains when the norm is back, and the floor is then at its end.
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
            // At the second gradient κ is 1 and the cosine is -1.
            assert_close(&what, records[1].term(Term::Alignment), -1.0, 1e-6);
            assert_close(&what, records[1].ln_rate - records[0].ln_rate, -share, 1e-6);
            assert_close(format_args!("{what}, held"), records[1].term(Term::Held), 1.0 - share, 1e-6);
            // The third gradient contradicts the second at an ordinary norm, and the rate is held at the new floor. The fourth agrees.
            assert_close(&what, records[2].ln_rate, records[1].ln_rate, 1e-6);
            assert!(records[3].ln_rate > records[2].ln_rate + 0.1, "{what}");
        }
    }
}

/// Contradiction takes back what agreement added, without being held, until the rate is where it started.
#[test]
fn contradiction_takes_back_what_agreement_gave() {
    let specs = group_per_rule(&[Rule::sgdm(0.0)], Regime::seesaw(), &[vec![0.0; 8]]);
    for mut run in every_path(&specs) {
        for t in 0..60 {
            let sign = if t < 5 || t % 2 == 0 { 1.0 } else { -1.0 };
            run.step(&[vec![sign; 8]]);
        }
        let records = run.records().records;
        let agreement = agreements(&specs[0], &records);
        assert!(agreement[4] > 2.0, "{}: {agreement:?}", run.path());
        for (t, pair) in agreement.windows(2).enumerate().skip(5) {
            let (before, record) = (pair[0], &records[t + 1]);
            if before > 1.0 {
                assert_eq!(record.term(Term::Held), 0.0, "{}, step {t}", run.path());
                assert!(pair[1] < before, "{}, step {t}", run.path());
            }
        }
        assert_close(run.path(), agreement[59], 0.0, 2e-6);
    }
}

/// A rate that agreement has raised to its limit falls as soon as gradients contradict each other, since the excess is not stored. The terms include
/// the clamp, and a checkpoint of this state can be restored.
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
        assert_close(&path, records[299].ln_rate, limit, 1e-5);
        assert!(records[299].flags.clamped_rate(), "{path}");
        // A is at most 138, and falls by 1 per step.
        let ended = records[300..].iter().position(|r| r.ln_rate < limit - 1.0).expect("it comes back");
        assert!((60..=120).contains(&ended), "{path}: after {ended} steps");
        assert_terms_add_up(&path, &records, 1e-4);
        let checkpoint = run.checkpoint();
        run.restore(&checkpoint).expect("its own checkpoint");
    }
}
