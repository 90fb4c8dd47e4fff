//! What [`wgpu_optim`] is held against, shared by its tests, its benches, `wgpu-optim check` and `wgpu-optim bench`:
//!
//! - [`oracle`] is the right answer in f64, written from the specification, with the schedules in [`schedule`].
//! - [`spec`] states a case once, [`stored`] keeps its values in whatever elements, and [`run`] runs it on the CPU path and on devices.
//! - [`codes`] says what 8-bit state stands for, and whether it is that of given moments.
//! - [`vectors`] writes down what optimizers consist of, for hosts that know nothing of this crate.
//! - `translate` (feature `translate`) asks what becomes of kernels on drivers that this machine does not have.
//! - [`bench`](mod@bench) is the work that is measured.
//!
//! Beside them are the helpers of device tests: every adapter there is, buffers there and back, numbers by chance, ulps. They panic where something
//! fails, as tests should.
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
#[cfg(feature = "translate")]
pub mod translate;
#[cfg(feature = "gpu")]
pub mod vectors;

use std::fmt::Display;

#[cfg(feature = "gpu")]
pub use device::*;
use spec::{Spec, lengths};
use wgpu_optim::Error;

/// Tensors of these lengths, of numbers by chance.
pub fn tensors(seed: u64, lengths: &[usize]) -> Vec<Vec<f32>> {
    let mut numbers = Numbers(seed);
    lengths.iter().map(|&len| numbers.vec(len)).collect()
}

/// Numbers by chance, as many as a case has parameters, tensor by tensor.
pub fn noise(specs: &[Spec], seed: u64) -> Vec<Vec<f32>> {
    tensors(seed, &lengths(specs).collect::<Vec<_>>())
}

/// One number in the place of every parameter of a case.
pub fn filled(specs: &[Spec], value: f32) -> Vec<Vec<f32>> {
    lengths(specs).map(|len| vec![value; len]).collect()
}

/// Every number times a factor.
pub fn times(factor: f32, tensors: &[Vec<f32>]) -> Vec<Vec<f32>> {
    tensors.iter().map(|tensor| tensor.iter().map(|x| factor * x).collect()).collect()
}

/// The number is as near as it must be to what is expected. NaN is near to nothing.
#[track_caller]
pub fn assert_close(what: impl Display, got: impl Into<f64>, expected: impl Into<f64>, allowed: f64) {
    let (got, expected) = (got.into(), expected.into());
    let off = (got - expected).abs();
    assert!(off <= allowed, "{what}: {got:e} instead of {expected:e}, off by {off:e}, allowed {allowed:e}");
}

/// All numbers are as near as they must be to what is expected, and as many.
#[track_caller]
pub fn assert_all_close<T: Copy + Into<f64>>(what: impl Display, got: &[f32], expected: &[T], allowed: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (index, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        assert_close(format_args!("{what}, element {index}"), got, expected, allowed);
    }
}

/// The largest distance of two numbers of one place, in units of the last place of the largest expected number, or of `least` where
/// that is larger.
pub fn ulps_of_largest<T: Copy + Into<f64>>(got: &[f32], expected: &[T], least: f64) -> f64 {
    assert_eq!(got.len(), expected.len());
    let expected = || expected.iter().map(|&x| x.into());
    let unit = f64::from(f32::EPSILON) * expected().fold(least, |most, x: f64| most.max(x.abs()));
    let distances = got.iter().zip(expected()).map(|(&got, expected)| (f64::from(got) - expected).abs() / unit);
    distances.fold(0.0, |most, distance| if distance.is_nan() { f64::INFINITY } else { most.max(distance) })
}

/// A message is one line that contains every one of these words.
#[track_caller]
pub fn assert_says(message: impl Display, words: &[&str]) {
    let message = message.to_string();
    assert!(!message.is_empty() && !message.contains('\n'), "not one line: {message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
}

/// What must be an error whose message is one line that contains every one of these words.
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

/// Every kind of f32 that is not finite, as bits.
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

/// Reproducible numbers, uniform in [-1, 1): a 64-bit linear congruential generator, high bits.
pub struct Numbers(pub u64);

impl Numbers {
    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "there is always a next one")]
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 40) as f32) / 8_388_608.0 - 1.0
    }

    /// The next numbers.
    pub fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }
}

/// |a - b| in units of b's last place; NaN is infinitely far.
pub fn ulps(a: f32, b: f64) -> f64 {
    let unit = f64::from(((b as f32).abs()).max(f32::MIN_POSITIVE)) * f64::from(f32::EPSILON);
    let distance = (f64::from(a) - b).abs() / unit;
    if distance.is_nan() { f64::INFINITY } else { distance }
}
