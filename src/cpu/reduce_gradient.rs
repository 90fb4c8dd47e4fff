//! Pass 1. Twin of `shaders/reduce_gradient.wgsl`, which explains the scales.
//!
//! A block is processed in rows of [`LANES`] elements, in the order of four invocations of four lanes: lane `j` adds up elements
//! `j`, `j + LANES`, …. The loops are written such that the compiler vectorises them.

use pulp::{Arch, NullaryFnOnce};

use crate::cpu::half::Number;
use crate::layout::numbers::{BIG_BITS, SMALL_BITS};
use crate::layout::{
    Block, GroupConstants, GroupState, INFINITY_BITS, MAGNITUDE_BITS, ScopeSums, Squares, no_totals, unscale,
};
use crate::plan::{Alignment, Kernel};
use crate::rule::{HostRule, LastStep, RuleKind, RuleVisitor};
use crate::scaled::power_of_two;

/// Elements of a row: four invocations of four lanes, two vectors of AVX2.
const LANES: usize = 16;

/// Data that the sweep of one block reads. All slices are those of the block.
#[derive(Clone, Copy)]
pub(crate) struct BlockSlices<'a, G> {
    pub(crate) params: &'a [f32],
    pub(crate) grads: &'a [G],
    /// Empty if the rule has none.
    pub(crate) momentum: &'a [f32],
    /// v as it was passed to the rule's direction. Empty if the rule has none.
    pub(crate) squares: &'a [f32],
    /// Empty if the regime needs none.
    pub(crate) counters: &'a [u8],
    /// Empty if the regime needs none.
    pub(crate) vector: &'a [f32],
    /// Prodigy's sum of gradients. Empty or not read elsewhere.
    pub(crate) sums: &'a [f32],
}

/// Data that is processed row by row. It is a trait and not a closure, because methods can be forced to inline, and only inlined code
/// is compiled for the vector instructions of the caller.
trait Rows: Copy {
    /// Returns elements `start .. start + LANES`, all of which must exist.
    fn row(self, start: usize) -> [f32; LANES];

    /// Returns the remaining elements from `start`, fewer than [`LANES`], followed by zeros.
    fn last_row(self, start: usize) -> [f32; LANES];
}

/// factor · g
#[derive(Clone, Copy)]
struct RawGradient<'a, G> {
    grads: &'a [G],
    /// The sign over the number of micro-batches. For the true gradient it includes the inverse of the loss scale.
    factor: f32,
}

impl<G: Number> RawGradient<'_, G> {
    #[inline(always)]
    fn of(self, stored: [G; LANES]) -> [f32; LANES] {
        times(self.factor, G::wide_row(stored))
    }
}

impl<G: Number> Rows for RawGradient<'_, G> {
    #[inline(always)]
    fn row(self, start: usize) -> [f32; LANES] {
        self.of(row(self.grads, start))
    }

    #[inline(always)]
    fn last_row(self, start: usize) -> [f32; LANES] {
        self.of(last_row(self.grads, start))
    }
}

/// factor · g + λ w
#[derive(Clone, Copy)]
struct DecayedGradient<'a, G> {
    raw: RawGradient<'a, G>,
    params: &'a [f32],
    coupled_decay: f32,
}

impl<G> DecayedGradient<'_, G> {
    #[inline(always)]
    fn of(self, mut g: [f32; LANES], w: [f32; LANES]) -> [f32; LANES] {
        for j in 0..LANES {
            g[j] += self.coupled_decay * w[j];
        }
        g
    }
}

impl<G: Number> Rows for DecayedGradient<'_, G> {
    #[inline(always)]
    fn row(self, start: usize) -> [f32; LANES] {
        self.of(self.raw.row(start), row(self.params, start))
    }

    #[inline(always)]
    fn last_row(self, start: usize) -> [f32; LANES] {
        self.of(self.raw.last_row(start), last_row(self.params, start))
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

    #[inline(always)]
    fn last_row(self, start: usize) -> [f32; LANES] {
        last_row(self.0, start)
    }
}

#[inline(always)]
fn row<T: Copy + Default>(slice: &[T], start: usize) -> [T; LANES] {
    let mut row = [T::default(); LANES];
    row.copy_from_slice(&slice[start..start + LANES]);
    row
}

