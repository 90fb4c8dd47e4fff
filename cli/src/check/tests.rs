//! The comparisons can fail, and the shrinker ends at the smallest case. (`cli/tests/program/check.rs` seeds a fault into what comes back from the
//! devices, and sees every family tell.)

use super::case::{Case, Outcome, Path, less, shorter, shrink, ulp};
use super::scenario::{Scenario, group};
use wgpu_optim::internals::layout::GroupState;
use wgpu_optim::{Regime, Rule};

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
    // Denormal numbers lie as far apart as the least normal ones.
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

/// Twenty groups of three tensors in eight steps, of which a case fails from 37 elements and three steps on.
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
