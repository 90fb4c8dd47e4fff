//! Pass 4. Twin of `shaders/update_parameters.wgsl`.

use std::hint::black_box;
use std::ops::Range;

use pulp::{Arch, NullaryFnOnce};

use crate::cpu::BLOCK_ELEMENTS;
use crate::cpu::average::average;
use crate::cpu::factored::Factors;
use crate::cpu::finish_update::add_step_sums;
use crate::cpu::half::RemaindersMut;
use crate::cpu::reduce_gradient::{counter_of, pack_counter, squares_of};
use crate::cpu::rows::Rows;
use crate::cpu::schedule_free::{Base, move_schedule_free};
use crate::cpu::state::{Codes, decode_momentum, decode_squares};
use crate::cpu::values::{Slice, SliceMut};
use crate::element::Element;
use crate::layout::numbers::{LARGEST_BF16, LARGEST_F16, LARGEST_F32};
use crate::layout::{MAGNITUDE_BITS, NO_ELEMENT, StepSums, Update, numbers, slots};
use crate::plan::{Encoding, Kernel};
use crate::rule::{HostRule, RuleKind, RuleVisitor};
use crate::state;

/// A counter is a byte here.
const COUNTER_LIMIT: i8 = numbers::COUNTER_LIMIT as i8;

/// Number of elements whose counters are updated before their parameters. The data are still in the cache for the second update. A block
/// has a whole number of tiles.
pub(crate) const TILE: usize = 2048;

/// Number of 16-bit elements in a tile, which is decoded, updated and encoded before the next one.
pub(crate) const SHORT_TILE: usize = 256;

/// Number of counters that are updated at once.
const ROW: usize = 32;

/// Number of bytes of a cache line, and of the longest vector.
const CACHE_LINE: usize = 64;

/// Parameters and gradients of a stretch, which are processed tile by tile in f32.
pub(crate) trait Tiles {
    /// Returns the number of elements.
    fn len(&self) -> usize;

    /// The largest magnitude that a parameter can have.
    fn largest(&self) -> f32;

    /// Returns the number of elements of a tile, at most [`TILE`].
    fn tile_elements(&self) -> usize {
        TILE
    }

    /// Returns the parameters if they are in f32, else an empty slice.
    fn wide(&self) -> &[f32] {
        &[]
    }

    /// Returns the parameters and gradients of a tile, at most [`TILE`] elements.
    fn tile(&mut self, tile: Range<usize>) -> (&mut [f32], &[f32]);

    /// Stores the new parameters of the tile. `in_range` tells whether all of them are known to be at most the largest magnitude.
    fn put(&mut self, tile: Range<usize>, in_range: bool);
}

/// Parameters and gradients in f32.
pub(crate) struct Wide<'a> {
    pub(crate) params: &'a mut [f32],
    pub(crate) grads: &'a [f32],
}

impl Tiles for Wide<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.params.len()
    }

    #[inline(always)]
    fn largest(&self) -> f32 {
        LARGEST_F32
    }

    #[inline(always)]
    fn wide(&self) -> &[f32] {
        self.params
    }

    #[inline(always)]
    fn tile(&mut self, tile: Range<usize>) -> (&mut [f32], &[f32]) {
        (&mut self.params[tile.clone()], &self.grads[tile])
    }

    #[inline(always)]
    fn put(&mut self, _: Range<usize>, _: bool) {}
}

/// Parameters and gradients, at least one of which is in 16 bits. Each tile is decoded, updated in f32 and encoded.
pub(crate) struct Halves<'a> {
    pub(crate) params: SliceMut<'a>,
    pub(crate) grads: Slice<'a>,
    /// Remainders of 16-bit parameters. Empty if none are kept.
    pub(crate) remainders: RemaindersMut<'a>,
    pub(crate) encoding: Encoding,
    pub(crate) rounding_key: u32,
    /// Index of the first element in the optimizer.
    pub(crate) first_element: u32,
    /// Parameters and gradients of the tile.
    pub(crate) buffers: [&'a mut [f32]; 2],
}

