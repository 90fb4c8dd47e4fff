//! Helpers of the tests of several topics.

use std::fmt::Display;

use wgpu_optim::{Regime, Rule, SecantForm};
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Run, Setup, Spec, bits, devices, every_path_with, packed};

/// Returns every rule with every second one of these regimes, which have every kind of state between them. All pairs would take too long to compile.
pub fn rules_and_regimes() -> Vec<(Rule, Regime)> {
    let regimes = [
        Regime::seesaw(),
        Regime::norm_ratio(),
        Regime::fixed(0.01),
        Regime::adagrad_norm(),
        Regime::barzilai_borwein(SecantForm::Geometric),
        Regime::dowg(),
        Regime::polyak(),
        Regime::prodigy(),
        Regime::mechanic(),
    ];
    let rules = [Rule::all(), Rule::of_matrices()].concat().into_iter().enumerate();
    let pairs =
        rules.flat_map(|(i, rule)| regimes.into_iter().skip(i % 2).step_by(2).map(move |regime| (rule, regime)));
    pairs.filter(|(rule, regime)| regime.fits(rule)).collect()
}

/// A run and the run that it is compared with.
pub type Pair = (Box<dyn Run>, Box<dyn Run>);

/// Returns the runs of two cases on each path, in pairs.
pub fn pairs(first: &[Spec], second: &[Spec]) -> impl Iterator<Item = Pair> {
    pairs_with((first, Setup::default()), (second, Setup::default()))
}

/// Returns pairs of runs as [`pairs`] does, with settings of the builders.
pub fn pairs_with(first: (&[Spec], Setup), second: (&[Spec], Setup)) -> impl Iterator<Item = Pair> {
    every_path_with(first.0, first.1).into_iter().zip(every_path_with(second.0, second.1))
}

/// Returns the case on the CPU path and on every adapter. The tensors start at the third element of a buffer and have gaps between them.
pub fn at_odd_places(specs: &[Spec]) -> Vec<Box<dyn Run>> {
    let mut runs: Vec<Box<dyn Run>> = vec![Box::new(CpuRun::new(specs))];
    for gpu in &devices() {
        runs.push(Box::new(GpuRun::new(gpu, specs, packed(specs, 3, 1))));
    }
    runs
}

/// Asserts that two runs have the same parameters and averages, bit for bit.
#[track_caller]
pub fn assert_same_bits(run: &dyn Run, other: &dyn Run, what: impl Display) {
    assert!(bits(&run.params()) == bits(&other.params()), "{}, {what}: parameters differ", run.path());
    assert!(bits(&run.averages()) == bits(&other.averages()), "{}, {what}: averages differ", run.path());
}

/// Returns the data type, the shape and the data of a tensor in a checkpoint's bytes, by means of the `safetensors` crate alone.
pub fn raw_tensor(checkpoint: &[u8], name: &str) -> (safetensors::Dtype, Vec<usize>, Vec<u8>) {
    let file = safetensors::SafeTensors::deserialize(checkpoint).expect("safetensors");
    let tensor = file.tensor(name).unwrap_or_else(|_| panic!("no {name} in {:?}", file.names()));
    (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec())
}

/// Returns the number of bytes that are allocated by building something and are still held afterwards.
pub fn bytes_of<T>(build: impl FnOnce() -> T) -> i64 {
    let mut built = None;
    let info = allocation_counter::measure(|| built = Some(build()));
    drop(built);
    info.bytes_current
}

/// Takes steps with two runs, each along its own gradients, and asserts that they have the same parameters and averages after every step, bit for
/// bit.
#[track_caller]
pub fn assert_alike(
    what: impl Display,
    pairs: impl Iterator<Item = Pair>,
    steps: u64,
    mut gradients: impl FnMut(u64, &dyn Run) -> [Vec<Vec<f32>>; 2],
) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = pairs.collect();
    for (first, second) in &mut pairs {
        for step in 0..steps {
            let [of_first, of_second] = gradients(step, &**first);
            first.step(&of_first);
            second.step(&of_second);
            assert_same_bits(&**second, &**first, format_args!("{what}, step {step}"));
        }
    }
    pairs
}
