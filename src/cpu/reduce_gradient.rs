//! Pass 1: twin of `shaders/reduce_gradient.wgsl`, which explains the scales.
//!
//! A block is walked in rows of [`LANES`] elements, as eight invocations of four lanes walk it, so that lane `j` adds up
//! elements `j`, `j + LANES`, …; the loops are written for the compiler to turn into vector instructions.

use crate::cpu::scaled::power_of_two;
use crate::layout::{Block, GroupConstants, GroupState, ScopeSums, Squares};
use crate::plan::Kernel;

/// Elements of a row: eight invocations of four lanes.
pub(crate) const LANES: usize = 32;

const MAGNITUDE_BITS: u32 = 0x7fff_ffff;
const INFINITY_BITS: u32 = 0x7f80_0000;
const SMALL_BITS: u32 = 0x2b80_0000; // 2^-40
const BIG_BITS: u32 = 0x5380_0000; // 2^40

/// What the sweep of one block reads; all slices are the block's own.
#[derive(Clone, Copy)]
pub(crate) struct BlockSlices<'a> {
    pub(crate) params: &'a [f32],
    pub(crate) grads: &'a [f32],
    /// Empty where the rule has none.
    pub(crate) momentum: &'a [f32],
    /// Empty where the regime needs none.
    pub(crate) counters: &'a [u8],
}

/// No measurement.
pub(crate) fn no_totals() -> ScopeSums {
    ScopeSums {
        first_nonfinite: u32::MAX,
        ..bytemuck::Zeroable::zeroed()
    }
}

/// Something that is walked row by row. A trait and not a closure: methods can be made to inline, and only what is inlined is
/// compiled for the vector instructions of the caller.
trait Rows: Copy {
    /// Elements `start .. start + LANES`, 0 past the end.
    fn row(self, start: usize) -> [f32; LANES];
}

/// sign · g
#[derive(Clone, Copy)]
struct RawGradient<'a> {
    grads: &'a [f32],
    sign: f32,
}

impl Rows for RawGradient<'_> {
    #[inline(always)]
    fn row(self, start: usize) -> [f32; LANES] {
        let mut g = row(self.grads, start);
        for g in &mut g {
            *g *= self.sign;
        }
        g
    }
}

/// sign · g + λ w
#[derive(Clone, Copy)]
struct DecayedGradient<'a> {
    raw: RawGradient<'a>,
    params: &'a [f32],
    coupled_decay: f32,
}

impl Rows for DecayedGradient<'_> {
    #[inline(always)]
    fn row(self, start: usize) -> [f32; LANES] {
        let mut g = self.raw.row(start);
        let w = row(self.params, start);
        for j in 0..LANES {
            g[j] += self.coupled_decay * w[j];
        }
        g
    }
}

/// w
#[derive(Clone, Copy)]
struct Parameters<'a>(&'a [f32]);

impl Rows for Parameters<'_> {
    #[inline(always)]
    fn row(self, start: usize) -> [f32; LANES] {
        row(self.0, start)
    }
}

/// Sweeps one block. Inlined, as everything it calls, so that the caller chooses the vector instructions.
#[inline(always)]
pub(crate) fn reduce_gradient(
    kernel: Kernel,
    constants: &GroupConstants,
    state: &GroupState,
    block: &Block,
    slices: BlockSlices,
) -> ScopeSums {
    let raw = RawGradient {
        grads: slices.grads,
        sign: constants.sign,
    };
    if kernel.coupled_decay {
        let gradient = DecayedGradient {
            raw,
            params: slices.params,
            coupled_decay: constants.coupled_decay,
        };
        measure(kernel, gradient, raw, state, block, slices)
    } else {
        measure(kernel, raw, raw, state, block, slices)
    }
}

#[inline(always)]
fn measure(
    kernel: Kernel,
    gradient: impl Rows,
    raw: RawGradient,
    state: &GroupState,
    block: &Block,
    slices: BlockSlices,
) -> ScopeSums {
    let elements = slices.grads.len();
    let mut t = no_totals();
    t.square = square(elements, block, gradient, &mut t);
    if kernel.raw_norm {
        // What is not finite here is not finite above either, and counted there.
        t.raw_square = square(elements, block, raw, &mut no_totals());
    }
    if kernel.reads_momentum() {
        measure_momentum(elements, gradient, state, slices.momentum, &mut t);
    }
    if kernel.has_counters() {
        measure_counters(elements, gradient, state, slices.counters, &mut t);
    }
    if kernel.initial_norm && state.started == 0 {
        t.initial_square = square(elements, block, Parameters(slices.params), &mut t);
    }
    t
}

/// Elements `start .. start + LANES`, 0 past the end.
#[inline(always)]
fn row<T: Copy + Default>(slice: &[T], start: usize) -> [T; LANES] {
    match slice[start..].first_chunk::<LANES>() {
        Some(row) => *row,
        None => {
            let mut row = [T::default(); LANES];
            row[..slice.len() - start].copy_from_slice(&slice[start..]);
            row
        }
    }
}