impl Tiles for Halves<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.params.len()
    }

    #[inline(always)]
    fn largest(&self) -> f32 {
        match self.params.as_slice().element() {
            Element::F32 => LARGEST_F32,
            Element::F16 => LARGEST_F16,
            Element::Bf16 => LARGEST_BF16,
        }
    }

    #[inline(always)]
    fn tile_elements(&self) -> usize {
        self.buffers[0].len()
    }

    #[inline(always)]
    fn tile(&mut self, tile: Range<usize>) -> (&mut [f32], &[f32]) {
        let [params, grads] = &mut self.buffers;
        let grads = self.grads.range(tile.clone()).decode(grads);
        match &mut self.params {
            SliceMut::F32(params) => (&mut params[tile], grads),
            halves => {
                let params = &mut params[..tile.len()];
                let remainders = self.remainders.as_ref().range(tile.clone());
                let halves = halves.as_slice().range(tile);
                halves.decode_parameters(remainders, params);
                (params, grads)
            }
        }
    }

    #[inline(always)]
    fn put(&mut self, tile: Range<usize>, in_range: bool) {
        if self.params.as_slice().element().is_half() {
            let first_element = self.first_element.wrapping_add(tile.start as u32);
            self.params.range_mut(tile.clone()).encode_parameters(
                in_range,
                self.encoding,
                &self.buffers[0][..tile.len()],
                self.remainders.range_mut(tile),
                self.rounding_key,
                first_element,
            );
        }
    }
}

/// Memory of a stretch of parameters, and sums of their step.
pub(crate) struct MemorySlices<'a> {
    /// Empty if the rule has none.
    pub(crate) momentum: &'a mut [f32],
    /// Empty if the rule has none. For a rule with passes over matrices it is the direction that these passes have computed.
    pub(crate) squares: &'a mut [f32],
    /// Second moments of a rule that keeps them for rows and columns.
    pub(crate) factors: Option<Factors<'a>>,
    /// Data of rows and columns, if they have their own rates or if rows may be skipped.
    pub(crate) rows: Option<Rows<'a>>,
    /// Empty if the rule has none.
    pub(crate) largest_squares: &'a mut [f32],
    /// Momentum and second moment in 8 bits. Empty if they are in f32.
    pub(crate) codes: Codes<'a>,
    /// Empty if the regime needs none.
    pub(crate) counters: &'a mut [u8],
    /// Empty if the regime needs none.
    pub(crate) vector: &'a mut [f32],
    /// The average, or z of schedule-free training. Empty if no average is kept.
    pub(crate) averages: &'a mut [f32],
    /// One for every [`BLOCK_ELEMENTS`] of the parameters. Empty if the step is not measured.
    pub(crate) step_sums: &'a mut [StepSums],
    /// Empty if the regime needs none.
    pub(crate) streams: [&'a mut [f32]; 2],
}

impl<'a> MemorySlices<'a> {
    /// Splits the slices at an element, which must be a multiple of [`BLOCK_ELEMENTS`] or the end.
    #[inline(always)]
    pub(crate) fn split_at(self, middle: usize) -> (Self, Self) {
        /// Splits a slice that is as long as the parameters or empty.
        #[inline(always)]
        fn split<T>(slice: &mut [T], middle: usize) -> (&mut [T], &mut [T]) {
            let middle = middle.min(slice.len());
            slice.split_at_mut(middle)
        }
        let (momentum, momentum_after) = split(self.momentum, middle);
        let (squares, squares_after) = split(self.squares, middle);
        let (largest_squares, largest_squares_after) = split(self.largest_squares, middle);
        let (momentum_codes, momentum_codes_after) = split(self.codes.momentum, middle);
        let (squares_codes, squares_codes_after) = split(self.codes.squares, middle);
        let (scales, scales_after) = split(self.codes.scales, middle.div_ceil(state::BLOCK as usize));
        let first_element = self.codes.first_element;
        let (counters, counters_after) = split(self.counters, middle);
        let (vector, vector_after) = split(self.vector, middle);
        let (averages, averages_after) = split(self.averages, middle);
        let blocks = middle.div_ceil(BLOCK_ELEMENTS as usize);
        let (step_sums, step_sums_after) = split(self.step_sums, blocks);
        let [(one, one_after), (two, two_after)] = self.streams.map(|stream| split(stream, middle));
        (
            MemorySlices {
                momentum,
                squares,
                factors: self.factors,
                rows: self.rows,
                largest_squares,
                codes: Codes { momentum: momentum_codes, squares: squares_codes, scales, first_element },
                counters,
                vector,
                averages,
                step_sums,
                streams: [one, two],
            },
            MemorySlices {
                momentum: momentum_after,
                squares: squares_after,
                factors: self.factors.map(|factors| factors.behind(middle)),
                rows: self.rows.map(|rows| rows.behind(middle)),
                largest_squares: largest_squares_after,
                codes: Codes {
                    momentum: momentum_codes_after,
                    squares: squares_codes_after,
                    scales: scales_after,
                    first_element: first_element.wrapping_add(middle as u32),
                },
                counters: counters_after,
                vector: vector_after,
                averages: averages_after,
                step_sums: step_sums_after,
                streams: [one_after, two_after],
            },
        )
    }
}

