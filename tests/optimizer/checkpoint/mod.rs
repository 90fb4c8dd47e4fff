//! Tests of checkpoints. A run that is resumed has the bits of a run that was never interrupted, and a checkpoint has the same form on every path. A
//! difference is named and changes nothing, unless it is accepted. Everything else then continues bit for bit. A process that is killed while it
//! saves loses nothing. Bytes that are no checkpoint are refused, whatever they are.
//!
//! Each of these faults was introduced by hand once and made a test fail: a file that is written in place, a row of states that is left out, one
//! element of momentum exchanged with another, roles that are not restored, a regime that is not compared, a header length that is not checked, and
//! records that are not cleared. In restores with differences: steps of a new group that count, a control that is kept although the group is built
//! with another value, an average of zeros, a loss scale beyond its limit, and counters that are dropped.

mod bytes;
mod changed;
mod differences;
mod killed;
mod resumed;

use wgpu_optim::{Checkpoint, Regime, Rule};
use wgpu_optim_conformance::noise;
use wgpu_optim_conformance::run::{CpuRun, Run, Spec};

/// Returns two groups of plain tensors.
fn plain() -> Vec<Spec> {
    let spec = |rule, name| Spec::new(rule, Regime::seesaw(), vec![vec![1.0; 5], vec![2.0; 9]]).named(name);
    vec![spec(Rule::sgdm(0.9), "weights"), spec(Rule::sgd(), "biases")]
}

/// Returns a run after three steps, and its checkpoint.
fn saved(specs: &[Spec]) -> (CpuRun, Checkpoint) {
    let mut run = CpuRun::new(specs);
    (0..3).for_each(|step| run.step(&noise(specs, step)));
    let checkpoint = run.checkpoint();
    (run, checkpoint)
}
