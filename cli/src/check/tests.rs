//! Tests that comparisons can fail, that every family detects a fault just above its tolerance, and that the shrinker
//! ends at the smallest case. (`cli/tests/program/check.rs` seeds a large fault, and tests that every family detects it
//! with its smallest case.)

use super::case::{Case, Outcome, Path, Subject, less, outcome_of, shorter, shrink, ulp};
use super::run::{Fault, Quantity};
use super::scenario::{Scenario, group};
use super::{FAMILIES, PRESET, threads_for};
use crate::parallel::in_parallel;
use wgpu_optim::internals::layout::GroupState;
use wgpu_optim::{Gpu, Regime, Rule};

fn near(got: f64, expected: f64, allowed_ulps: f64) -> Outcome {
    let mut outcome = Outcome::default();
    outcome.near(Path::Device, || "a value".to_owned(), (got, expected), ulp(expected), allowed_ulps);
    outcome
}

#[test]
fn a_number_fails_just_beyond_what_is_allowed() {
    let expected = 1.5;
    let off = |ulps: f64| expected + ulps * f64::from(f32::EPSILON);
    assert!(near(off(3.0), expected, 3.0).mismatches.is_empty());
    assert!(near(off(-3.0), expected, 3.0).mismatches.is_empty());
    let outcome = near(off(3.5), expected, 3.0);
    assert_eq!((outcome.values, outcome.device_ulps), (1, 3.5));
    assert_eq!(outcome.mismatches[0].ulps, Some(3.5));
    assert_eq!(near(2.0, 2.0, 0.0).mismatches.len(), 0);
    assert_eq!(near(off(0.5), expected, 0.0).mismatches.len(), 1);
}

#[test]
fn what_is_not_finite_is_far_from_everything() {
    for (got, expected) in [(f64::NAN, 1.0), (1.0, f64::NAN), (f64::INFINITY, 1.0), (f64::NAN, f64::NAN)] {
        let outcome = near(got, expected, 1e30);
        assert_eq!(outcome.mismatches.len(), 1, "{got} and {expected}");
        assert_eq!(outcome.mismatches[0].ulps, None);
    }
}

#[test]
fn the_last_place_is_that_of_f32() {
    for x in [1.0f32, 1.5, 3.0, 1e30, 1e-30, f32::MIN_POSITIVE] {
        let next = f64::from(f32::from_bits(x.to_bits() + 1));
        assert_eq!(ulp(x.into()), next - f64::from(x), "{x:e}");
    }
    // The distance of denormal numbers is that of the smallest normal ones.
    assert_eq!(ulp(0.0), ulp(f32::MIN_POSITIVE.into()));
}

#[test]
fn bits_are_compared_with_sign_and_payload() {
    let differ = |a: u32, b: u32| {
        let mut outcome = Outcome::default();
        outcome.same_bits(Path::Cpu, || "a value".to_owned(), f32::from_bits(a), f32::from_bits(b));
        !outcome.mismatches.is_empty()
    };
    assert!(!differ(0x7fc0_0001, 0x7fc0_0001));
    assert!(differ(0x7fc0_0001, 0x7fc0_0002));
    assert!(differ(0, 0x8000_0000));
    assert!(differ(0x3f80_0000, 0x3f80_0001));
}

#[test]
fn less_and_shorter_come_to_an_end_and_leave_nothing_out() {
    assert!(less(1, 1).is_empty());
    assert_eq!(less(2, 1), [1]);
    assert_eq!(less(9, 1), [1, 5, 7, 8]);
    assert!(shorter(&[1]).is_empty());
    assert_eq!(shorter(&[1, 2]), [[1], [2]]);
    let lists = shorter(&[1, 2, 3]);
    for without in [[2, 3], [1, 3], [1, 2]] {
        assert!(lists.contains(&without.to_vec()));
    }
}

/// Twenty groups of three tensors in eight steps. A case fails from 37 elements and three steps on.
#[test]
fn the_smallest_case_that_fails_is_found() {
    let spec = |i: usize| group(i.to_string(), Rule::sgd(), Regime::seesaw(), &[5, 100 * i, 7]);
    let specs = (0..20).map(spec).collect();
    let scenario = Scenario::new("seeded", 8, specs);
    let fails = |scenario: &Scenario| {
        let mut tensors = scenario.parts.iter().flat_map(|part| &part.spec.tensors);
        let long = tensors.any(|tensor| tensor.len() > 36);
        let mismatch = near(1.0, 2.0, 0.0).mismatches.pop();
        mismatch.filter(|_| long && scenario.steps >= 3)
    };
    let first = fails(&scenario).expect("it fails as it is");
    let (smallest, _) = shrink(scenario, first, Scenario::smaller_scenarios, fails);
    assert_eq!(smallest.name(), "seeded, 3 steps: sgd, seesaw, 37 elements");
}