/// Returns all ones if the magnitude of `x` is above `largest` or `x` is NaN, and 0 otherwise.
///
/// The result is a mask computed by arithmetic, and not a `bool`. LLVM turns `*w = if fits { moved } else { *w }` into a masked store, which is
/// `vmaskmovps` on AVX2. That instruction takes about 20 cycles on AMD's Zen 1 to 3, and made a step take 5 to 10 times as long. LLVM does the
/// same if it knows `largest`. Callers therefore hide `largest` behind [`black_box`].
#[inline(always)]
fn over(x: f32, largest: f32) -> u32 {
    let excess = largest.to_bits().wrapping_sub(x.to_bits() & MAGNITUDE_BITS).cast_signed();
    (excess >> 31).cast_unsigned()
}

/// Returns `new`, or `old` if `over` is all ones.
#[inline(always)]
fn unless(over: u32, new: f32, old: f32) -> f32 {
    f32::from_bits(new.to_bits() ^ ((new.to_bits() ^ old.to_bits()) & over))
}

/// A number that is kept beside a parameter and moves with it.
trait Keep {
    /// Computes the new parameter and the new number.
    fn moved(&self, update: &Update, w: f32, direction: f32) -> (f32, f32);

    /// Stores the new number, unless the parameter takes no step because something is [`over`] its range.
    fn settle(&mut self, over: u32, beside: f32);

    /// Returns all ones if a new number is outside the range of f32, so that the parameter takes no step, and 0 otherwise.
    #[inline(always)]
    fn over(_: f32, _largest: f32) -> u32 {
        0
    }
}

/// Nothing is kept beside the parameter.
impl Keep for () {
    #[inline(always)]
    fn moved(&self, update: &Update, w: f32, direction: f32) -> (f32, f32) {
        (update.shrink * w - update.learning_rate * direction, 0.0)
    }

    #[inline(always)]
    fn settle(&mut self, _: u32, _: f32) {}
}

impl Keep for Base {
    #[inline(always)]
    fn moved(&self, update: &Update, y: f32, direction: f32) -> (f32, f32) {
        move_schedule_free(update, y, self.0, direction)
    }

    #[inline(always)]
    fn settle(&mut self, over: u32, next: f32) {
        self.0 = unless(over, next, self.0);
    }

    #[inline(always)]
    fn over(next: f32, largest: f32) -> u32 {
        over(next, largest)
    }
}

/// Displacement of a parameter by Mechanic. Twin of `shaders/update/displace.wgsl`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
struct Displacement(f32);

impl Keep for Displacement {
    #[inline(always)]
    fn moved(&self, update: &Update, w: f32, direction: f32) -> (f32, f32) {
        let step = update.learning_rate * direction + update.memory_share * w;
        let next = update.memory_keep * self.0 + step;
        (w + (self.0 - next), next)
    }

    #[inline(always)]
    fn settle(&mut self, over: u32, next: f32) {
        self.0 = unless(over, next, self.0);
    }
}

/// The gradient that the rule receives: sign · clip · g / k + λ w, where g is the sum of k micro-batches without the loss scale.
#[derive(Clone, Copy)]
pub(crate) struct Gradient<const SCALED: bool> {
    unscale: f32,
    factor: f32,
    coupled_decay: f32,
    /// True if λ is added. Without decay λ is 0, but 0 · w would be NaN for an infinite w.
    decays: bool,
}

