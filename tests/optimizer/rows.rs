//! Tests of rate factors for rows and columns, which have the bits of groups at other rates, and of lazy rows, which keep every bit without a
//! gradient.

use wgpu_optim::{
    Averaging, ErrorKind, Group, OptimizerBuilder, RateFactors, Regime, Rule, SecantForm, State, WeightDecay,
};
use wgpu_optim_conformance::run::{Run, Spec, bits, every_path};
use wgpu_optim_conformance::{Numbers, assert_refused, noise, tensors};

use crate::helpers::raw_tensor;

const ROWS: usize = 70;
const COLUMNS: usize = 5;

fn table(rule: Rule) -> Spec {
    let spec = Spec::new(rule, Regime::fixed(0.01), tensors(5, &[ROWS * COLUMNS]));
    Spec { shapes: vec![vec![ROWS, COLUMNS]], ..spec }
}

/// Returns rules with each kind of state.
fn rules() -> [Rule; 6] {
    [Rule::sgd(), Rule::sgdm(0.9), Rule::lion(), Rule::adamw(), Rule::amsgrad(), Rule::adafactor()]
}

/// Returns gradients that are zero in the rows for which `absent` is true.
fn without(spec: &Spec, step: u64, absent: impl Fn(usize) -> bool) -> Vec<Vec<f32>> {
    let mut grads = noise(std::slice::from_ref(spec), step);
    for (_, row) in grads[0].chunks_mut(COLUMNS).enumerate().filter(|(row, _)| absent(*row)) {
        row.fill(0.0);
    }
    grads
}

/// With a factor that is a power of two, a row or a column has the bits of a run at that multiple of the rate.
#[test]
fn a_factor_is_another_rate() {
    let factors = [1.0, 0.5, 4.0, 0.0, 0.25];
    for rule in rules() {
        let plain = Spec { decay: WeightDecay::Coupled(0.0), ..table(rule) };
        for by_row in [false, true] {
            let spread: Vec<f32> = (0..ROWS).map(|row| factors[row % 5]).collect();
            let rates = if by_row { RateFactors::Rows(spread.into()) } else { RateFactors::Columns(factors.into()) };
            let spec = Spec { rate_factors: Some(rates), ..plain.clone() };
            for (at, mut run) in every_path(std::slice::from_ref(&spec)).into_iter().enumerate() {
                (0..4).for_each(|t| run.step(&noise(std::slice::from_ref(&spec), t)));
                let got = bits(&run.params()).remove(0);
                for (index, factor) in factors.into_iter().enumerate() {
                    let regime = Regime::fixed(if factor == 0.0 { 0.01 } else { 0.01 * factor });
                    let rate = Spec { regime, ..plain.clone() };
                    let mut alone = every_path(std::slice::from_ref(&rate)).remove(at);
                    // With a factor of 0 nothing moves.
                    let steps = if factor == 0.0 { 0 } else { 4 };
                    (0..steps).for_each(|t| alone.step(&noise(std::slice::from_ref(&spec), t)));
                    let expected = bits(&alone.params()).remove(0);
                    let own = |i: &usize| (if by_row { i / COLUMNS } else { *i }) % COLUMNS == index;
                    let differs = (0..got.len()).filter(own).find(|&i| got[i] != expected[i]);
                    assert_eq!(differs, None, "{}, {}, factor {factor}", run.path(), rule.name());
                }
            }
        }
    }
}

/// A factor also scales decoupled decay: where the gradient is 0, each step multiplies by 1 - f η λ.
#[test]
fn a_factor_is_one_of_the_decay_too() {
    let rates = RateFactors::Columns([1.0, 0.5, 0.0, 2.0, 1.0].into());
    let spec = Spec { rate_factors: Some(rates), decay: WeightDecay::Decoupled(12.5), ..table(Rule::sgd()) };
    for averaging in [Averaging::Off, Averaging::ScheduleFree] {
        let specs = [Spec { averaging, ..spec.clone() }];
        for mut run in every_path(&specs) {
            let before = run.params().concat();
            run.step(&[vec![0.0; ROWS * COLUMNS]]);
            let after = run.params().concat();
            for (i, (w, next)) in before.iter().zip(after).enumerate() {
                let expected = w * [0.875, 0.9375, 1.0, 0.75, 0.875][i % COLUMNS];
                assert!((next - expected).abs() <= 2e-7 * w.abs(), "{}: {next} for {expected}", run.path());
            }
        }
    }
}