#[test]
fn of_two_structs_the_fields_that_differ_are_shown() {
    let state = |skipped| GroupState { skipped, ..GroupState::default() };
    let mut outcome = Outcome::default();
    outcome.same(Path::Device, || "a state".to_owned(), state(1), state(1));
    assert!(outcome.mismatches.is_empty());
    outcome.same(Path::Device, || "a state".to_owned(), state(1), state(2));
    let mismatch = &outcome.mismatches[0];
    assert_eq!(mismatch.got.to_string(), "skipped: 1,");
    assert_eq!(mismatch.expected.to_string(), "skipped: 2,");
}

/// Tolerance of each family: a word in the names of its cases, the quantities that they compare, and the allowed
/// distance in units of the last place. It is 0 if bits are compared. The values are repeated here, so that a larger
/// constant in a family is detected.
const TOLERANCES: [(&str, &str, &[Quantity], f64); 21] = [
    ("steps", "", &[Quantity::Parameters, Quantity::Rates], 200.0),
    ("steps", "", &[Quantity::Norms, Quantity::Alignments], 24.0),
    ("passes", "sums of passes", &[Quantity::Squares, Quantity::Products], 24.0),
    ("passes", "pass 3", &[Quantity::Rates, Quantity::Norms], 24.0),
    ("passes", "pass 4", &[Quantity::Parameters], 12.0),
    ("windows", "", OF_STEPS, 24.0),
    ("magnitudes", "", OF_STEPS, 24.0),
    ("nonfinite", "", &[Quantity::Parameters], 0.0),
    ("repeats", "", &[Quantity::Parameters], 0.0),
    ("groups", "", OF_STEPS, 24.0),
    ("controls", "", OF_STEPS, 24.0),
    ("matrices", "", OF_STEPS, 24.0),
    ("averages", "", OF_STEPS, 24.0),
    ("trust", "", OF_STEPS, 24.0),
    ("shards", "", OF_STEPS, 24.0),
    ("halves", "halves", OF_STEPS, 24.0),
    ("halves", "micro-batches", OF_STEPS, 24.0),
    ("halves", "codes", &[Quantity::Parameters], 0.0),
    ("state", "rules in 8 bits", &[Quantity::Parameters, Quantity::Rates], 200.0),
    ("state", "8-bit state", OF_STEPS, 24.0),
    ("state", "codes", &[Quantity::Parameters], 0.0),
];

const OF_STEPS: &[Quantity] = &[Quantity::Parameters, Quantity::Rates, Quantity::Norms, Quantity::Alignments];

/// One and a half times the tolerance fails, and half of it passes in a sample of the cases.
#[test]
fn every_family_tells_a_fault_just_above_its_tolerance() {
    let adapter = pollster::block_on(Gpu::adapters(None)).remove(0);
    let gpu = pollster::block_on(Gpu::open(&adapter)).expect("an adapter opens");
    let rows: Vec<_> = TOLERANCES.iter().flat_map(|row| row.2.iter().map(move |&kind| (row, kind))).collect();
    let wrong = in_parallel(rows.len(), threads_for(&adapter), |index| {
        let (&(name, word, _, allowed), kind) = rows[index];
        let (_, cases) = FAMILIES.into_iter().find(|(family, _)| *family == name).expect("a family");
        let of_fault = |ulps, grows| {
            let (adapter, gpu, geometry) = (adapter.clone(), gpu.clone(), PRESET.to_owned());
            Subject { adapter, gpu, geometry, fault: Some(Fault::new(kind, ulps, grows)) }
        };
        let is_told = |subject: &Subject, every: usize| {
            let cases = cases(subject).into_iter().filter(|case| case.name().contains(word));
            let outcomes = cases.step_by(every).map(|case| outcome_of(case.as_ref(), subject));
            outcomes.flat_map(|outcome| outcome.mismatches).next()
        };
        let above = if allowed > 0.0 { of_fault(1.5 * allowed, false) } else { of_fault(1.0, true) };
        let mut wrong = Vec::new();
        if is_told(&above, 1).is_none() {
            wrong.push(format!("{name} {word}: {kind:?} off by more than {allowed} ulps pass"));
        }
        if let Some(mismatch) = is_told(&of_fault(0.5 * allowed, false), 24) {
            wrong.push(format!("{name} {word}: {kind:?} off by half of {allowed} ulps fail: {mismatch:?}"));
        }
        Ok(wrong)
    });
    let wrong = wrong.expect("no signal").concat();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let mut families = FAMILIES.map(|(family, _)| family).into_iter();
    assert!(families.all(|family| TOLERANCES.iter().any(|(of_row, ..)| *of_row == family)));
}
