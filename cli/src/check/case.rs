//! Cases, the comparison of their values, and the shrinking of a failing case to the smallest that still fails.

use std::fmt::{self, Debug};

use serde::Serialize;
use wgpu_optim::{Gpu, wgpu};

use super::run::Fault;
use crate::CliError;

/// Adapter, device and geometry that a case runs on.
pub struct Subject {
    pub adapter: wgpu::Adapter,
    /// Device on the adapter, in the geometry below.
    pub gpu: Gpu,
    /// Source of the geometry: the preset, the preset with subgroups, or the cache.
    pub geometry: String,
    /// Fault that a test has seeded.
    pub fault: Option<Fault>,
}

/// Property that must hold on a device.
pub trait Case {
    /// Returns the name of the case in the list of failures.
    fn name(&self) -> String;

    /// Runs the case. An error counts as a failure of the case.
    fn run(&self, subject: &Subject) -> Result<Outcome, CliError>;

    /// Returns cases that are each smaller in one way, the smallest first.
    fn smaller(&self) -> Cases;
}

pub type Cases = Vec<Box<dyn Case>>;

/// Source of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Path {
    #[serde(rename = "device")]
    Device,
    #[serde(rename = "CPU path")]
    Cpu,
}

/// Result of a case: the number of compared values, the distance of the worst one, and the first ones that were too far
/// off. Numbers that are not finite are null in JSON.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    pub values: usize,
    /// Distance of the device's worst value, in units of the last place of the expected one.
    pub device_ulps: f64,
    /// Distance of the CPU path's worst value.
    pub cpu_ulps: f64,
    /// Largest distance as a fraction of its tolerance. The case has failed from 1 on. It is infinite if the distance
    /// has no size.
    pub share_of_allowed: f64,
    /// Description of the value with this distance.
    pub nearest: String,
    /// Values that were too far off, limited to the first few.
    #[serde(skip)]
    pub mismatches: Vec<Mismatch>,
    /// Note on device behaviour that may differ between devices.
    #[serde(skip)]
    pub note: Option<String>,
}

/// Value that differs from the expected one.
#[derive(Debug, Clone, Serialize)]
pub struct Mismatch {
    pub what: String,
    pub path: Path,
    pub got: Value,
    pub expected: Value,
    /// Distance in units of the last place, or `None` if a value is not a finite number.
    pub ulps: Option<f64>,
    pub allowed_ulps: f64,
}

/// Value in a report.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// Number, with the bits of the nearest f32.
    Number {
        value: f64,
        bits: String,
    },
    Text(String),
}

impl Value {
    fn new(value: f64, nearest: f32) -> Self {
        Value::Number { value, bits: format!("{:08x}", nearest.to_bits()) }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number { value, bits } if value.is_finite() => write!(f, "{value:e} ({bits})"),
            Value::Number { bits, .. } => write!(f, "not finite ({bits})"),
            Value::Text(text) => write!(f, "{text}"),
        }
    }
}

/// Number of mismatches that are kept for a case.
const KEPT: usize = 8;

/// Returns the unit of the last place of an f32 of this size.
pub fn ulp(size: f64) -> f64 {
    let size = size.abs().max(f64::from(f32::MIN_POSITIVE));
    // Exponent of the largest power of two that is not above `size`.
    let exponent = (size.to_bits() >> 52) as i32 - 1023;
    f64::from(exponent).exp2() * f64::from(f32::EPSILON)
}

impl Outcome {
    /// Compares a number with the expected one. The distance is in multiples of `unit`, normally [`ulp`] of some size.
    /// NaN is infinitely far from every number.
    pub fn near(
        &mut self,
        path: Path,
        what: impl Fn() -> String,
        (got, expected): (impl Into<f64>, impl Into<f64>),
        unit: f64,
        allowed_ulps: f64,
    ) {
        let (got, expected) = (got.into(), expected.into());
        let distance = if got == expected { 0.0 } else { (got - expected).abs() / unit };
        // `distance` is not NaN after this line, so that comparisons work.
        let distance = if distance.is_nan() { f64::INFINITY } else { distance };
        self.values += 1;
        self.widen(path, distance);
        // A distance of 0 passes even if the tolerance is 0, because the maximum of NaN and 0 is 0.
        let share = (distance / allowed_ulps).max(0.0);
        if share > self.share_of_allowed {
            self.share_of_allowed = share;
            self.nearest = what();
        }
        if distance > allowed_ulps {
            let values = [got, expected].map(|value| Value::new(value, value as f32));
            self.mismatch(path, what(), values, distance, allowed_ulps);
        }
    }

    /// Compares two f32 bit for bit.
    pub fn same_bits(&mut self, path: Path, what: impl FnOnce() -> String, got: f32, expected: f32) {
        self.values += 1;
        if got.to_bits() == expected.to_bits() {
            return;
        }
        self.share_of_allowed = f64::INFINITY;
        let distance = (f64::from(got) - f64::from(expected)).abs() / ulp(expected.into());
        if distance.is_finite() {
            self.widen(path, distance);
        }
        let values = [got, expected].map(|value| Value::new(value.into(), value));
        self.mismatch(path, what(), values, distance, 0.0);
    }