#[inline(always)]
fn last_row<T: Copy + Default>(slice: &[T], start: usize) -> [T; LANES] {
    let mut row = [T::default(); LANES];
    row[..slice.len() - start].copy_from_slice(&slice[start..]);
    row
}

/// Sweeps one block. The function and everything it calls are inlined, so that the caller chooses the vector instructions.
#[inline(always)]
pub(crate) fn reduce_gradient<G: Number>(
    arch: Arch,
    kernel: Kernel,
    constants: &GroupConstants,
    state: &GroupState,
    block: &Block,
    slices: BlockSlices<G>,
) -> ScopeSums {
    let raw = raw_gradient(constants, slices.grads);
    let unscaled =
        RawGradient { factor: constants.controls.gradient_factor * unscale(state.loss_scale_exponent), ..raw };
    let mut t = if kernel.coupled_decay {
        let gradient =
            DecayedGradient { raw: unscaled, params: slices.params, coupled_decay: constants.controls.weight_decay };
        measure(arch, kernel, gradient, gradient, constants, state, block, slices)
    } else {
        let mut t = measure(arch, kernel, raw, unscaled, constants, state, block, slices);
        t.square.exponent -= state.loss_scale_exponent;
        t
    };
    t.raw_square.exponent -= state.loss_scale_exponent;
    t
}

fn raw_gradient<'a, G>(constants: &GroupConstants, grads: &'a [G]) -> RawGradient<'a, G> {
    RawGradient { grads, factor: constants.controls.gradient_factor }
}

/// Measures the norm of `scaled`, and all other sums of the true `gradient`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a block and all that its sums are made of")]
fn measure(
    arch: Arch,
    kernel: Kernel,
    scaled: impl Rows,
    gradient: impl Rows,
    constants: &GroupConstants,
    state: &GroupState,
    block: &Block,
    slices: BlockSlices<impl Number>,
) -> ScopeSums {
    let elements = slices.grads.len();
    // Norm and alignment have separate loops, because their sums together do not fit into 16 vector registers. The second loop finds the
    // block in the first-level cache.
    let mut t = sweep(elements, block, scaled);
    match kernel.alignment {
        Alignment::None | Alignment::Streams => {}
        Alignment::Magnitudes => {
            t.absolute = sum_of_magnitudes(elements, gradient, state);
            if state.momentum_started != 0 {
                measure_iterates(elements, gradient, state, slices, &mut t);
            }
        }
        // Before the group's first step there is nothing to compare with, even if another group of the scope has taken steps.
        _ if state.momentum_started == 0 => {}
        // A step before a look measures the momentum only for the bound on its norm, and nothing if there is no momentum.
        Alignment::NextLook if !kernel.reads_momentum() => {}
        Alignment::Momentum | Alignment::NextLook => {
            measure_momentum(elements, gradient, state, slices.momentum, &mut t);
        }
        Alignment::Counters => {
            measure_counters(elements, gradient, state, slices.counters, &mut t);
        }
        Alignment::Iterates => {
            measure_iterates(elements, gradient, state, slices, &mut t);
        }
        Alignment::FirstParameters => {
            t.direction_square = square_of_distance(slices.params, slices.vector);
        }
        Alignment::Estimate => {
            measure_estimate(elements, gradient, state, slices, &mut t);
        }
        Alignment::Displacement => {
            measure_displacement(elements, gradient, state, slices, &mut t);
        }
        Alignment::LastGradient => {
            measure_secant::<false>(arch, kernel, gradient, constants, state, slices, &mut t);
        }
        Alignment::Look => {
            measure_secant::<true>(arch, kernel, gradient, constants, state, slices, &mut t);
        }
    }
    if kernel.raw_norm {
        // Elements that are not finite here are not finite above either, and are counted there.
        let raw = raw_gradient(constants, slices.grads);
        t.raw_square = sweep(elements, block, raw).square;
    }
    if kernel.initial_norm && state.started == 0 {
        let initial = sweep(elements, block, Parameters(slices.params));
        t.initial_square = initial.square;
        t.nonfinite += initial.nonfinite;
        t.first_nonfinite = t.first_nonfinite.min(initial.first_nonfinite);
    }
    t
}

