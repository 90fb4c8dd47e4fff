//! Tests of parameters and gradients in 16 bits, on every adapter and on the CPU path. Masters take the steps of f32, stochastic rounding takes them
//! on average, and the stored codes are the same everywhere. Gradients that are sums of micro-batches give the step of their mean, and are cleared on
//! request. (`checkpoint`, `rebind` and `shards` test resumed runs, moved buffers and ranks together with those of f32.)
//!
//! Each of these faults was introduced by hand once and made a test fail: random bits that are the same in every step, and on every rank; ties away
//! from zero; the half word behind an odd tensor written; the last gradient kept undivided; gradients of a skipped step not cleared; a checkpoint
//! whose 16-bit type is not compared.

mod gradients;
mod learning;
mod mixed;
mod steps;
mod stored;

use half::f16;
use wgpu_optim::{Averaging, Element, Regime, Rounding, Rule};
use wgpu_optim_conformance::run::{CpuRun, GpuRun, Run, Setup, Spec, devices, packed};
use wgpu_optim_conformance::stored::rounded;
use wgpu_optim_conformance::{filled, noise, tensors};

use crate::helpers::{Pair, raw_tensor};

const HALVES: [Element; 2] = [Element::F16, Element::Bf16];
const ROUNDINGS: [Rounding; 3] = [Rounding::Masters, Rounding::Nearest, Rounding::Stochastic { seed: 7 }];

/// Lengths around the boundaries of words, multiples of four, and blocks.
const LENGTHS: [usize; 6] = [1, 2, 3, 4, 7, 4099];

/// Returns gradients of seven bits, which are exact in every element type.
fn gradients(specs: &[Spec], step: usize) -> Vec<Vec<f32>> {
    let mut all = noise(specs, 1000 + step as u64);
    all.iter_mut().flatten().for_each(|g| *g = (*g * 63.0).round() / 64.0);
    all
}

/// Returns the same groups in f32, with the same initial parameters.
fn in_floats(specs: &[Spec]) -> Vec<Spec> {
    let specs = specs.iter().cloned();
    specs.map(|spec| Spec { params: Element::F32, grads: Element::F32, ..spec }).collect()
}

/// Returns these groups in 16 bits with masters.
fn with_masters(specs: Vec<Spec>, element: Element) -> Vec<Spec> {
    specs.into_iter().map(|spec| spec.stored(element, element, Rounding::Masters)).collect()
}

/// Returns runs on the CPU path and on every adapter, with tensors placed in the same way for every element type.
fn paths_like(specs: &[Spec], like: &[Spec], setup: Setup) -> Vec<Box<dyn Run>> {
    let mut runs: Vec<Box<dyn Run>> = vec![Box::new(CpuRun::with(specs, setup))];
    for gpu in &devices() {
        runs.push(Box::new(GpuRun::with(gpu, specs, packed(like, 2, 1), |builder| setup.tell(builder))));
    }
    runs
}

fn paths(specs: &[Spec]) -> Vec<Box<dyn Run>> {
    paths_like(specs, specs, Setup::default())
}

/// Returns runs on every path, each paired with one in f32 that starts with the same parameters.
fn beside_floats(specs: &[Spec]) -> impl Iterator<Item = Pair> {
    paths(specs).into_iter().zip(paths_like(&in_floats(specs), specs, Setup::default()))
}

/// Returns the masters of a tensor in a checkpoint.
pub fn masters(checkpoint: &[u8], element: Element, tensor: &str) -> Vec<f32> {
    let codes: Vec<u16> = bytemuck::pod_collect_to_vec(&raw_tensor(checkpoint, &format!("parameters/{tensor}")).2);
    let kept: Vec<i16> = bytemuck::pod_collect_to_vec(&raw_tensor(checkpoint, &format!("remainders/{tensor}")).2);
    let pairs = codes.into_iter().zip(kept);
    pairs
        .map(|(code, kept)| {
            let (magnitude, kept) = (code & 0x7fff, i32::from(kept));
            let value = match element {
                Element::F16 if magnitude < 0x400 => {
                    let units = (i32::from(magnitude) << 14) + kept;
                    (f64::from(units) * 2f64.powi(-38)) as f32
                }
                Element::F16 => {
                    let bits = f16::from_bits(magnitude).to_f32().to_bits() as i32;
                    f32::from_bits((bits + kept) as u32)
                }
                _ => f32::from_bits(((i32::from(magnitude) << 16) + kept) as u32),
            };
            if code & 0x8000 == 0 { value } else { -value }
        })
        .collect()
}

/// Returns the tolerance of a master against the parameter of the same run in f32.
fn drift(value: f32) -> f32 {
    16.0 * value.abs() * f32::EPSILON + 200.0 * 2f32.powi(-38)
}

/// Returns whether a stored parameter is the nearest to a number, up to the tolerance.
fn is_nearest(element: Element, stored: f32, value: f32) -> bool {
    let near = rounded(element, &[value - drift(value), value + drift(value)]);
    (near[0]..=near[1]).contains(&stored)
}

const SMALL: f32 = 1.0 / 16384.0;
const SMALL_STEPS: usize = 1000;

/// Returns groups for a thousand steps that are too small for 16 bits. Each step is exact in f32.
fn small_steps(element: Element, rounding: Rounding, lengths: &[usize]) -> Vec<Spec> {
    let tensors = lengths.iter().map(|&len| (0..len).map(|i| 1.25 + (i % 64) as f32 / 128.0).collect()).collect();
    vec![Spec::new(Rule::sgd(), Regime::fixed(SMALL), tensors).stored(element, element, rounding)]
}

/// Takes steps along constant gradients and returns the parameters.
fn after(mut run: Box<dyn Run>, specs: &[Spec], steps: usize) -> Vec<Vec<f32>> {
    for _ in 0..steps {
        run.step(&filled(specs, 1.0));
    }
    run.params()
}

/// Returns rules and regimes with every kind of state, some with masters and some with random bits.
pub fn kept(element: Element) -> Vec<Spec> {
    let averaging = Averaging::Running { start: 2 };
    let spec = |seed, rule, regime, name: &str, rounding| {
        Spec::new(rule, regime, tensors(seed, &[1, 0, 7, 4099])).named(name).stored(element, element, rounding)
    };
    vec![
        spec(3, Rule::sgdm(0.9), Regime::seesaw(), "masters", Rounding::Masters),
        spec(4, Rule::adamw(), Regime::seesaw(), "stochastic", Rounding::Stochastic { seed: 3 }),
        spec(5, Rule::sgd(), Regime::seesaw(), "nearest", Rounding::Nearest),
        Spec { averaging, ..spec(6, Rule::sgd(), Regime::dog(), "averaged", Rounding::Masters) },
    ]
}
