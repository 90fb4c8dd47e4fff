//! What a case is, how its values are compared, and how a case that fails is made smaller until it no longer does.

use std::fmt::{self, Debug};

use serde::Serialize;
use wgpu_optim::{Gpu, wgpu};

use super::run::Fault;
use crate::CliError;

/// What a case runs on.
pub struct Subject {
    pub adapter: wgpu::Adapter,
    /// A device on the adapter, in the geometry below.
    pub gpu: Gpu,
    /// Where the geometry comes from: the preset, the preset with subgroups, the cache.
    pub geometry: String,
    /// Seeded by tests.
    pub fault: Option<Fault>,
}

/// Something that must hold on a device.
pub trait Case {
    /// What is run, in the words of the table's list of failures.
    fn name(&self) -> String;

    /// Runs it. An error counts as a failure of the case.
    fn run(&self, subject: &Subject) -> Result<Outcome, CliError>;

    /// Cases that are smaller in one way each, the smallest first.
    fn smaller(&self) -> Cases;
}

pub type Cases = Vec<Box<dyn Case>>;

/// Who gave a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Path {
    #[serde(rename = "device")]
    Device,
    #[serde(rename = "CPU path")]
    Cpu,
}

/// What came of a case: how many values were compared, how far off the worst was, and the first that was too far off. Numbers that are
/// not finite are null in JSON.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    pub values: usize,
    /// Distance of the device's worst value, in units of the last place of what it should be.
    pub device_ulps: f64,
    /// Distance of the CPU path's worst value.
    pub cpu_ulps: f64,
    /// The largest distance as a share of what is allowed for it: how near the case is to failing, 1 and above if it has; infinite where
    /// the distance has no size.
    pub share_of_allowed: f64,
    /// Which value that is.
    pub nearest: String,
    /// What was too far off; of many, the first few.
    #[serde(skip)]
    pub mismatches: Vec<Mismatch>,
    /// What the device does where it may choose.
    #[serde(skip)]
    pub note: Option<String>,
}

/// A value that is not what it should be.
#[derive(Debug, Clone, Serialize)]
pub struct Mismatch {
    pub what: String,
    pub path: Path,
    pub got: Value,
    pub expected: Value,
    /// The distance in units of the last place; `None` for what is no number, or not finite.
    pub ulps: Option<f64>,
    pub allowed_ulps: f64,
}

/// A value as the report shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// A number, and the bits of the f32 that it is or that is next to it.
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

/// Mismatches that are kept of a case.
const KEPT: usize = 8;

/// The unit of the last place of an f32 of this size.
pub fn ulp(size: f64) -> f64 {
    let size = size.abs().max(f64::from(f32::MIN_POSITIVE));
    // The power of two at or below it.
    let exponent = (size.to_bits() >> 52) as i32 - 1023;
    f64::from(exponent).exp2() * f64::from(f32::EPSILON)
}

impl Outcome {
    /// Compares a number with what it should be; `unit` is what the distance is measured in, normally [`ulp`] of some size.
    /// NaN is infinitely far from everything.
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
        // From here on comparisons have an answer.
        let distance = if distance.is_nan() { f64::INFINITY } else { distance };
        self.values += 1;
        self.widen(path, distance);
        // No distance at all is fine where none is allowed: the greater of NaN and 0 is 0.
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

    /// Compares what is no number.
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

    /// Adds what another part of the case found.
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

/// The lines of two texts that are not the same in both, in a line each: the fields that two structs differ in.
fn differing_lines(a: &str, b: &str) -> [String; 2] {
    let (a, b): (Vec<&str>, Vec<&str>) = (a.lines().collect(), b.lines().collect());
    if a.len() != b.len() {
        return [a, b].map(|lines| lines.concat());
    }
    let pairs = a.iter().zip(&b).filter(|(a, b)| a != b);
    let (a, b): (Vec<&str>, Vec<&str>) = pairs.map(|(a, b)| (a.trim(), b.trim())).unzip();
    [a, b].map(|lines| lines.join(" "))
}

/// Runs a case; an error is a mismatch of its own.
pub fn outcome_of(case: &dyn Case, subject: &Subject) -> Outcome {
    case.run(subject).unwrap_or_else(|error| {
        let mut outcome = Outcome { share_of_allowed: f64::INFINITY, ..Outcome::default() };
        let texts = [error.to_string(), "no error".to_owned()];
        outcome.mismatch(Path::Device, "the run itself".to_owned(), texts.map(Value::Text), f64::INFINITY, 0.0);
        outcome
    })
}

/// How many smaller cases are tried for one that fails. By number and not by time, so that a busy machine finds the same.
const TRIES: usize = 80;

/// The smallest form of a failing case that the shrinker finds to fail, and how: as long as one of the smaller cases fails, it is
/// taken in place of the case.
pub fn shrink<C>(
    case: C,
    first: Mismatch,
    smaller: impl Fn(&C) -> Vec<C>,
    fails: impl Fn(&C) -> Option<Mismatch>,
) -> (C, Mismatch) {
    let (mut case, mut mismatch) = (case, first);
    let (mut tries, mut last) = (0, 0);
    loop {
        // From where the last one was found, so that one way of being smaller is followed to its end before the next.
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

/// Numbers from `least` on that are less than `n`: `least` itself, then halfway from there to `n`, and so on up to `n - 1`. Taking the
/// first that still fails, again and again, is a bisection.
pub fn less(n: usize, least: usize) -> Vec<usize> {
    let mut numbers = Vec::new();
    let mut gap = n.saturating_sub(least);
    while gap > 0 {
        numbers.push(n - gap);
        gap /= 2;
    }
    numbers
}

/// Shorter lists: halves first, then without one entry.
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