#[inline(always)]
fn measure_momentum(elements: usize, gradient: impl Rows, state: &GroupState, momentum: &[f32], t: &mut ScopeSums) {
    let gradient_scale = power_of_two(-state.gradient_exponent);
    let momentum_scale = power_of_two(-state.direction_exponent);
    let mut sums = MomentumSums::default();
    let whole_rows = elements / LANES * LANES;
    for start in (0..whole_rows).step_by(LANES) {
        let g = times(gradient_scale, gradient.row(start));
        sums.add(g, times(momentum_scale, row(momentum, start)));
    }
    if whole_rows < elements {
        let g = times(gradient_scale, gradient.last_row(whole_rows));
        sums.add(g, times(momentum_scale, last_row(momentum, whole_rows)));
    }
    t.slow_dot = across(&sums.slow_dot);
    t.direction_square = across(&sums.direction_squares);
}

/// Measures the gradient against y - z.
#[inline(always)]
fn measure_iterates(
    elements: usize,
    gradient: impl Rows,
    state: &GroupState,
    slices: BlockSlices<impl Number>,
    t: &mut ScopeSums,
) {
    let gradient_scale = power_of_two(-state.gradient_exponent);
    let mut sums = MomentumSums::default();
    let whole_rows = elements / LANES * LANES;
    for start in (0..whole_rows).step_by(LANES) {
        let g = times(gradient_scale, gradient.row(start));
        let way = difference(row(slices.params, start), row(slices.vector, start));
        sums.add(g, way);
    }
    if whole_rows < elements {
        let g = times(gradient_scale, gradient.last_row(whole_rows));
        let y = last_row(slices.params, whole_rows);
        sums.add(g, difference(y, last_row(slices.vector, whole_rows)));
    }
    t.slow_dot = across(&sums.slow_dot);
    t.direction_square = across(&sums.direction_squares);
}

/// Σ|g|
#[inline(always)]
fn sum_of_magnitudes(elements: usize, gradient: impl Rows, state: &GroupState) -> f32 {
    let gradient_scale = power_of_two(-state.gradient_exponent);
    let mut sums = [0.0; LANES];
    for start in (0..elements).step_by(LANES) {
        let g = times(gradient_scale, any_row(elements, gradient, start));
        for j in 0..LANES {
            sums[j] += g[j].abs();
        }
    }
    across(&{ sums })
}

#[inline(always)]
fn difference(mut a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
    for j in 0..LANES {
        a[j] -= b[j];
    }
    a
}

#[inline(always)]
fn times(scale: f32, mut row: [f32; LANES]) -> [f32; LANES] {
    for x in &mut row {
        *x *= scale;
    }
    row
}

#[derive(Default)]
struct MomentumSums {
    slow_dot: [f32; LANES],
    direction_squares: [f32; LANES],
}

impl MomentumSums {
    #[inline(always)]
    fn add(&mut self, g: [f32; LANES], m: [f32; LANES]) {
        for j in 0..LANES {
            self.slow_dot[j] += g[j] * m[j];
            self.direction_squares[j] += m[j] * m[j];
        }
    }
}

#[inline(always)]
fn measure_counters(elements: usize, gradient: impl Rows, state: &GroupState, counters: &[u8], t: &mut ScopeSums) {
    let gradient_scale = power_of_two(-state.gradient_exponent);
    let mut sums = CounterSums::default();
    let whole_rows = elements / LANES * LANES;
    for start in (0..whole_rows).step_by(LANES) {
        let g = times(gradient_scale, gradient.row(start));
        sums.add(g, row(counters, start));
    }
    if whole_rows < elements {
        let g = times(gradient_scale, gradient.last_row(whole_rows));
        sums.add(g, last_row(counters, whole_rows));
    }
    t.absolute = across(&{ sums.absolute });
    t.slow_dot = across(&{ sums.slow_dot });
    t.fast_dot = across(&{ sums.fast_dot });
    t.direction_square = across(&{ sums.direction_squares });
}

