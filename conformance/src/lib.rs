//! Reference and helpers for the tests and benchmarks of [`wgpu_optim`], for `wgpu-optim check` and for `wgpu-optim
//! bench`:
//!
//! - [`oracle`] is the f64 reference, written from the specification, with the schedules in [`schedule`].
//! - [`spec`] specifies a case once, [`stored`] keeps its values in any element type, and [`run`] runs it on the CPU
//!   path and on devices.
//! - [`codes`] decodes 8-bit state, and compares it with given moments.
//! - [`vectors`] writes the kernels and buffers of optimizers to files, for hosts that do not use this crate.
//! - `translate` (feature `translate`) translates kernels for drivers that this machine does not have.
//! - [`bench`](mod@bench) is the measured work.
//!
//! The crate also has helpers for device tests: all adapters, uploads and downloads, random numbers, ulps. Like tests,
//! they panic on failure.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(feature = "gpu")]
pub mod bench;
pub mod codes;
#[cfg(feature = "gpu")]
mod device;
pub mod oracle;
pub mod run;
pub mod schedule;
pub mod spec;
pub mod stored;
#[cfg(feature = "gpu")]
pub mod translate;
#[cfg(feature = "gpu")]
pub mod vectors;

use std::fmt::Display;

#[cfg(feature = "gpu")]
pub use device::*;
use spec::{Spec, lengths};
use wgpu_optim::Error;

/// Returns tensors of these lengths with random numbers.
pub fn tensors(seed: u64, lengths: &[usize]) -> Vec<Vec<f32>> {
    let mut numbers = Numbers(seed);
    lengths.iter().map(|&len| numbers.vec(len)).collect()
}

/// Returns random numbers for every parameter of a case, tensor by tensor.
pub fn noise(specs: &[Spec], seed: u64) -> Vec<Vec<f32>> {
    tensors(seed, &lengths(specs).collect::<Vec<_>>())
}

/// Returns one value for every parameter of a case, tensor by tensor.
pub fn filled(specs: &[Spec], value: f32) -> Vec<Vec<f32>> {
    lengths(specs).map(|len| vec![value; len]).collect()
}

/// Multiplies every number by a factor.
pub fn times(factor: f32, tensors: &[Vec<f32>]) -> Vec<Vec<f32>> {
    tensors.iter().map(|tensor| tensor.iter().map(|x| factor * x).collect()).collect()
}

/// Asserts that a number is within a distance of the expected one. NaN never is.
#[track_caller]
pub fn assert_close(what: impl Display, got: impl Into<f64>, expected: impl Into<f64>, allowed: f64) {
    let (got, expected) = (got.into(), expected.into());
    let off = (got - expected).abs();
    assert!(off <= allowed, "{what}: {got:e} instead of {expected:e}, off by {off:e}, allowed {allowed:e}");
}

/// Asserts that all numbers are within a distance of the expected ones, and that there are as many.
#[track_caller]
pub fn assert_all_close<T: Copy + Into<f64>>(what: impl Display, got: &[f32], expected: &[T], allowed: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (index, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        assert_close(format_args!("{what}, element {index}"), got, expected, allowed);
    }
}

/// Returns the largest distance of two corresponding numbers, in units of the last place of the largest expected
/// number, or of `least` if that is larger.
pub fn ulps_of_largest<T: Copy + Into<f64>>(got: &[f32], expected: &[T], least: f64) -> f64 {
    assert_eq!(got.len(), expected.len());
    let expected = || expected.iter().map(|&x| x.into());
    let unit = f64::from(f32::EPSILON) * expected().fold(least, |most, x: f64| most.max(x.abs()));
    let distances = got.iter().zip(expected()).map(|(&got, expected)| (f64::from(got) - expected).abs() / unit);
    distances.fold(0.0, |most, distance| if distance.is_nan() { f64::INFINITY } else { most.max(distance) })
}

/// Asserts that a message is one line that contains every one of these words.
#[track_caller]
pub fn assert_says(message: impl Display, words: &[&str]) {
    let message = message.to_string();
    assert!(!message.is_empty() && !message.contains('\n'), "not one line: {message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
}

/// Asserts that a result is an error whose message is one line that contains every one of these words. Returns the
/// error.
#[track_caller]
pub fn assert_refused<T>(result: Result<T, Error>, words: &[&str]) -> Error {
    match result {
        Ok(_) => panic!("this was not refused: {words:?}"),
        Err(error) => {
            assert_says(&error, words);
            error
        }
    }
}

/// Bits of every kind of f32 that is not finite.
pub const NOT_FINITE: [u32; 10] = [
    0x7f80_0000, // +inf
    0xff80_0000, // -inf
    0x7fc0_0000, // the quiet NaN
    0xffc0_0000, // negative
    0x7f80_0001, // signalling, the least payload
    0xff80_0001, // signalling, negative
    0x7fff_ffff, // the largest payload
    0xffff_ffff, // negative
    0x7fa5_a5a5, // signalling, a payload
    0xffd5_5555, // negative, a payload
];

/// Reproducible uniform numbers in [-1, 1), from the high bits of a 64-bit linear congruential generator.
pub struct Numbers(pub u64);

impl Numbers {
    /// Returns the next number.
    #[expect(clippy::should_implement_trait, reason = "there is always a next one")]
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 40) as f32) / 8_388_608.0 - 1.0
    }

    /// Returns the next numbers.
    pub fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }
}

/// Returns |a - b| in units of b's last place. NaN is infinitely far from every number.
pub fn ulps(a: f32, b: f64) -> f64 {
    let unit = f64::from(((b as f32).abs()).max(f32::MIN_POSITIVE)) * f64::from(f32::EPSILON);
    let distance = (f64::from(a) - b).abs() / unit;
    if distance.is_nan() { f64::INFINITY } else { distance }
}
