//! Promise: a run that goes on from a checkpoint has the same bits as one that was never interrupted; a checkpoint has one form on every
//! path; what does not fit is named and changes nothing, unless it is accepted, and then every other part goes on bit for bit; a process that is killed while it saves loses nothing; and bytes that are no
//! checkpoint are refused, whatever they are.
//!
//! Tried once by hand, each with the test that then failed: a file that is written in place, a row of states that is left out, one
//! element of momentum exchanged with another, roles that are not restored, a regime that is not compared, a header's length that is
//! believed, records that are not cleared; of loads with differences: steps of a new group that count, a decay that was set and is built
//! otherwise, an average of zeros, a loss scale beyond its limit, counters that are dropped.

mod bytes;
mod changed;
mod differences;
mod killed;
mod resumed;

use wgpu_optim::{Checkpoint, Regime, Rule};
use wgpu_optim_conformance::noise;
use wgpu_optim_conformance::run::{CpuRun, Run, Spec};

/// Two groups of plain tensors.
fn plain() -> Vec<Spec> {
    let spec = |rule, name| Spec::new(rule, Regime::seesaw(), vec![vec![1.0; 5], vec![2.0; 9]]).named(name);
    vec![spec(Rule::sgdm(0.9), "weights"), spec(Rule::sgd(), "biases")]
}

/// Saved after three steps.
fn saved(specs: &[Spec]) -> (CpuRun, Checkpoint) {
    let mut run = CpuRun::new(specs);
    (0..3).for_each(|step| run.step(&noise(specs, step)));
    let checkpoint = run.checkpoint();
    (run, checkpoint)
}