impl<const SCALED: bool> Gradient<SCALED> {
    #[inline(always)]
    pub(crate) fn of_step(kernel: Kernel, update: &Update) -> Self {
        Gradient {
            unscale: update.unscale,
            factor: update.gradient_factor,
            coupled_decay: update.coupled_decay,
            decays: kernel.coupled_decay,
        }
    }

    #[inline(always)]
    pub(crate) fn of(self, g: f32, w: f32) -> f32 {
        let g = if SCALED { self.unscale * g } else { g };
        let g = self.factor * g;
        if self.decays { g + self.coupled_decay * w } else { g }
    }
}

/// The first pass of a rule that works on matrices. It computes the matrix to be orthogonalized from gradient and momentum. Pass 4 updates the
/// momentum.
#[inline(always)]
pub(crate) fn prepare(
    kernel: Kernel,
    update: &Update,
    mut elements: impl Tiles,
    momentum: &[f32],
    prepared: &mut [f32],
) {
    let gradient = Gradient::<true>::of_step(kernel, update);
    for tile in tiles(elements.len(), elements.tile_elements()) {
        let (params, grads) = elements.tile(tile.clone());
        let moved = momentum[tile.clone()].iter().zip(&mut prepared[tile]);
        for ((&w, &g), (&last, x)) in params.iter().zip(grads).zip(moved) {
            let g = gradient.of(g, w);
            let m = update.momentum_keep * last + update.gradient_share * g;
            *x = update.momentum * m + (1.0 - update.momentum) * g;
        }
    }
}

impl MemorySlices<'_> {
    /// Returns true if each tile is updated at one rate, from memory that needs no decoding. [`update_parameters`] is compiled separately for this
    /// case.
    pub(crate) fn is_plain(&self, kernel: &Kernel) -> bool {
        let is_special = kernel.bits8 || kernel.has_displacement() || kernel.has_estimate();
        self.factors.is_none() && self.rows.is_none() && !is_special
    }
}

/// Updates one block. Do not call it for a group or tensor that must not change. Returns the index of the first element that took no step
/// because it or its momentum would have left the range of its type. `PLAIN` is the result of [`MemorySlices::is_plain`].
///
/// The function and everything it calls are inlined, so that the caller chooses the vector instructions.
#[inline(always)]
pub(crate) fn update_parameters<const PLAIN: bool>(
    arch: Arch,
    kernel: Kernel,
    update: &Update,
    elements: impl Tiles,
    memory: &mut MemorySlices,
) -> Option<u32> {
    if PLAIN && update.unscale == 1.0 {
        update_elements::<false, PLAIN>(arch, kernel, update, elements, memory)
    } else {
        update_elements::<true, PLAIN>(arch, kernel, update, elements, memory)
    }
}