/// ‖w - w_0‖².
#[inline(always)]
fn square_of_distance(params: &[f32], first: &[f32]) -> f32 {
    let mut squares = [0.0; LANES];
    for start in (0..params.len()).step_by(LANES) {
        let w = any_row(params.len(), Parameters(params), start);
        let w_0 = any_row(params.len(), Parameters(first), start);
        for j in 0..LANES {
            squares[j] += (w[j] - w_0[j]) * (w[j] - w_0[j]);
        }
    }
    across(&{ squares })
}

/// ⟨g, w_0 - w⟩ and Σ|s| of Prodigy.
#[inline(always)]
fn measure_estimate(
    elements: usize,
    gradient: impl Rows,
    state: &GroupState,
    slices: BlockSlices<impl Number>,
    t: &mut ScopeSums,
) {
    let gradient_scale = power_of_two(-state.gradient_exponent);
    let mut ways = [0.0; LANES];
    let mut magnitudes = [0.0; LANES];
    for start in (0..elements).step_by(LANES) {
        let g = times(gradient_scale, any_row(elements, gradient, start));
        let first = any_row(elements, Parameters(slices.vector), start);
        let way = difference(first, any_row(elements, Parameters(slices.params), start));
        let s = times(gradient_scale, any_row(elements, Parameters(slices.sums), start));
        for j in 0..LANES {
            ways[j] += g[j] * way[j];
            magnitudes[j] += s[j].abs();
        }
    }
    t.slow_dot = across(&{ ways });
    t.absolute = across(&{ magnitudes });
}

/// ⟨g, D⟩, ⟨w, D⟩ and ‖w‖² of Mechanic.
#[inline(always)]
fn measure_displacement(
    elements: usize,
    gradient: impl Rows,
    state: &GroupState,
    slices: BlockSlices<impl Number>,
    t: &mut ScopeSums,
) {
    let gradient_scale = power_of_two(-state.gradient_exponent);
    let mut along_gradient = [0.0; LANES];
    let mut along_parameters = [0.0; LANES];
    let mut squares = [0.0; LANES];
    for start in (0..elements).step_by(LANES) {
        let g = times(gradient_scale, any_row(elements, gradient, start));
        let w = any_row(elements, Parameters(slices.params), start);
        let displacement = any_row(elements, Parameters(slices.vector), start);
        for j in 0..LANES {
            along_gradient[j] += g[j] * displacement[j];
            along_parameters[j] += w[j] * displacement[j];
            squares[j] += w[j] * w[j];
        }
    }
    t.slow_dot = across(&{ along_gradient });
    t.fast_dot = across(&{ along_parameters });
    t.direction_square = across(&{ squares });
}

/// Number of elements whose gradient is computed before [`MeasureSecant`] reads it.
const SECANT_TILE: usize = 256;

/// Sums of the change y of the gradient against the direction u of the last step.
#[derive(Default, Clone, Copy)]
struct SecantSums {
    u_dot_y: [f32; LANES],
    u_square: [f32; LANES],
    y_square: [f32; LANES],
    /// Sum for the last gradient, for a look.
    u_dot_last: [f32; LANES],
}

/// Measures the change y of the gradient against the direction u of the last step. A `LOOK` also measures the last gradient against u.
///
/// The gradient is computed into a buffer, so that the loops of all rules are compiled once and not for every type of gradients.
#[inline(always)]
fn measure_secant<const LOOK: bool>(
    arch: Arch,
    kernel: Kernel,
    gradient: impl Rows,
    constants: &GroupConstants,
    state: &GroupState,
    slices: BlockSlices<impl Number>,
    t: &mut ScopeSums,
) {
    let elements = slices.grads.len();
    let mut sums = SecantSums::default();
    let mut buffer = [0.0; SECANT_TILE];
    for start in (0..elements).step_by(SECANT_TILE) {
        let tile = start..elements.min(start + SECANT_TILE);
        for (row, to) in buffer.chunks_exact_mut(LANES).enumerate().take(tile.len().div_ceil(LANES)) {
            to.copy_from_slice(&any_row(elements, gradient, start + row * LANES));
        }
        arch.dispatch(MeasureSecant::<LOOK> {
            rule: kernel.rule,
            gradient: &buffer[..tile.len()],
            constants,
            state,
            last: &slices.vector[tile.clone()],
            momentum: slices.momentum.get(tile.clone()).unwrap_or_default(),
            squares: slices.squares.get(tile).unwrap_or_default(),
            sums: &mut sums,
        });
    }
    t.slow_dot = across(&{ sums.u_dot_y });
    t.direction_square = across(&{ sums.u_square });
    t.absolute = across(&{ sums.y_square });
    if LOOK {
        t.fast_dot = across(&{ sums.u_dot_last });
    }
}

