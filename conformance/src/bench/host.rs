//! Work on the host: steps of the CPU path, and copy and triad with the same threads and vector instructions.

use std::ops::Range;
use std::time::Instant;

use pulp::Arch;
use rayon::prelude::*;
use wgpu_optim::internals::{Slice, SliceMut};
use wgpu_optim::{CpuOptimizer, Element, Error};

use super::measure::{Bench, Times};
use super::workload::{Spec, room, values};
use crate::spec::shape_for;
use crate::stored::Stored;

/// Number of elements that a thread processes at a time.
const BLOCK_ELEMENTS: usize = 8192;

/// Length up to which work is not distributed to other threads, as on the CPU path.
const SERIAL_ELEMENTS: usize = 1 << 17;

/// Arrays of one length, for steps, copy and triad.
#[derive(Debug)]
pub struct Host {
    arch: Arch,
    params: Vec<f32>,
    grads: Vec<f32>,
    /// Destination of copy and triad.
    target: Vec<f32>,
    /// 16-bit arrays that a step has requested.
    halves: Vec<Halves>,
}

/// Arrays of 16-bit elements.
#[derive(Debug)]
struct Halves {
    element: Element,
    params: Stored,
    grads: Stored,
}

/// Job to be timed.
#[derive(Debug)]
pub enum HostJob {
    /// A step over tensors.
    Step {
        /// The optimizer.
        optimizer: Box<CpuOptimizer>,
        /// Element type of the tensors.
        element: Element,
        /// Ranges of the tensors.
        ranges: Vec<Range<usize>>,
    },
    /// Copy with one piece per thread. Large pieces bypass the caches.
    CopyInPieces,
    /// Copy in blocks, in the order of the optimizer.
    CopyInBlocks,
    /// Triad in blocks.
    Triad,
}

impl Host {
    /// Creates arrays of this length.
    pub fn new(elements: usize) -> Self {
        Host {
            arch: Arch::new(),
            params: values(elements),
            grads: values(elements),
            target: vec![0.0; elements],
            halves: Vec::new(),
        }
    }

    /// Returns parameters and gradients of an element type, and creates them if necessary.
    fn arrays(&mut self, element: Element) -> (SliceMut<'_>, SliceMut<'_>) {
        if element == Element::F32 {
            return (self.params.as_mut_slice().into(), self.grads.as_mut_slice().into());
        }
        let known = self.halves.iter().position(|halves| halves.element == element);
        let at = known.unwrap_or_else(|| {
            let params = Stored::new(element, &values(room(element, self.params.len())));
            self.halves.push(Halves { element, grads: params.clone(), params });
            self.halves.len() - 1
        });
        let halves = &mut self.halves[at];
        (slice_of(&mut halves.params), slice_of(&mut halves.grads))
    }
}

impl Bench for Host {
    type Job = HostJob;

    fn step(&mut self, spec: &Spec) -> Result<HostJob, Error> {
        let element = spec.mode.element;
        let (params, grads) = self.arrays(element);
        let builder = spec.builder(|group, name, range| {
            let params = part(params.as_slice(), range.clone());
            group.shaped_tensor(name, &shape_for(&spec.rule, range.len()), &params, &part(grads.as_slice(), range))
        });
        let mut optimizer = Box::new(builder.build_cpu()?);
        optimizer.control_all(|group| group.learning_rate_factor = spec.rate_factor())?;
        Ok(HostJob::Step { optimizer, element, ranges: spec.ranges() })
    }

    fn copies(&self) -> Result<Vec<(&'static str, HostJob)>, Error> {
        Ok(vec![("in pieces", HostJob::CopyInPieces), ("in blocks", HostJob::CopyInBlocks)])
    }

    fn triad(&self) -> Result<HostJob, Error> {
        Ok(HostJob::Triad)
    }

