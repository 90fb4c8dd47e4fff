//! Tests of `Schedule`: the factors are those of PyTorch (`tests/golden/make_schedules.py`) and right to a few ulps at every possible step, on the
//! CPU path and on every adapter. A table has the caller's factors.

use std::iter::once;

use wgpu_optim::internals::layout::{GroupConstants, TABLE_FACTORS};
use wgpu_optim::internals::schedule::{constants, schedule_factor};
use wgpu_optim::{DecayShape, ErrorKind, Group, OptimizerBuilder, Regime, Rule, Schedule, bytemuck};
use wgpu_optim_conformance::run::{Spec, devices, every_path};
use wgpu_optim_conformance::schedule::{factor_at, schedules};
use wgpu_optim_conformance::{
    Kernel, assert_close, assert_refused, download, filled, noise, submit_pass, tensors, ulps, upload,
};

/// Returns the schedules of the golden numbers, in their order.
fn golden_schedules() -> Vec<(&'static str, Schedule)> {
    let stable = |shape| Schedule::WarmupStableDecay { warmup: 8, steps: 43, decay: 15, last: 0.0, shape };
    vec![
        ("warmup-constant", Schedule::WarmupConstant { warmup: 8 }),
        ("cosine", Schedule::WarmupCosine { warmup: 0, steps: 60, last: 0.1 }),
        ("warmup-cosine", Schedule::WarmupCosine { warmup: 8, steps: 60, last: 0.0 }),
        ("linear", Schedule::Linear { warmup: 0, steps: 50, last: 0.0 }),
        ("warmup-linear", Schedule::Linear { warmup: 8, steps: 40, last: 0.25 }),
        ("polynomial-2", Schedule::Polynomial { warmup: 0, steps: 50, power: 2.0, last: 0.0 }),
        ("polynomial-half", Schedule::Polynomial { warmup: 8, steps: 50, power: 0.5, last: 0.0 }),
        ("polynomial-3", Schedule::Polynomial { warmup: 0, steps: 60, power: 3.0, last: 0.0 }),
        ("exponential", Schedule::Exponential { warmup: 0, every: 1, factor: 0.875 }),
        ("warmup-exponential", Schedule::Exponential { warmup: 8, every: 1, factor: 0.9375 }),
        ("restarts-1", Schedule::CosineRestarts { warmup: 0, period: 13, growth: 1, last: 0.0 }),
        ("restarts-2", Schedule::CosineRestarts { warmup: 0, period: 7, growth: 2, last: 0.1 }),
        ("warmup-restarts-3", Schedule::CosineRestarts { warmup: 8, period: 3, growth: 3, last: 0.0 }),
        ("stable-linear", stable(DecayShape::Linear)),
        ("stable-sqrt", stable(DecayShape::OneMinusSqrt)),
        ("stable-cosine", stable(DecayShape::Cosine)),
        ("inverse-sqrt", Schedule::InverseSqrt { warmup: 8 }),
        ("step", Schedule::Step { every: 9, factor: 0.375 }),
        ("one-cycle", Schedule::OneCycle { rise: 18, steps: 60, first: 0.04, last: 4e-5 }),
        ("table", Schedule::Table { factors: [0.5, 0.25, 1.0, 0.75, 0.125].into(), every: 1 }),
    ]
}

/// The expected factor of a schedule at a step.
struct Case {
    what: String,
    constants: GroupConstants,
    t: u32,
    expected: f64,
}

/// Returns the constants of these schedules, and the factors of the tables among them, one after another.
fn placed(schedules: &[Schedule]) -> (Vec<GroupConstants>, Vec<f32>) {
    let mut all = Vec::new();
    let place = |schedule: &Schedule| {
        let mut constants = constants(schedule);
        if let Schedule::Table { factors, .. } = schedule {
            constants.schedule_rise = all.len() as u32;
            all.extend_from_slice(factors);
        }
        constants
    };
    (schedules.iter().map(place).collect(), all)
}

const FACTORS: &str = "
@group(0) @binding(0) var<storage, read> groups: array<GroupConstants>;
@group(0) @binding(1) var<storage, read> steps: array<u32>;
@group(0) @binding(2) var<storage, read_write> factors: array<f32>;
@group(0) @binding(3) var<storage, read> given: array<vec4<f32>>;
@compute @workgroup_size(64) fn evaluate(@builtin(local_invocation_index) i: u32) {
    if i < arrayLength(&groups) {
        factors[i] = schedule_factor(groups[i], steps[i]);
    }
}
";