/// Adds lanes up as the kernel does: four to an invocation, then the invocations one after the other.
#[inline(always)]
fn across(lanes: [f32; LANES]) -> f32 {
    lanes
        .chunks_exact(4)
        .map(|v| (v[0] + v[1]) + (v[2] + v[3]))
        .sum()
}

/// The sum of squares; counts what is not finite into `t`.
#[inline(always)]
fn square(elements: usize, block: &Block, rows: impl Rows, t: &mut ScopeSums) -> Squares {
    let mut largest = [0u32; LANES];
    let mut squares = [0f32; LANES];
    for start in (0..elements).step_by(LANES) {
        let x = rows.row(start);
        for j in 0..LANES {
            largest[j] = largest[j].max(x[j].to_bits() & MAGNITUDE_BITS);
            squares[j] += x[j] * x[j];
        }
    }
    let largest = largest.into_iter().max().unwrap_or(0);
    if largest >= INFINITY_BITS {
        find_nonfinite(elements, block, rows, t);
    }
    if largest == 0 || largest >= INFINITY_BITS {
        return Squares::default();
    }
    if (SMALL_BITS..=BIG_BITS).contains(&largest) {
        return Squares {
            sum: across(squares),
            exponent: 0,
        };
    }

    let exponent = ((largest >> 23) as i32 - 127).clamp(-126, 126);
    let scale = power_of_two(-exponent);
    let mut squares = [0f32; LANES];
    for start in (0..elements).step_by(LANES) {
        let x = rows.row(start);
        for j in 0..LANES {
            let scaled = scale * x[j];
            squares[j] += scaled * scaled;
        }
    }
    Squares {
        sum: across(squares),
        exponent,
    }
}

#[inline(always)]
fn find_nonfinite(elements: usize, block: &Block, rows: impl Rows, t: &mut ScopeSums) {
    for start in (0..elements).step_by(LANES) {
        for (j, x) in rows.row(start).into_iter().enumerate() {
            if !x.is_finite() {
                t.nonfinite += 1;
                let element = block.first_element + (start + j) as u32;
                t.first_nonfinite = t.first_nonfinite.min(element);
            }
        }
    }
}

#[inline(always)]
fn measure_momentum(
    elements: usize,
    gradient: impl Rows,
    state: &GroupState,
    momentum: &[f32],
    t: &mut ScopeSums,
) {
    let gradient_scale = power_of_two(-state.gradient_exponent);
    let momentum_scale = power_of_two(-state.direction_exponent);
    let mut slow_dot = [0f32; LANES];
    let mut direction_squares = [0f32; LANES];
    for start in (0..elements).step_by(LANES) {
        let g = gradient.row(start);
        let m = row(momentum, start);
        for j in 0..LANES {
            let m = momentum_scale * m[j];
            slow_dot[j] += gradient_scale * g[j] * m;
            direction_squares[j] += m * m;
        }
    }
    t.slow_dot = across(slow_dot);
    t.direction_square = across(direction_squares);
}

#[inline(always)]
fn measure_counters(
    elements: usize,
    gradient: impl Rows,
    state: &GroupState,
    counters: &[u8],
    t: &mut ScopeSums,
) {
    let gradient_scale = power_of_two(-state.gradient_exponent);
    let mut slow_dot = [0f32; LANES];
    let mut fast_dot = [0f32; LANES];
    let mut absolute = [0f32; LANES];
    let mut direction_squares = [0f32; LANES];
    for start in (0..elements).step_by(LANES) {
        let g = gradient.row(start);
        let bytes = row(counters, start);
        for j in 0..LANES {
            let scaled = gradient_scale * g[j];
            let q = counter_of(bytes[j]) as f32;
            slow_dot[j] += scaled * q;
            direction_squares[j] += q * q;
            fast_dot[j] += scaled * last_sign_of(bytes[j]) as f32;
            absolute[j] += scaled.abs();
        }
    }
    t.slow_dot = across(slow_dot);
    t.fast_dot = across(fast_dot);
    t.absolute = across(absolute);
    t.direction_square = across(direction_squares);
}

/// Bits 0..4 of a byte of direction memory: the counter of gradient signs, in `[-7, 7]`.
#[inline(always)]
pub(crate) fn counter_of(byte: u8) -> i32 {
    (i32::from(byte) << 28) >> 28
}

/// Bits 4..6: the sign of the last step.
#[inline(always)]
pub(crate) fn last_sign_of(byte: u8) -> i32 {
    (i32::from(byte) << 26) >> 30
}

/// A byte of direction memory.
#[inline(always)]
pub(crate) fn pack_counter(counter: i32, sign: i32) -> u8 {
    (counter & 15 | (sign & 3) << 4) as u8
}