    fn time(&mut self, job: &mut HostJob, calls: usize) -> Result<Times, Error> {
        let arch = self.arch;
        let start = match job {
            HostJob::Step { optimizer, element, ranges } => {
                let (mut params, grads) = self.arrays(*element);
                refresh(&mut params, &grads);
                let mut params = pieces_of(params, ranges);
                let grads = pieces_of(grads, ranges);
                let grads: Vec<Slice> = grads.iter().map(SliceMut::as_slice).collect();
                let start = Instant::now();
                for _ in 0..calls {
                    optimizer.step_with_loss(&mut params, &grads, 1.0)?;
                }
                start
            }
            HostJob::CopyInPieces => {
                let threads = rayon::current_num_threads();
                let piece = self.grads.len().div_ceil(threads).max(BLOCK_ELEMENTS);
                repeat(calls, || copy(&mut self.target, &self.grads, piece))
            }
            HostJob::CopyInBlocks => repeat(calls, || copy(&mut self.target, &self.grads, BLOCK_ELEMENTS)),
            HostJob::Triad => repeat(calls, || {
                triad(arch, &mut self.target, &self.params, &self.grads);
            }),
        };
        Ok(Times { wall: start.elapsed(), device: None })
    }
}

/// Sets 16-bit parameters to their initial values, which are those of the gradients. Many steps along one gradient
/// would exceed 65504, the largest f16, and steps would be skipped.
fn refresh(params: &mut SliceMut<'_>, grads: &SliceMut<'_>) {
    match (params, grads) {
        (SliceMut::F16(params), SliceMut::F16(grads)) => params.copy_from_slice(grads),
        (SliceMut::Bf16(params), SliceMut::Bf16(grads)) => params.copy_from_slice(grads),
        _ => {}
    }
}

/// Returns the whole array as a slice.
fn slice_of(array: &mut Stored) -> SliceMut<'_> {
    match array {
        Stored::F32(array) => array.as_mut_slice().into(),
        Stored::F16(array) => array.as_mut_slice().into(),
        Stored::Bf16(array) => array.as_mut_slice().into(),
    }
}

/// Returns a range of an array.
fn part(array: Slice<'_>, range: Range<usize>) -> Slice<'_> {
    match array {
        Slice::F32(array) => (&array[range]).into(),
        Slice::F16(array) => (&array[range]).into(),
        Slice::Bf16(array) => (&array[range]).into(),
    }
}

/// Cuts an array into tensors.
fn pieces<'a, T, P: From<&'a mut [T]>>(mut array: &'a mut [T], ranges: &[Range<usize>]) -> Vec<P> {
    let mut at = 0;
    let cut = |range: &Range<usize>| {
        let (_, rest) = std::mem::take(&mut array).split_at_mut(range.start - at);
        let (piece, rest) = rest.split_at_mut(range.len());
        array = rest;
        at = range.end;
        P::from(piece)
    };
    ranges.iter().map(cut).collect()
}

/// Cuts an array of any element type into tensors, like [`pieces`].
fn pieces_of<'a>(array: SliceMut<'a>, ranges: &[Range<usize>]) -> Vec<SliceMut<'a>> {
    match array {
        SliceMut::F32(array) => pieces(array, ranges),
        SliceMut::F16(array) => pieces(array, ranges),
        SliceMut::Bf16(array) => pieces(array, ranges),
    }
}

/// Calls `run` repeatedly, and returns the start time.
fn repeat(calls: usize, mut run: impl FnMut()) -> Instant {
    let start = Instant::now();
    for _ in 0..calls {
        run();
    }
    start
}

/// Copies b to a with the C library's copy, which chooses its own instructions.
fn copy(a: &mut [f32], b: &[f32], piece: usize) {
    let (a, b) = std::hint::black_box((a, b));
    if a.len() <= piece.max(SERIAL_ELEMENTS) {
        a.copy_from_slice(b);
    } else {
        a.par_chunks_mut(piece).zip(b.par_chunks(piece)).for_each(|(a, b)| a.copy_from_slice(b));
    }
}

/// Computes a = b + s c.
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