#[inline(always)]
fn update_elements<const SCALED: bool, const PLAIN: bool>(
    arch: Arch,
    kernel: Kernel,
    update: &Update,
    mut elements: impl Tiles,
    memory: &mut MemorySlices,
) -> Option<u32> {
    let gradient = Gradient::<SCALED>::of_step(kernel, update);
    let (factors, rows) = if PLAIN { (None, None) } else { (memory.factors, memory.rows) };
    let bits8 = !PLAIN && kernel.bits8;
    let MemorySlices {
        momentum, squares, largest_squares, codes, counters, vector, averages, step_sums, streams, ..
    } = memory;
    if update.skip != 0 {
        // No step is taken, but the streams are exchanged.
        if kernel.has_streams() {
            for tile in tiles(elements.len(), elements.tile_elements()) {
                let (params, _) = elements.tile(tile.clone());
                exchange(update, params, vector, streams, tile.clone());
                elements.put(tile, false);
            }
        }
        return None;
    }
    let largest = elements.largest();
    let mut first_outside = NO_ELEMENT;
    step_sums.fill(StepSums::default());
    let mut buffer;
    // The buffer is only filled if it is used.
    let before = if !step_sums.is_empty() {
        buffer = [0f32; TILE];
        &mut buffer[..]
    } else {
        &mut []
    };
    let mut moments;
    // These buffers, too, are only filled if they are used.
    let mut decoded = if bits8 {
        moments = [[0f32; TILE]; 2];
        moments.each_mut().map(|moment| &mut moment[..])
    } else {
        [&mut [][..], &mut []]
    };
    // The sums of a step are over whole blocks, which allow no shorter first tile.
    let head = match if momentum.is_empty() { elements.wide() } else { &momentum[..] } {
        written if PLAIN && step_sums.is_empty() => head_of(written),
        _ => 0,
    };
    for tile in tiles_after(head, elements.len(), elements.tile_elements()) {
        let (params, grads) = elements.tile(tile.clone());
        if !before.is_empty() {
            // The copy is made in pieces. For 8 KiB at once the C library uses string instructions, which some processors execute slowly.
            for (before, params) in before.chunks_mut(SHORT_TILE).zip(params.chunks(SHORT_TILE)) {
                before[..params.len()].copy_from_slice(params);
            }
        }
        // Counters come first, because they need the old parameters.
        if kernel.has_counters() {
            count_signs(gradient, &mut counters[tile.clone()], params, grads);
        }
        // The gradient that pass 1 measured, without the clip.
        let seen = Gradient { factor: update.micro_share.copysign(update.gradient_factor), ..gradient };
        if kernel.has_last_gradient() {
            let elements = params.iter().zip(grads);
            for (last, (&w, &g)) in vector[tile.clone()].iter_mut().zip(elements) {
                *last = seen.of(g, w);
            }
        }
        let has_estimate = !PLAIN && kernel.has_estimate();
        let keeps_first = kernel.has_first_parameters() || kernel.has_streams() || has_estimate;
        if keeps_first && update.first != 0 {
            vector[tile.clone()].copy_from_slice(params);
        }
        if has_estimate {
            let elements = params.iter().zip(grads);
            for (s, (&w, &g)) in streams[0][tile.clone()].iter_mut().zip(elements) {
                let last = if update.first != 0 { 0.0 } else { *s };
                let next = update.memory_keep * last + update.memory_share * seen.of(g, w);
                *s = next.clamp(-LARGEST_F32, LARGEST_F32);
            }
        }
        let traits = kernel.rule.traits();
        let mut estimates;
        let [momentum, squares] = if bits8 {
            let scales = &codes.scales[tile.start / state::BLOCK as usize..];
            let [momentum, squares] = &mut decoded;
            let momentum = &mut momentum[..if traits.momentum { tile.len() } else { 0 }];
            let squares = &mut squares[..if traits.squares { tile.len() } else { 0 }];
            decode_momentum(codes.momentum.get(tile.clone()).unwrap_or_default(), scales, momentum);
            decode_squares(codes.squares.get(tile.clone()).unwrap_or_default(), scales, squares);
            [momentum, squares]
        } else if let Some(factors) = factors {
            estimates = [0.0; TILE];
            factors.estimate(tile.clone(), update.epsilon, &mut estimates[..tile.len()]);
            [&mut [], &mut estimates[..tile.len()]]
        } else {
            let momentum = if traits.momentum { &mut momentum[tile.clone()] } else { &mut [] };
            [momentum, if traits.squares || traits.matrices { &mut squares[tile.clone()] } else { &mut [] }]
        };
        let largest_squares = largest_squares.get_mut(tile.clone()).unwrap_or_default();
        let mut outside = NO_ELEMENT;
        if PLAIN {
            let elements =
                Stretch { arch, update, gradient, largest, params, grads, momentum, squares, largest_squares };
            outside = elements.take(kernel, averages.get_mut(tile.clone()).unwrap_or_default());
        }
        // The whole tile, or stretches of it with their own rates.
        let mut start = 0;
        while !PLAIN && start < tile.len() {
            let mut update = *update;
            let (end, factor) = match rows {
                None => (tile.end, Some(1.0)),
                Some(rows) => rows.stretch(tile.start + start, tile.end),
            };
            let stretch = start..end - tile.start;
            let offset = start as u32;
            start = stretch.end;
            let params = &mut params[stretch.clone()];
            match factor {
                Some(factor) if rows.is_some() => {
                    update.learning_rate *= factor;
                    update.shrink = 1.0 - factor * (1.0 - update.shrink);
                }
                Some(_) => {}
                // The row has no gradient. In the first step z must still be set to the parameters.
                None => {
                    if kernel.schedule_free && update.first != 0 {
                        averages[tile.clone()][stretch].copy_from_slice(params);
                    }
                    continue;
                }
            }
            let update = &update;
            let grads = &grads[stretch.clone()];
            let momentum = momentum.get_mut(stretch.clone()).unwrap_or_default();
            let squares = squares.get_mut(stretch.clone()).unwrap_or_default();
            let largest_squares = largest_squares.get_mut(stretch.clone()).unwrap_or_default();
            let elements =
                Stretch { arch, update, gradient, largest, params, grads, momentum, squares, largest_squares };
            let of_stretch = if kernel.has_displacement() {
                let displacement = &mut vector[tile.clone()][stretch];
                if update.first != 0 {
                    displacement.fill(0.0);
                }
                elements.step(kernel, bytemuck::cast_slice_mut::<f32, Displacement>(displacement))
            } else {
                let averages = averages.get_mut(tile.clone()).unwrap_or_default();
                let base = averages.get_mut(stretch.clone()).unwrap_or_default();
                elements.take(kernel, base)
            };
            if of_stretch != NO_ELEMENT {
                outside = outside.min(offset + of_stretch);
            }
        }
        if bits8 {
            let [momentum, squares] = &decoded;
            let momentum = &momentum[..if traits.momentum { tile.len() } else { 0 }];
            let squares = &squares[..if traits.squares { tile.len() } else { 0 }];
            codes.encode(tile.start, momentum, squares, Some(update.rounding_key));
        }
        if outside != NO_ELEMENT {
            first_outside = first_outside.min(tile.start as u32 + outside);
        }
        if let Some(sums) = step_sums.get_mut(tile.start / BLOCK_ELEMENTS as usize) {
            let step = &mut before[..tile.len()];
            for (step, new) in step.iter_mut().zip(params.iter()) {
                *step = new - *step;
            }
            let measured = StepSums { parameters: squares_of(params), step: squares_of(step), overflow_key: 0 };
            *sums = add_step_sums(sums, &measured);
        }
        if !kernel.schedule_free
            && let Some(averages) = averages.get_mut(tile.clone())
        {
            average(update.average_weight, averages, params);
        }
        if kernel.has_streams() {
            exchange(update, params, vector, streams, tile.clone());
        }
        // Parameters of other streams may be out of range.
        elements.put(tile, outside == NO_ELEMENT && !kernel.has_streams());
    }
    (first_outside != NO_ELEMENT).then_some(first_outside)
}