/// Adds up the sums of [`measure_secant`] over a tile, for each rule.
struct MeasureSecant<'a, const LOOK: bool> {
    rule: RuleKind,
    gradient: &'a [f32],
    constants: &'a GroupConstants,
    state: &'a GroupState,
    last: &'a [f32],
    /// Empty if the rule has none.
    momentum: &'a [f32],
    /// Empty if the rule has none.
    squares: &'a [f32],
    sums: &'a mut SecantSums,
}

impl<const LOOK: bool> NullaryFnOnce for MeasureSecant<'_, LOOK> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.rule.visit(self);
    }
}

impl<const LOOK: bool> RuleVisitor for MeasureSecant<'_, LOOK> {
    type Output = ();

    #[inline(always)]
    fn visit<H: HostRule>(self) {
        let MeasureSecant { rule: _, gradient, constants, state, last, momentum, squares, sums: total } = self;
        let gradient_scale = power_of_two(-state.gradient_exponent);
        let momentum_scale = power_of_two(-state.direction_exponent);
        let elements = gradient.len();
        let mut sums = *total;
        for start in (0..elements).step_by(LANES) {
            let of =
                |there: bool, slice| if there { any_row(elements, Parameters(slice), start) } else { [0.0; LANES] };
            let g = of(true, gradient);
            let last = of(true, last);
            let m = of(H::TRAITS.momentum, momentum);
            let v = of(H::TRAITS.squares, squares);
            for j in 0..LANES {
                let y = gradient_scale * g[j] - gradient_scale * last[j];
                let u = H::last_direction(&LastStep {
                    g: last[j],
                    clipped: state.last_clip * last[j],
                    m: m[j],
                    v: v[j],
                    gradient_scale,
                    momentum_scale,
                    first_correction: state.first_correction,
                    second_correction: state.second_correction,
                    numbers: &constants.rule,
                });
                sums.u_dot_y[j] += u * y;
                sums.u_square[j] += u * u;
                sums.y_square[j] += y * y;
                if LOOK {
                    sums.u_dot_last[j] += u * (gradient_scale * last[j]);
                }
            }
        }
        *total = sums;
    }
}

#[derive(Default)]
struct CounterSums {
    absolute: [f32; LANES],
    slow_dot: [f32; LANES],
    fast_dot: [f32; LANES],
    direction_squares: [f32; LANES],
}

impl CounterSums {
    #[inline(always)]
    fn add(&mut self, g: [f32; LANES], bytes: [u8; LANES]) {
        for j in 0..LANES {
            // In 32 bits each takes two shifts and a conversion, which is less than decoding bytes and widening them.
            let byte = i32::from(bytes[j]);
            let q = (byte << 28 >> 28) as f32;
            let last_sign = (byte << 26 >> 30) as f32;
            self.slow_dot[j] += g[j] * q;
            self.direction_squares[j] += q * q;
            self.fast_dot[j] += g[j] * last_sign;
            self.absolute[j] += g[j].abs();
        }
    }
}

/// Adds up lanes in the order of the kernel: the four lanes of each invocation, then the invocations one after the other.
///
/// Like [`largest_of`] it is not inlined. Otherwise the compiler would arrange the lanes of the whole loop for this sum, and shuffle in every
/// row.
///
/// Most callers pass a copy, `&{ sums }`. The sums themselves then have no address, and their loop keeps them in registers. The loops
/// against the momentum and the iterates are faster without the copy (0.42 against 0.61 ns per parameter for SGDM under Seesaw at 2^14).
#[inline(never)]
fn across(lanes: &[f32; LANES]) -> f32 {
    lanes.chunks_exact(4).map(|v| (v[0] + v[1]) + (v[2] + v[3])).sum()
}

#[inline(never)]
fn largest_of(lanes: [u32; LANES]) -> u32 {
    lanes.iter().fold(0, |largest, &lane| largest.max(lane))
}