/// Compares the factors on every path with the expected ones.
fn check(cases: &[Case], factors: &[f32], most_ulps: f64) {
    let held = |path: &str, case: &Case, factor: f32| {
        let off = ulps(factor, case.expected);
        assert!(
            off <= most_ulps,
            "{path}, {} at {}: {factor} against {}, {off} ulps",
            case.what,
            case.t,
            case.expected
        );
    };
    for case in cases {
        held("CPU", case, schedule_factor(&case.constants, factors, case.t));
    }
    // The kernel of this test has a storage buffer for the tables, with as many factors as the pass's uniform buffer.
    let uniform = "@group(0) @binding(7) var<uniform> table_factors: array<vec4<f32>, TABLE_QUADS>;";
    let source = wgpu_optim::internals::link("learning_rate/schedule", &["table"]);
    assert!(source.contains(uniform));
    let source = source.replace(uniform, "").replace("table_factors", "given") + FACTORS;
    let mut given = factors.to_vec();
    given.resize(TABLE_FACTORS as usize, f32::NAN);
    for gpu in &devices() {
        let given = upload(gpu, &given);
        for cases in cases.chunks(64) {
            let constants: Vec<GroupConstants> = cases.iter().map(|case| case.constants).collect();
            let steps: Vec<f32> = cases.iter().map(|case| f32::from_bits(case.t)).collect();
            let groups = upload(gpu, bytemuck::cast_slice(&constants));
            let out = upload(gpu, &[f32::NAN; 64]);
            let kernel = Kernel::new(gpu, &source, &[&groups, &upload(gpu, &steps), &out, &given]);
            submit_pass(gpu, |pass| kernel.dispatch(pass));
            for (case, factor) in cases.iter().zip(download(gpu, &out, cases.len())) {
                held(&gpu.describe().to_string(), case, factor);
            }
        }
    }
}

#[test]
fn the_factors_are_those_of_pytorch() {
    let golden: Vec<&str> = include_str!("../golden/schedules.csv").lines().skip(2).collect();
    let (names, schedules): (Vec<&str>, Vec<Schedule>) = golden_schedules().into_iter().unzip();
    assert_eq!(golden.len(), names.len());
    let (constants, factors) = placed(&schedules);
    let mut cases = Vec::new();
    for ((line, name), constants) in golden.iter().zip(names).zip(constants) {
        let mut fields = line.split(',');
        assert_eq!(fields.next(), Some(name));
        for (t, field) in (0..).zip(fields) {
            let expected = field.parse::<f64>().expect("a number").max(1e-6);
            cases.push(Case { what: name.to_owned(), constants, t, expected });
        }
    }
    check(&cases, &factors, 8.0);
}

/// The factors are right at the ends of warm-ups, falls and cycles, and up to the last step that can be counted.
#[test]
fn the_factors_are_right_at_any_step() {
    let mut all: Vec<Schedule> = golden_schedules().into_iter().map(|(_, schedule)| schedule).collect();
    for steps in [1, 6, 1000, 123_457, u32::MAX] {
        all.extend(if steps < 6 { Schedule::all(steps) } else { schedules(steps) });
    }
    let restarts = |period, growth| Schedule::CosineRestarts { warmup: 5, period, growth, last: 0.25 };
    all.extend(
        [(1, 1), (1, 2), (1000, 2), (3, 7), (65_537, 65_537), (7, u32::MAX), (u32::MAX, 2)]
            .map(|(p, g)| restarts(p, g)),
    );
    all.push(Schedule::Exponential { warmup: 0, every: 100_000, factor: 1e-6 });
    all.push(Schedule::Exponential { warmup: 0, every: 3, factor: 1.5 });
    all.push(Schedule::Step { every: 7, factor: 0.999 });
    all.push(Schedule::Table { factors: [0.0, 1.0, 1.0, 0.0, 0.3].into(), every: 1001 });
    all.push(Schedule::Table { factors: (1..=1000u16).map(|i| f32::from(i % 7)).collect(), every: 999_983 });
    let (constants, factors) = placed(&all);
    let mut cases = Vec::new();
    for (schedule, constants) in all.iter().zip(constants) {
        let marks = [constants.schedule_rise, constants.schedule_steps, 500, 77_777, 1 << 24, 1 << 31, u32::MAX];
        let near = |mark: u32| [mark.saturating_sub(1), mark, mark.saturating_add(1), mark / 3 * 2];
        for t in once(0).chain(marks.into_iter().flat_map(near)) {
            cases.push(Case { what: format!("{schedule:?}"), constants, t, expected: factor_at(schedule, t) });
        }
    }
    check(&cases, &factors, 12.0);
}