pub(crate) fn tiles(elements: usize, tile: usize) -> impl Iterator<Item = Range<usize>> {
    tiles_after(0, elements, tile)
}

/// Returns the number of elements before the first one at which a cache line begins. Vector stores that cross cache lines
/// are slow: with AVX-512, all of them do if the first does. Large vectors of parameters, gradients and memory usually
/// begin at the same offset from a cache line, that of the allocator. In short slices it does not matter, and it is 0.
fn head_of(written: &[f32]) -> usize {
    if written.len() < TILE { 0 } else { written.as_ptr().align_offset(CACHE_LINE).min(SHORT_TILE) }
}

/// Returns a tile of `head` elements, unless that is 0, and those after it.
fn tiles_after(head: usize, elements: usize, tile: usize) -> impl Iterator<Item = Range<usize>> {
    let starts = (head..elements).step_by(tile);
    (head > 0).then_some(0..head).into_iter().chain(starts.map(move |start| start..elements.min(start + tile)))
}

/// Exchanges streams. The stream that took the step goes to a slot, and the caller's parameters become the next stream or the winner.
#[inline(always)]
fn exchange(update: &Update, params: &mut [f32], start: &[f32], [one, two]: &mut [&mut [f32]; 2], tile: Range<usize>) {
    let start = &start[tile.clone()];
    let streams = [&mut one[tile.clone()], &mut two[tile]];
    let stream = |slot: u32| slot as usize - 1;
    match (update.put, update.take) {
        (slots::NO_SLOT, slots::NO_SLOT) => {}
        (slots::NO_SLOT, slots::START_SLOT) => params.copy_from_slice(start),
        (slots::NO_SLOT, take) => params.copy_from_slice(streams[stream(take)]),
        (put, slots::START_SLOT) => {
            streams[stream(put)].copy_from_slice(params);
            params.copy_from_slice(start);
        }
        // The next stream is in the slot that this stream goes to.
        (put, _) => params.swap_with_slice(streams[stream(put)]),
    }
}

