//! Work on the host: steps of the CPU path, and copy and triad with the same threads and vector instructions.

use std::time::Instant;

use pulp::Arch;
use rayon::prelude::*;
use wgpu_optim::{CpuOptimizer, Error, StepMode};

use super::measure::{Bench, Times};
use super::workload::{Spec, values};

/// Elements a thread takes at a time.
const BLOCK_ELEMENTS: usize = 8192;

/// What is no longer is done without handing it to other threads, as the CPU path does.
const SERIAL_ELEMENTS: usize = 1 << 17;

/// Arrays of one length, and what is to be done to them.
#[derive(Debug)]
pub struct Host {
    arch: Arch,
    params: Vec<f32>,
    grads: Vec<f32>,
    /// Copy and triad write here.
    target: Vec<f32>,
}

/// One thing to be timed.
#[derive(Debug)]
pub enum HostJob {
    /// A step over the tensors of these lengths.
    Step {
        /// The optimizer.
        optimizer: Box<CpuOptimizer>,
        /// Lengths, as they lie side by side.
        lengths: Vec<usize>,
    },
    /// A copy in one piece per thread: large pieces go past the caches.
    CopyInPieces,
    /// A copy in blocks, as the optimizer walks.
    CopyInBlocks,
    /// The triad in blocks.
    Triad,
}

impl Host {
    /// Arrays of this length.
    pub fn new(elements: usize) -> Self {
        Host {
            arch: Arch::new(),
            params: values(elements),
            grads: values(elements),
            target: vec![0.0; elements],
        }
    }
}

impl Bench for Host {
    type Job = HostJob;

    fn step(&self, spec: &Spec) -> Result<HostJob, Error> {
        let (params, grads) = (&self.params, &self.grads);
        let builder = spec.builder(|group, name, range| {
            group.tensor(name, &params[range.clone()], &grads[range])
        });
        Ok(HostJob::Step {
            optimizer: Box::new(builder.build_cpu()?),
            lengths: spec.tensors.concat(),
        })
    }

    fn copies(&self) -> Result<Vec<(&'static str, HostJob)>, Error> {
        Ok(vec![
            ("in pieces", HostJob::CopyInPieces),
            ("in blocks", HostJob::CopyInBlocks),
        ])
    }

    fn triad(&self) -> Result<HostJob, Error> {
        Ok(HostJob::Triad)
    }

    fn time(&mut self, job: &mut HostJob, calls: usize) -> Result<Times, Error> {
        let arch = self.arch;
        let (params, grads, target) = (&mut self.params, &mut self.grads, &mut self.target);
        let start = match job {
            HostJob::Step { optimizer, lengths } if optimizer.step_mode() == StepMode::Lagged => {
                let mut params = pieces(params, lengths);
                let mut grads = pieces(grads, lengths);
                let start = Instant::now();
                for _ in 0..calls {
                    optimizer.step_lagged(&mut params, &mut grads)?;
                }
                start
            }
            HostJob::Step { optimizer, lengths } => {
                let mut params = pieces(params, lengths);
                let grads = pieces(grads, lengths);
                let grads: Vec<&[f32]> = grads.iter().map(|tensor| &**tensor).collect();
                let start = Instant::now();
                for _ in 0..calls {
                    optimizer.step(&mut params, &grads)?;
                }
                start
            }
            HostJob::CopyInPieces => {
                let threads = rayon::current_num_threads();
                let piece = grads.len().div_ceil(threads).max(BLOCK_ELEMENTS);
                repeat(calls, || copy(target, grads, piece))
            }
            HostJob::CopyInBlocks => repeat(calls, || copy(target, grads, BLOCK_ELEMENTS)),
            HostJob::Triad => repeat(calls, || triad(arch, target, params, grads)),
        };
        Ok(Times {
            wall: start.elapsed(),
            device: None,
        })
    }
}

/// Cuts an array into tensors.
fn pieces<'a>(mut array: &'a mut [f32], lengths: &[usize]) -> Vec<&'a mut [f32]> {
    let mut pieces = Vec::with_capacity(lengths.len());
    for &length in lengths {
        let (piece, rest) = array.split_at_mut(length);
        pieces.push(piece);
        array = rest;
    }
    pieces
}

/// Runs so often; when it began.
fn repeat(calls: usize, mut run: impl FnMut()) -> Instant {
    let start = Instant::now();
    for _ in 0..calls {
        run();
    }
    start
}

/// a = b, by the C library's copy, which chooses its own instructions.
fn copy(a: &mut [f32], b: &[f32], piece: usize) {
    let (a, b) = std::hint::black_box((a, b));
    if a.len() <= piece.max(SERIAL_ELEMENTS) {
        a.copy_from_slice(b);
    } else {
        a.par_chunks_mut(piece)
            .zip(b.par_chunks(piece))
            .for_each(|(a, b)| a.copy_from_slice(b));
    }
}

/// a = b + s c
fn triad(arch: Arch, a: &mut [f32], b: &[f32], c: &[f32]) {
    let (a, b, c, s) = std::hint::black_box((a, b, c, 0.5));
    let block = |((a, b), c): ((&mut [f32], &[f32]), &[f32])| {
        arch.dispatch(
            #[inline(always)]
            || {
                for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                    *a = b + s * c;
                }
            },
        );
    };
    if a.len() <= SERIAL_ELEMENTS {
        block(((a, b), c));
    } else {
        a.par_chunks_mut(BLOCK_ELEMENTS)
            .zip(b.par_chunks(BLOCK_ELEMENTS))
            .zip(c.par_chunks(BLOCK_ELEMENTS))
            .for_each(block);
    }
}