/// A group's table does not affect groups without a table or with another one.
#[test]
fn every_group_follows_its_own_table() {
    let table = |factors: &[f32], every| Schedule::Table { factors: factors.into(), every };
    let schedules = [
        Schedule::Constant,
        table(&[1.0, 0.5, 2.0], 1),
        table(&[0.25, 0.75, 0.0, 0.5, 0.125], 2),
        Schedule::Linear { warmup: 2, steps: 6, last: 0.5 },
        table(&[1.0, 0.5, 2.0], 3),
    ];
    let spec = |schedule: &Schedule| {
        let per_tensor = *schedule == schedules[2];
        Spec {
            schedule: schedule.clone(),
            per_tensor,
            ..Spec::new(Rule::sgd(), Regime::fixed(0.5), tensors(1, &[9, 5]))
        }
    };
    let specs: Vec<Spec> = schedules.iter().enumerate().map(|(i, s)| spec(s).named(format!("group {i}"))).collect();
    let of_rate: Vec<&Schedule> = schedules.iter().flat_map(|s| vec![s; 1 + usize::from(*s == schedules[2])]).collect();
    for mut run in every_path(&specs) {
        for t in 0..12 {
            run.step(&noise(&specs, t));
            let records = run.records().records;
            assert_eq!(records.len(), of_rate.len());
            for (record, schedule) in records.iter().zip(&of_rate) {
                let expected = 0.5 * factor_at(schedule, t as u32);
                let what = format_args!("{}, {schedule:?} at {t}", run.path());
                assert_close(what, record.learning_rate, expected, 1e-6 * expected);
            }
        }
    }
}

#[test]
fn tables_that_do_not_fit_are_refused() {
    let zeros = [0.0f32; 4];
    let builder = |tables: &[Schedule]| {
        let group = |(i, table): (usize, &Schedule)| {
            Group::new(format!("group {i}")).schedule(table.clone()).tensor(format!("w{i}"), &zeros, &zeros)
        };
        tables.iter().enumerate().map(group).fold(OptimizerBuilder::new(Rule::sgd()), OptimizerBuilder::group)
    };
    let table = |count: u16, last: f32| Schedule::Table {
        factors: (0..count).map(|_| 1.0).chain(once(last)).collect(),
        every: 1,
    };
    builder(&[table(4095, 0.5)]).build_cpu().expect("as many as there can be");
    // Equal tables are stored once.
    builder(&[table(4000, 0.5), table(4000, 0.5), table(94, 0.5)]).build_cpu().expect("4096 in all");
    let words = &["factors in the tables", "4097", "4096", "every"];
    let error = assert_refused(builder(&[table(4000, 0.5), table(95, 0.5)]).build_cpu(), words);
    assert_eq!(error.kind(), ErrorKind::Limit);
    for (schedule, words) in [
        (table(4096, 0.5), ["the number of factors", "4097"]),
        (Schedule::Table { factors: [].into(), every: 1 }, ["the number of factors", "0"]),
        (table(3, f32::NAN), ["factors", "NaN"]),
        (table(3, -0.5), ["factors", "-0.5"]),
        (Schedule::Table { factors: [1.0].into(), every: 0 }, ["every", "0"]),
        (Schedule::Polynomial { warmup: 0, steps: 9, power: 0.0, last: 0.0 }, ["power", "0"]),
        (Schedule::Exponential { warmup: 0, every: 0, factor: 0.5 }, ["every", "0"]),
        (Schedule::CosineRestarts { warmup: 0, period: 4, growth: 0, last: 0.0 }, ["growth", "0"]),
        (
            Schedule::WarmupStableDecay { warmup: 3, steps: 9, decay: 7, last: 0.0, shape: DecayShape::Linear },
            ["decay", "7"],
        ),
        (Schedule::Linear { warmup: 9, steps: 9, last: 0.0 }, ["warmup", "9"]),
        (Schedule::WarmupConstant { warmup: 0 }, ["warmup", "0"]),
    ] {
        let error = assert_refused(builder(&[schedule]).build_cpu(), &words);
        assert_eq!(error.kind(), ErrorKind::Build);
    }
}

/// Gradients that all agree raise the rate faster than the warm-up does. At the end of the warm-up the rate is the one without a warm-up, not that
/// rate multiplied by the warm-up as well.
#[test]
fn a_warm_up_under_seesaw_does_not_overshoot() {
    const WARMUP: u32 = 20;
    let regimes = [Regime::seesaw(), Regime::hypergradient()];
    for (rule, regime) in
        [Rule::sgd(), Rule::sgdm(0.9), Rule::adamw()].into_iter().flat_map(|rule| regimes.map(|r| (rule, r)))
    {
        let spec = |schedule| Spec { schedule, ..Spec::new(rule, regime, tensors(5, &[33])) };
        let warm = Schedule::WarmupConstant { warmup: WARMUP };
        let specs = [spec(Schedule::Constant).named("without"), spec(warm).named("with")];
        let gradients = filled(&specs, 0.01);
        for mut run in every_path(&specs) {
            (0..WARMUP).for_each(|_| run.step(&gradients));
            let records = run.records().records;
            let rates: Vec<f64> = records.iter().map(|record| record.learning_rate.into()).collect();
            let [first, without, with] = [rates[0], rates[rates.len() - 2], rates[rates.len() - 1]];
            let what = format_args!("{}, {}, {}", run.path(), rule.name(), regime.name());
            let expected = without / f64::from(WARMUP);
            assert_close(what, with, expected, 1e-4 * expected);
            assert!(without > 3.0 * first, "{what}: agreement raised {first} to {without}");
        }
    }
}