/// q ← clamp(q + sign g), and remembers the sign.
#[inline(always)]
fn count_signs<const SCALED: bool>(gradient: Gradient<SCALED>, counters: &mut [u8], params: &[f32], grads: &[f32]) {
    let (rows, last) = counters.as_chunks_mut::<ROW>();
    let (params_rows, last_params) = params.as_chunks::<ROW>();
    let (grads_rows, last_grads) = grads.as_chunks::<ROW>();
    for ((row, params), grads) in rows.iter_mut().zip(params_rows).zip(grads_rows) {
        // The bytes have a separate loop, in which one instruction processes 32 of them.
        let mut signs = [0; ROW];
        for j in 0..ROW {
            signs[j] = saturated(gradient.of(grads[j], params[j]));
        }
        for j in 0..ROW {
            row[j] = count(row[j], signs[j]);
        }
    }
    for ((byte, &w), &g) in last.iter_mut().zip(last_params).zip(last_grads) {
        *byte = count(*byte, saturated(gradient.of(g, w)));
    }
}

#[inline(always)]
fn count(byte: u8, saturated: i8) -> u8 {
    let sign = saturated.clamp(-1, 1);
    let q = (counter_of(byte) + sign).clamp(-COUNTER_LIMIT, COUNTER_LIMIT);
    pack_counter(q, sign)
}

/// Parameters that take a step at one rate, with their gradients and memory.
struct Stretch<'a, const SCALED: bool> {
    arch: Arch,
    update: &'a Update,
    gradient: Gradient<SCALED>,
    /// The largest magnitude that a parameter can have.
    largest: f32,
    params: &'a mut [f32],
    grads: &'a [f32],
    momentum: &'a mut [f32],
    squares: &'a mut [f32],
    largest_squares: &'a mut [f32],
}

impl<const SCALED: bool> Stretch<'_, SCALED> {
    /// Takes the step, with z in schedule-free training. z starts from the parameters. Returns the same as [`Stretch::step`].
    #[inline(always)]
    fn take(self, kernel: Kernel, base: &mut [f32]) -> u32 {
        if kernel.schedule_free {
            if self.update.first != 0 {
                base.copy_from_slice(self.params);
            }
            self.step(kernel, bytemuck::cast_slice_mut::<f32, Base>(base))
        } else {
            let nothing = &mut [(); TILE][..self.params.len()];
            self.step(kernel, nothing)
        }
    }

    /// Takes the step. Returns the index of the first element that took no step, or [`NO_ELEMENT`] if all took it.
    ///
    /// It is dispatched separately, although the caller is compiled for the same instructions. The loops of all rules are then compiled once,
    /// and not once for every kind of tiles.
    #[inline(always)]
    fn step<K: Keep>(self, kernel: Kernel, kept: &mut [K]) -> u32 {
        self.arch.dispatch(Move { rule: kernel.rule, elements: self, kept })
    }
}

/// Moves a stretch, for each rule.
struct Move<'a, 'd, const SCALED: bool, K> {
    rule: RuleKind,
    elements: Stretch<'a, SCALED>,
    kept: &'d mut [K],
}