    /// Compares values that are not numbers.
    pub fn same<T: PartialEq + Debug>(&mut self, path: Path, what: impl FnOnce() -> String, got: T, expected: T) {
        self.values += 1;
        if got != expected {
            self.share_of_allowed = f64::INFINITY;
            let lines = differing_lines(&format!("{got:#?}"), &format!("{expected:#?}"));
            self.mismatch(path, what(), lines.map(Value::Text), f64::INFINITY, 0.0);
        }
    }

    pub fn same_tensors(&mut self, path: Path, what: &str, got: &[Vec<f32>], expected: &[Vec<f32>]) {
        for (tensor, (got, expected)) in got.iter().zip(expected).enumerate() {
            for (element, (&got, &expected)) in got.iter().zip(expected).enumerate() {
                self.same_bits(path, || format!("{what}, tensor {tensor}, element {element}"), got, expected);
            }
        }
    }

    fn widen(&mut self, path: Path, distance: f64) {
        let worst = match path {
            Path::Device => &mut self.device_ulps,
            Path::Cpu => &mut self.cpu_ulps,
        };
        *worst = worst.max(distance);
    }

    fn mismatch(&mut self, path: Path, what: String, [got, expected]: [Value; 2], distance: f64, allowed_ulps: f64) {
        if self.mismatches.len() < KEPT {
            let ulps = distance.is_finite().then_some(distance);
            self.mismatches.push(Mismatch { what, path, got, expected, ulps, allowed_ulps });
        }
    }

    /// Adds the result of another part of the case.
    pub fn merge(&mut self, other: Outcome) {
        self.values += other.values;
        self.device_ulps = self.device_ulps.max(other.device_ulps);
        self.cpu_ulps = self.cpu_ulps.max(other.cpu_ulps);
        if other.share_of_allowed > self.share_of_allowed {
            self.share_of_allowed = other.share_of_allowed;
            self.nearest = other.nearest;
        }
        let room = KEPT - self.mismatches.len();
        self.mismatches.extend(other.mismatches.into_iter().take(room));
        self.note = other.note.or(self.note.take());
    }
}

/// Returns the lines that differ between two texts, joined into one line each. They are the fields in which two structs
/// differ.
fn differing_lines(a: &str, b: &str) -> [String; 2] {
    let (a, b): (Vec<&str>, Vec<&str>) = (a.lines().collect(), b.lines().collect());
    if a.len() != b.len() {
        return [a, b].map(|lines| lines.concat());
    }
    let pairs = a.iter().zip(&b).filter(|(a, b)| a != b);
    let (a, b): (Vec<&str>, Vec<&str>) = pairs.map(|(a, b)| (a.trim(), b.trim())).unzip();
    [a, b].map(|lines| lines.join(" "))
}

/// Runs a case. An error becomes a mismatch.
pub fn outcome_of(case: &dyn Case, subject: &Subject) -> Outcome {
    case.run(subject).unwrap_or_else(|error| {
        let mut outcome = Outcome { share_of_allowed: f64::INFINITY, ..Outcome::default() };
        let texts = [error.to_string(), "no error".to_owned()];
        outcome.mismatch(Path::Device, "the run itself".to_owned(), texts.map(Value::Text), f64::INFINITY, 0.0);
        outcome
    })
}

/// Number of smaller cases that are tried for a failing one. It does not depend on time, so that a busy machine finds
/// the same case.
const TRIES: usize = 80;

/// Returns the smallest failing form of a case that the shrinker finds, and its mismatch. While one of the smaller
/// cases fails, it replaces the case.
pub fn shrink<C>(
    case: C,
    first: Mismatch,
    smaller: impl Fn(&C) -> Vec<C>,
    fails: impl Fn(&C) -> Option<Mismatch>,
) -> (C, Mismatch) {
    let (mut case, mut mismatch) = (case, first);
    let (mut tries, mut last) = (0, 0);
    loop {
        // The search begins where the last failure was found, so that one way of shrinking is followed to its end
        // before the next.
        let mut in_turn: Vec<(usize, C)> = smaller(&case).into_iter().enumerate().collect();
        let start = last.min(in_turn.len().saturating_sub(1));
        in_turn.rotate_left(start);
        in_turn.truncate(TRIES - tries);
        let found = in_turn.into_iter().find_map(|(index, candidate)| {
            tries += 1;
            Some((index, fails(&candidate)?, candidate))
        });
        match found {
            Some(found) => (last, mismatch, case) = found,
            None => return (case, mismatch),
        }
    }
}

/// Returns numbers from `least` to below `n`: `least` itself, then halfway from there to `n`, and so on up to `n - 1`.
/// Repeatedly taking the first one that still fails is a bisection.
pub fn less(n: usize, least: usize) -> Vec<usize> {
    let mut numbers = Vec::new();
    let mut gap = n.saturating_sub(least);
    while gap > 0 {
        numbers.push(n - gap);
        gap /= 2;
    }
    numbers
}

/// Returns shorter lists: first the halves, then the list without one entry.
pub fn shorter<T: Clone>(list: &[T]) -> Vec<Vec<T>> {
    if list.len() < 2 {
        return Vec::new();
    }
    let (front, back) = list.split_at(list.len() / 2);
    let mut lists = vec![front.to_vec(), back.to_vec()];
    if list.len() > 2 {
        lists.extend((0..list.len()).map(|without| [&list[..without], &list[without + 1..]].concat()));
    }
    lists
}