/// Lazy rows without a gradient keep every bit of their parameters and state. The others have the bits of a step in which all rows have a gradient.
#[test]
fn lazy_rows_are_left_alone() {
    let absent = |row: usize| row.is_multiple_of(3) || row == 64;
    for rule in rules().into_iter().filter(|rule| !rule.owns_passes()) {
        let eager = Spec { decay: WeightDecay::Decoupled(0.1), ..table(rule) };
        let lazy = Spec { lazy_rows: true, ..eager.clone() };
        for (at, mut run) in every_path(std::slice::from_ref(&lazy)).into_iter().enumerate() {
            let mut other = every_path(std::slice::from_ref(&eager)).remove(at);
            for t in 0..3 {
                run.step(&without(&lazy, t, |_| false));
                other.step(&without(&lazy, t, |_| false));
            }
            assert_eq!(bits(&run.params()), bits(&other.params()), "{}, {}", run.path(), rule.name());
            let memories = |run: &dyn Run| {
                let checkpoint = run.checkpoint();
                let bytes = checkpoint.to_bytes();
                ["momentum/", "second_moment/", "largest_second_moment/"].map(|kind| {
                    let name = checkpoint.names().into_iter().find(|name| name.starts_with(kind));
                    name.map_or(Vec::new(), |name| bytemuck::pod_collect_to_vec(&raw_tensor(&bytes, &name).2))
                })
            };
            let before = [vec![bits(&run.params()).remove(0)], memories(run.as_ref()).to_vec()].concat();
            run.step(&without(&lazy, 3, absent));
            other.step(&without(&lazy, 3, |_| false));
            let after = [vec![bits(&run.params()).remove(0)], memories(run.as_ref()).to_vec()].concat();
            let expected = [vec![bits(&other.params()).remove(0)], memories(other.as_ref()).to_vec()].concat();
            for ((before, after), expected) in before.iter().zip(&after).zip(&expected) {
                for i in 0..after.len() {
                    let wanted = if absent(i / COLUMNS) { before[i] } else { expected[i] };
                    assert_eq!(after[i], wanted, "{}, {}, element {i}", run.path(), rule.name());
                }
            }
        }
    }
}

/// A row with gradients of -0 has no gradient, and a row with a denormal one has.
#[test]
fn the_smallest_gradient_is_one() {
    let spec = Spec { lazy_rows: true, decay: WeightDecay::Decoupled(1.0), ..table(Rule::adamw()) };
    for mut run in every_path(std::slice::from_ref(&spec)) {
        let before = run.params().remove(0);
        let mut grads = vec![-0.0; ROWS * COLUMNS];
        grads[COLUMNS + 2] = f32::from_bits(1);
        run.step(&[grads]);
        let after = run.params().remove(0);
        for row in 0..ROWS {
            let own = row * COLUMNS..(row + 1) * COLUMNS;
            assert_eq!(before[own.clone()] != after[own], row == 1, "{}, row {row}", run.path());
        }
    }
}

/// A skipped step changes nothing, and the next step determines its own rows.
#[test]
fn rows_are_marked_anew_in_each_step() {
    let spec = Spec { lazy_rows: true, ..table(Rule::sgdm(0.9)) };
    for mut run in every_path(std::slice::from_ref(&spec)) {
        run.step(&without(&spec, 0, |row| row < 35));
        let mut grads = without(&spec, 1, |row| row >= 35);
        grads[0][0] = f32::NAN;
        let before = run.params();
        run.step(&grads);
        assert_eq!(bits(&before), bits(&run.params()), "{}", run.path());
        run.step(&without(&spec, 2, |row| row >= 35));
        let (before, after) = (&before[0], &run.params()[0]);
        assert_eq!(before[35 * COLUMNS..], after[35 * COLUMNS..], "{}", run.path());
        assert!((0..35 * COLUMNS).all(|i| before[i] != after[i]), "{}", run.path());
    }
}