impl<const SCALED: bool, K: Keep> Move<'_, '_, SCALED, K> {
    /// Updates one element, and m, v and the largest v if the rule has them. Returns all ones if w and m keep their values because the new ones
    /// would be out of range, and 0 otherwise.
    #[expect(clippy::too_many_arguments, reason = "an element and all that belongs to it")]
    #[inline(always)]
    fn element<R: HostRule>(
        update: &Update,
        gradient: Gradient<SCALED>,
        [largest, largest_f32]: [f32; 2],
        w: &mut f32,
        g: f32,
        m: &mut f32,
        v: &mut f32,
        largest_v: &mut f32,
        kept: &mut K,
    ) -> u32 {
        let g = gradient.of(g, *w);
        let largest_gradient = const { R::TRAITS.largest_gradient() };
        let admitted = if R::TRAITS.squares { g.clamp(-largest_gradient, largest_gradient) } else { g };
        let last = *m;
        let mut next = last;
        if R::TRAITS.momentum {
            next = update.momentum_keep * last + update.gradient_share * admitted;
        }
        if R::TRAITS.squares {
            *v = update.square_keep * *v + update.square_share * (admitted * admitted);
        }
        let mut divisor = *v;
        if R::TRAITS.largest_squares {
            // `largest_v` comes first, because the other order becomes a masked store (see `over`).
            *largest_v = largest_v.max(*v);
            divisor = *largest_v;
        }
        let u = R::direction(update, g, last, next, divisor);
        let (moved, beside) = kept.moved(update, *w, u);
        let momentum_over = if R::TRAITS.momentum { over(next, largest_f32) } else { 0 };
        let over = over(moved, largest) | momentum_over | K::over(beside, largest_f32);
        *w = unless(over, moved, *w);
        kept.settle(over, beside);
        if R::TRAITS.momentum {
            *m = unless(over, next, last);
        }
        over
    }
}

impl<const SCALED: bool, K: Keep> NullaryFnOnce for Move<'_, '_, SCALED, K> {
    type Output = u32;

    #[inline(always)]
    fn call(self) -> u32 {
        self.rule.visit(self)
    }
}

impl<const SCALED: bool, K: Keep> RuleVisitor for Move<'_, '_, SCALED, K> {
    /// Index of the first element that took no step, or [`NO_ELEMENT`].
    type Output = u32;

    #[inline(always)]
    fn visit<R: HostRule>(self) -> u32 {
        let Stretch { arch: _, update, gradient, largest, params, grads, momentum, squares, largest_squares } =
            self.elements;
        // The array is destructured before the loop. Otherwise LLVM keeps it in memory and checks that no parameter overlaps it.
        let [largest, largest_f32] = black_box([largest, LARGEST_F32]);
        let largest = [largest, largest_f32];
        // A range in the zip, to number the elements, would prevent vectorisation.
        let elements = params.iter_mut().zip(grads).zip(self.kept);
        let (mut index, mut first) = (0, NO_ELEMENT);
        let mut note = |over: u32| {
            first = first.min(index | !over);
            index += 1;
        };
        // A rule with the largest v also has a momentum and v.
        match (
            R::TRAITS.momentum,
            R::TRAITS.squares || R::TRAITS.matrices || R::TRAITS.factored,
            R::TRAITS.largest_squares,
        ) {
            (false, false, _) => {
                for ((w, &g), u) in elements {
                    note(Self::element::<R>(update, gradient, largest, w, g, &mut 0.0, &mut 0.0, &mut 0.0, u));
                }
            }
            (true, false, _) => {
                for (((w, &g), u), m) in elements.zip(momentum) {
                    note(Self::element::<R>(update, gradient, largest, w, g, m, &mut 0.0, &mut 0.0, u));
                }
            }
            (false, true, _) => {
                for (((w, &g), u), v) in elements.zip(squares) {
                    note(Self::element::<R>(update, gradient, largest, w, g, &mut 0.0, v, &mut 0.0, u));
                }
            }
            (true, true, false) => {
                for ((((w, &g), u), m), v) in elements.zip(momentum).zip(squares) {
                    note(Self::element::<R>(update, gradient, largest, w, g, m, v, &mut 0.0, u));
                }
            }
            (true, true, true) => {
                let memory = momentum.iter_mut().zip(squares).zip(largest_squares);
                for (((w, &g), u), ((m, v), largest_v)) in elements.zip(memory) {
                    note(Self::element::<R>(update, gradient, largest, w, g, m, v, largest_v, u));
                }
            }
        }
        first
    }
}

/// Returns a byte that has the sign of `x` and is 0 for 0 and -0. `x` must not be NaN.
///
/// The bits of an f32, read as an integer, have its sign. Packing them with saturation takes less than half of the time of two comparisons (0.32
/// against 0.73 ns per element with AVX2 on AMD's first Zen). Adding 0 turns -0 into 0.
#[inline(always)]
fn saturated(x: f32) -> i8 {
    (x + 0.0).to_bits().cast_signed().clamp(i8::MIN.into(), i8::MAX.into()) as i8
}
