//! What tests of several topics share.

use std::fmt::Display;

use wgpu_optim::{Regime, Rule, SecantForm};
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Run, Setup, Spec, bits, devices, every_path_with, packed};

/// Every rule with every second of these regimes, which between them have every kind of memory: kernels take their time to compile.
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

/// A run, and another that it is compared with.
pub type Pair = (Box<dyn Run>, Box<dyn Run>);

/// Two cases side by side, on each path.
pub fn pairs(first: &[Spec], second: &[Spec]) -> impl Iterator<Item = Pair> {
    pairs_with((first, Setup::default()), (second, Setup::default()))
}

/// As `pairs`, with what the builders themselves are told.
pub fn pairs_with(first: (&[Spec], Setup), second: (&[Spec], Setup)) -> impl Iterator<Item = Pair> {
    every_path_with(first.0, first.1).into_iter().zip(every_path_with(second.0, second.1))
}

/// The case on the CPU path and on every adapter, tensors from the third element on, with gaps between them.
pub fn at_odd_places(specs: &[Spec]) -> Vec<Box<dyn Run>> {
    let mut runs: Vec<Box<dyn Run>> = vec![Box::new(CpuRun::new(specs))];
    for gpu in &devices() {
        runs.push(Box::new(GpuRun::new(gpu, specs, packed(specs, 3, 1))));
    }
    runs
}

/// Two runs have the same parameters and the same averages, bit for bit.
#[track_caller]
pub fn assert_same_bits(run: &dyn Run, other: &dyn Run, what: impl Display) {
    assert!(bits(&run.params()) == bits(&other.params()), "{}, {what}: parameters differ", run.path());
    assert!(bits(&run.averages()) == bits(&other.averages()), "{}, {what}: averages differ", run.path());
}

/// A tensor out of a checkpoint's bytes as another program reads it: its element, its shape and its data.
pub fn raw_tensor(checkpoint: &[u8], name: &str) -> (safetensors::Dtype, Vec<usize>, Vec<u8>) {
    let file = safetensors::SafeTensors::deserialize(checkpoint).expect("safetensors");
    let tensor = file.tensor(name).unwrap_or_else(|_| panic!("no {name} in {:?}", file.names()));
    (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec())
}

/// Bytes that are still allocated when something has been built.
pub fn bytes_of<T>(build: impl FnOnce() -> T) -> i64 {
    let mut built = None;
    let info = allocation_counter::measure(|| built = Some(build()));
    drop(built);
    info.bytes_current
}

/// Takes steps with two runs, each along gradients of its own: after every step they have the same parameters and averages, bit for bit.
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