/// A resumed run has the bits of an uninterrupted one.
#[test]
fn rows_resume() {
    let rates = RateFactors::Columns([1.0, 0.5, 3.0, 0.0, 1.0].into());
    let specs = [Spec { lazy_rows: true, rate_factors: Some(rates), ..table(Rule::adamw()) }];
    for (at, mut run) in every_path(&specs).into_iter().enumerate() {
        (0..3).for_each(|t| run.step(&without(&specs[0], t, |row| row.is_multiple_of(2))));
        let mut resumed = every_path(&specs).remove(at);
        resumed.restore(&run.checkpoint()).expect("goes on");
        for t in 3..5 {
            run.step(&without(&specs[0], t, |row| row.is_multiple_of(3)));
            resumed.step(&without(&specs[0], t, |row| row.is_multiple_of(3)));
        }
        assert_eq!(bits(&run.params()), bits(&resumed.params()), "{}", run.path());
    }
}

#[test]
fn what_has_no_such_rows_is_refused() {
    let w = Numbers(1).vec(12);
    let columns = |factors: &[f32]| RateFactors::Columns(factors.into());
    let rows = |factors: &[f32]| RateFactors::Rows(factors.into());
    let group = || Group::new("all").shaped_tensor("w", &[3, 4], &w, &w);
    let build = |group: Group<_>| OptimizerBuilder::new(Rule::sgd()).group(group).build_cpu();
    build(group().rate_factors(columns(&[1.0; 4]))).expect("four columns");
    build(group().rate_factors(rows(&[1.0; 3]))).expect("three rows");
    for factors in [columns(&[1.0; 3]), rows(&[1.0; 4]), columns(&[])] {
        let error = assert_refused(build(group().rate_factors(factors)), &["\"w\"", "[3, 4]", "factors"]);
        assert_eq!(error.kind(), ErrorKind::Build);
    }
    for factor in [-1.0, f32::NAN, f32::INFINITY, 1e9] {
        let refused = build(group().rate_factors(columns(&[1.0, 1.0, factor, 1.0])));
        assert_refused(refused, &["group \"all\"", "rate_factors", "from 0 to 1e8"]);
    }
    let flat = || Group::new("all").tensor("w", &w, &w);
    assert_refused(build(flat().rate_factors(columns(&[1.0; 12]))), &["\"w\"", "shaped_tensor"]);
    assert_refused(build(flat().lazy_rows(true)), &["\"w\"", "lazy_rows", "shaped_tensor"]);
    for regime in [Regime::barzilai_borwein(SecantForm::Long), Regime::adgd(), Regime::auto_sgd()] {
        assert_refused(build(group().regime(regime).lazy_rows(true)), &["lazy_rows", "seesaw"]);
        let factors = columns(&[1.0; 4]);
        assert_refused(build(group().regime(regime).rate_factors(factors)), &["rate_factors", "seesaw"]);
    }
    for rule in [Rule::muon(), Rule::adafactor()] {
        assert_refused(build(group().rule(rule).lazy_rows(true)), &["lazy_rows", "muon", "adafactor"]);
    }
    assert_refused(build(group().rule(Rule::adamw()).state(State::Bits8).lazy_rows(true)), &["lazy_rows", "8-bit"]);
    // Muon's other tensors do not inherit the factors.
    let both = group().tensor("b", &w[..4], &w[..4]).rate_factors(columns(&[1.0; 4]));
    let optimizer = OptimizerBuilder::new(Rule::muon()).other_tensors(Rule::sgd()).group(both).build_cpu();
    assert_eq!(optimizer.expect("builds").groups()[1].rate_factors, None);
}