/// Computes the sum of squares in one sweep, and counts elements that are not finite.
#[inline(always)]
fn sweep(elements: usize, block: &Block, rows: impl Rows) -> ScopeSums {
    let mut norm = NormSums::default();
    let whole_rows = elements / LANES * LANES;
    for start in (0..whole_rows).step_by(LANES) {
        norm.add(rows.row(start));
    }
    if whole_rows < elements {
        norm.add(rows.last_row(whole_rows));
    }

    let mut t = no_totals();
    let largest = largest_of(norm.largest);
    if largest >= INFINITY_BITS {
        find_nonfinite(elements, block, rows, &mut t);
    } else if (SMALL_BITS..=BIG_BITS).contains(&largest) {
        t.square = Squares { sum: across(&{ norm.squares }), exponent: 0 };
    } else if largest > 0 {
        let exponent = ((largest >> 23) as i32 - 127).clamp(-126, 126);
        t.square = scaled_square(elements, rows, exponent);
    }
    t
}

/// Returns the sum of squares of numbers of any size. It is not finite if one of the numbers is not.
#[inline(always)]
pub(crate) fn squares_of(x: &[f32]) -> Squares {
    let mut norm = NormSums::default();
    let rows = Parameters(x);
    for start in (0..x.len()).step_by(LANES) {
        norm.add(any_row(x.len(), rows, start));
    }
    let largest = largest_of(norm.largest);
    if largest >= INFINITY_BITS {
        Squares { sum: f32::from_bits(largest), exponent: 0 }
    } else if (SMALL_BITS..=BIG_BITS).contains(&largest) {
        Squares { sum: across(&{ norm.squares }), exponent: 0 }
    } else if largest > 0 {
        let exponent = ((largest >> 23) as i32 - 127).clamp(-126, 126);
        scaled_square(x.len(), rows, exponent)
    } else {
        Squares::default()
    }
}

#[derive(Default)]
struct NormSums {
    largest: [u32; LANES],
    squares: [f32; LANES],
}

impl NormSums {
    #[inline(always)]
    fn add(&mut self, x: [f32; LANES]) {
        for ((largest, square), x) in self.largest.iter_mut().zip(&mut self.squares).zip(x) {
            *largest = (*largest).max(x.to_bits() & MAGNITUDE_BITS);
            *square += x * x;
        }
    }
}

/// Returns the sum of squares, scaled by 4^-exponent.
#[inline(always)]
fn scaled_square(elements: usize, rows: impl Rows, exponent: i32) -> Squares {
    let scale = power_of_two(-exponent);
    let mut squares = [0f32; LANES];
    for start in (0..elements).step_by(LANES) {
        let x = any_row(elements, rows, start);
        for j in 0..LANES {
            let scaled = scale * x[j];
            squares[j] += scaled * scaled;
        }
    }
    Squares { sum: across(&{ squares }), exponent }
}

#[inline(always)]
fn any_row(elements: usize, rows: impl Rows, start: usize) -> [f32; LANES] {
    if start + LANES <= elements { rows.row(start) } else { rows.last_row(start) }
}

#[inline(always)]
fn find_nonfinite(elements: usize, block: &Block, rows: impl Rows, t: &mut ScopeSums) {
    for start in (0..elements).step_by(LANES) {
        for (j, x) in any_row(elements, rows, start).into_iter().enumerate() {
            if !x.is_finite() {
                t.nonfinite += 1;
                let element = block.first_element + (start + j) as u32;
                t.first_nonfinite = t.first_nonfinite.min(element);
            }
        }
    }
}

/// Returns bits 0..4 of a byte of direction memory: the counter of gradient signs, in `[-7, 7]`. (Bits 4..6 hold the sign of the last step.)
/// All operations are in eight bits, so that one vector instruction decodes 32 counters.
#[inline(always)]
pub(crate) fn counter_of(byte: u8) -> i8 {
    ((byte & 15) ^ 8).wrapping_sub(8).cast_signed()
}

/// Returns a byte of direction memory.
#[inline(always)]
pub(crate) fn pack_counter(counter: i8, sign: i8) -> u8 {
    (counter & 15 | (sign & 3) << 4).cast_unsigned()
}
