//! Division of tensors into blocks, and of blocks into windows.

use std::collections::HashMap;

use super::matrices::{Room, limited};
use super::{Access, Geometry, Kernel, MemoryKind, Place, QUAD, RowTensor, Shape, TensorInfo, TensorWork};
use crate::element::Element;
use crate::layout::{Block, FactoredTensor, Matrix, ROW_WORDS};
use crate::rule::RuleKind;

/// Range of one buffer, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) buffer: usize,
    pub(crate) element: Element,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Region {
    pub(crate) fn elements(&self) -> u64 {
        self.end - self.start
    }

    /// Returns the first byte in the buffer.
    pub(crate) fn start_bytes(&self) -> u64 {
        self.start * self.element.bytes()
    }

    /// Returns the length in bytes, rounded up to whole words.
    pub(crate) fn bytes(&self) -> u64 {
        (self.elements() * self.element.bytes()).next_multiple_of(4)
    }
}

pub(super) fn union(a: Region, b: Region) -> Region {
    Region { buffer: a.buffer, element: a.element, start: a.start.min(b.start), end: a.end.max(b.end) }
}

/// One dispatch of passes 1 and 4.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    pub(crate) kernel: Kernel,
    pub(crate) access: Access,
    /// Index of the window's memory. Windows that [`Unplaced`] has cut from one share its memory.
    pub(crate) memory: usize,
    pub(crate) params: Region,
    pub(crate) grads: Region,
    /// Number of quads of momentum or direction memory.
    pub(crate) state_quads: u32,
    pub(crate) blocks: Vec<Block>,
    /// Matrices that the blocks are cut from, if the rule has passes over matrices.
    pub(crate) matrices: Vec<Matrix>,
    /// Tensors that the blocks are cut from, if the rule limits their directions.
    pub(crate) limited: Vec<FactoredTensor>,
    /// Sizes of the data that the passes over limited tensors keep.
    pub(crate) room: Room,
    /// Tensors that the blocks are cut from, if their rows are distinguished.
    pub(crate) rows: Vec<RowTensor>,
    /// Number of words for the factors and flags of `rows`.
    pub(crate) row_words: u64,
}

/// Elements of a tensor that are adjacent in a window's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// First element in the window's memory.
    pub(crate) in_memory: u64,
    /// First element in the tensor.
    pub(crate) in_tensor: u64,
    pub(crate) elements: u64,
}

impl Window {
    /// Returns a window without blocks.
    fn new(kernel: Kernel, access: Access, params: Region, grads: Region) -> Self {
        Window {
            kernel,
            access,
            memory: 0, // set by `finish`
            params,
            grads,
            state_quads: 0,
            blocks: Vec::new(),
            matrices: Vec::new(),
            limited: Vec::new(),
            room: Room::default(),
            rows: Vec::new(),
            row_words: 0,
        }
    }

    /// Returns a window with the memory and tables of this one.
    fn without_blocks(&self, params: Region, grads: Region) -> Self {
        Window {
            memory: self.memory,
            state_quads: self.state_quads,
            matrices: self.matrices.clone(),
            limited: self.limited.clone(),
            room: self.room,
            rows: self.rows.clone(),
            row_words: self.row_words,
            ..Window::new(self.kernel, self.access, params, grads)
        }
    }

    /// Returns the size in bytes of a memory of this kind, in whole quads.
    pub(crate) fn memory_bytes(&self, kind: MemoryKind) -> u64 {
        let entries = match kind {
            MemoryKind::RowSecondMoment => self.room.rows,
            MemoryKind::ColumnSecondMoment => self.room.columns,
            _ => u64::from(self.state_quads) * u64::from(QUAD),
        };
        kind.slot_bytes(entries) * u64::from(kind.slots())
    }

    /// Returns the location of a tensor's data in the window's memory of a kind. It is empty if the window has no such
    /// data.
    pub(crate) fn stretches_of(&self, kind: MemoryKind, tensor: &TensorInfo) -> Vec<Stretch> {
        if kind.is_factored() {
            let first_element = |one: &FactoredTensor| u64::from(self.blocks[one.lead as usize].first_element);
            let of_tensor = self.limited.iter().filter(|one| first_element(one) == tensor.first_element);
            let stretches = of_tensor.map(|one| {
                let (first, length) = match kind {
                    MemoryKind::RowSecondMoment => (one.rows_first, one.rows),
                    // The index counts from the first column.
                    _ => (one.columns_first - self.room.rows as u32, one.columns),
                };
                let elements = u64::from(one.matrices) * u64::from(length);
                Stretch { in_memory: first.into(), in_tensor: 0, elements }
            });
            return stretches.collect();
        }
        let mut stretches: Vec<Stretch> = Vec::new();
        // Blocks are in the order of their elements.
        let end_of = |block: &Block| u64::from(block.first_element) + u64::from(block.elements);
        let skipped = self.blocks.partition_point(|block| end_of(block) <= tensor.first_element);
        for block in &self.blocks[skipped..] {
            let first = u64::from(block.first_element);
            let start = first.max(tensor.first_element);
            let end = end_of(block).min(tensor.first_element + tensor.elements);
            if start >= end {
                break;
            }
            let next = Stretch {
                in_memory: u64::from(block.state_quad) * u64::from(QUAD) + (start - first),
                in_tensor: start - tensor.first_element,
                elements: end - start,
            };
            match stretches.last_mut() {
                Some(last)
                    if last.in_memory + last.elements == next.in_memory
                        && last.in_tensor + last.elements == next.in_tensor =>
                {
                    last.elements += next.elements;
                }
                _ => stretches.push(next),
            }
        }
        stretches
    }
}

/// Adjacent tensors of one group, treated as one.
pub(super) struct Span {
    pub(super) place: Place,
    pub(super) first_element: u64,
    /// Kind of the rule for the tensor's shape.
    pub(super) kind: RuleKind,
    /// Work of the rule on whole tensors. Such a tensor is a span of its own.
    pub(super) work: Option<TensorWork>,
    /// Shape if rows are distinguished. Such a tensor is a span of its own, too.
    pub(super) rows: Option<Shape>,
}

impl Span {
    /// Returns true if a tensor can share blocks with this span. Blocks begin at multiples of `multiple`.
    pub(super) fn continues_with(&self, next: &Place, multiple: u32) -> bool {
        let this = &self.place;
        (next.params, next.grads) == (this.params, this.grads)
            && next.params_buffer == this.params_buffer
            && next.grads_buffer == this.grads_buffer
            && next.params_start == this.params_start + this.elements
            && next.grads_start == this.grads_start + this.elements
            && (multiple <= QUAD || this.elements.is_multiple_of(u64::from(multiple)))
    }

    /// Returns true if the span is a tensor that passes process as a whole.
    pub(super) fn is_whole(&self) -> bool {
        self.work.is_some() || self.rows.is_some()
    }

    /// Cuts the span into a head, a body that can be loaded in quads, and a tail. Each begins at a multiple of
    /// `multiple` elements of the tensor, unless `multiple` is only a quad.
    pub(super) fn pieces(&self, geometry: &Geometry, multiple: u32) -> [(Access, u64, u64); 3] {
        let quad = u64::from(QUAD);
        let Place { params_start, grads_start, elements, .. } = self.place;
        if !geometry.quads_need_alignment {
            return [(Access::Quads, 0, elements), (Access::Scalars, 0, 0), (Access::Scalars, 0, 0)];
        }
        if params_start % quad != grads_start % quad {
            return [(Access::Scalars, 0, elements), (Access::Quads, 0, 0), (Access::Scalars, 0, 0)];
        }
        if self.is_whole() {
            // A whole tensor is one piece, so that it has one place in the window's memory.
            let access = match [params_start, grads_start, elements] {
                starts if starts.iter().all(|start| start.is_multiple_of(quad)) => Access::Quads,
                _ => Access::Scalars,
            };
            return [(access, 0, elements), (Access::Quads, 0, 0), (Access::Scalars, 0, 0)];
        }
        let multiple = u64::from(multiple);
        if multiple > quad {
            // There is no head, because multiples would begin elsewhere after it.
            let body_end = match params_start.is_multiple_of(quad) {
                true if elements.is_multiple_of(quad) => elements,
                true => elements / multiple * multiple,
                false => 0,
            };
            return [(Access::Quads, 0, body_end), (Access::Scalars, body_end, elements), (Access::Scalars, 0, 0)];
        }
        let head = ((quad - params_start % quad) % quad).min(elements);
        let body_end = head + (elements - head) / quad * quad;
        [(Access::Scalars, 0, head), (Access::Quads, head, body_end), (Access::Scalars, body_end, elements)]
    }
}

/// Fills windows greedily, in the order of declaration.
pub(super) struct Windows<'a> {
    pub(super) geometry: &'a Geometry,
    pub(super) newest: HashMap<(Kernel, Access, usize, usize), usize>,
    pub(super) filling: Vec<FillingWindow>,
    /// True if all elements are loaded one by one.
    pub(super) one_by_one: bool,
}

/// Returns the region that a binding of these elements covers.
fn region(geometry: &Geometry, buffer: usize, element: Element, start: u64, elements: u64) -> Region {
    // Alignment in elements of this type. The geometry counts in f32.
    let alignment = geometry.binding_alignment * Element::F32.bytes() / element.bytes();
    Region { buffer, element, start: start / alignment * alignment, end: start + elements }
}

/// Returns true if the bindings of a window can also cover these regions.
fn binds(geometry: &Geometry, window: &Window, params: Region, grads: Region) -> bool {
    let limit = geometry.binding_elements;
    union(window.params, params).elements() <= limit && union(window.grads, grads).elements() <= limit
}

/// Windows of an optimizer whose buffers may change. Each has the memory of all tensors of one kernel, wherever they are. Blocks count
/// from the start of their tensor, and `params` and `grads` are not used.
#[derive(Debug, Clone)]
pub(crate) struct Unplaced {
    pub(crate) windows: Vec<Window>,
    pub(super) geometry: Geometry,
}

impl Unplaced {
    /// Cuts the windows into windows that can be bound: one for each pair of buffers, or several where tensors lie too far apart in them. A
    /// tensor that passes process as a whole has a window of its own, which is not cut, so that its tables remain valid.
    pub(super) fn place(&self, tensors: &[TensorInfo], places: &[Place]) -> Vec<Window> {
        let mut placed: Vec<FillingWindow> = Vec::new();
        for unplaced in &self.windows {
            // For each pair of buffers the window that is being filled, and the lead of its latest block in the window that is cut.
            let mut newest: HashMap<(usize, usize), (usize, u32)> = HashMap::new();
            for block in &unplaced.blocks {
                let first = u64::from(block.first_element);
                let place = &places[tensors.partition_point(|tensor| tensor.first_element <= first) - 1];
                let starts = (
                    place.params_start + u64::from(block.params_start),
                    place.grads_start + u64::from(block.grads_start),
                );
                let elements = u64::from(block.elements);
                let params = region(&self.geometry, place.params_buffer, place.params, starts.0, elements);
                let grads = region(&self.geometry, place.grads_buffer, place.grads, starts.1, elements);
                let key = (place.params_buffer, place.grads_buffer);
                let has_room = |&(index, _): &(usize, u32)| binds(&self.geometry, &placed[index].window, params, grads);
                let (index, last_lead) = newest.get(&key).copied().filter(has_room).unwrap_or_else(|| {
                    let window = unplaced.without_blocks(params, grads);
                    placed.push(FillingWindow { window, starts: Vec::new() });
                    (placed.len() - 1, block.lead)
                });
                let FillingWindow { window, starts: all } = &mut placed[index];
                let of_same_tensor = window.blocks.last().filter(|_| last_lead == block.lead);
                let lead = of_same_tensor.map_or(window.blocks.len() as u32, |last| last.lead);
                window.params = union(window.params, params);
                window.grads = union(window.grads, grads);
                window.blocks.push(Block { lead, ..*block });
                all.push(starts);
                newest.insert(key, (index, block.lead));
            }
        }
        placed.into_iter().map(FillingWindow::settled).collect()
    }
}

/// Window whose regions may still grow. The starts of its blocks are therefore kept absolute.
pub(super) struct FillingWindow {
    pub(super) window: Window,
    pub(super) starts: Vec<(u64, u64)>,
}

impl FillingWindow {
    /// Makes the starts of the blocks relative to the window, whose regions are final.
    fn settled(mut self) -> Window {
        let Region { start: params_start, .. } = self.window.params;
        let Region { start: grads_start, .. } = self.window.grads;
        for (block, (params, grads)) in self.window.blocks.iter_mut().zip(self.starts) {
            block.params_start = (params - params_start) as u32;
            block.grads_start = (grads - grads_start) as u32;
        }
        self.window
    }
}

impl<'a> Windows<'a> {
    pub(super) fn new(geometry: &'a Geometry) -> Self {
        Windows { geometry, newest: HashMap::new(), filling: Vec::new(), one_by_one: false }
    }

    /// Cuts a span into blocks. A tensor that passes process as a whole must fit into a window. Otherwise the error has
    /// its number of elements and the number that a window holds.
    pub(super) fn add_span(&mut self, group: usize, kernel: Kernel, span: &Span) -> Result<(), (u64, u64)> {
        // The memory of a block must also fit into a binding.
        let quad = u64::from(QUAD);
        let vectors = u64::from(kernel.vectors_in_one_binding());
        let kept = self.geometry.binding_elements / vectors / quad * quad;
        let multiple = u64::from(kernel.block_multiple());
        let block_elements = (u64::from(self.geometry.block_elements).min(kept) / multiple).max(1) * multiple;
        for (access, start, end) in span.pieces(self.geometry, kernel.block_multiple()) {
            // The same blocks, so that sums have the same bits.
            let access = if self.one_by_one { Access::Scalars } else { access };
            if span.is_whole() && start < end {
                if self.geometry.movable {
                    // Passes over whole tensors have tables that the tensors around them must not change.
                    self.newest.clear();
                }
                self.make_room(kernel, access, span, block_elements)?;
            }
            let mut at = start;
            while at < end {
                let elements = (end - at).min(block_elements);
                self.add_block(group, kernel, access, span, at, elements);
                at += elements;
            }
            if !span.is_whole() || start >= end {
                continue;
            }
            let key = self.key(kernel, access, &span.place);
            let window = &mut self.filling[self.newest[&key]].window;
            if let Some(shape) = span.rows {
                let lead = window.blocks.last().map_or(0, |block| block.lead);
                let [factors, flags] = RowTensor::words(kernel, shape);
                window.rows.push(RowTensor {
                    shape,
                    group: group as u32,
                    lead,
                    factors_first: window.row_words as u32,
                    flags_first: (window.row_words + factors) as u32,
                });
                window.row_words += factors + flags;
            }
            if let Some(work) = span.work {
                let lead = window.blocks.last().map_or(0, |block| block.lead);
                let blocks = window.blocks.len() as u32 - lead;
                let room = window.room;
                window.room = room.with(&work);
                match work {
                    TensorWork::Matrix(matrix) => {
                        let first = QUAD * window.blocks[lead as usize].state_quad;
                        let grams = window.matrices.last().map_or(0, |last| last.gram_first + last.rows * last.rows);
                        window.matrices.push(matrix.placed(first, grams, group as u32, lead, blocks));
                    }
                    TensorWork::Limited { limit, stack } => {
                        let place = [group as u32, lead, blocks];
                        window.limited.push(limited(limit, stack, room, span.place.elements, place));
                    }
                }
            }
        }
        Ok(())
    }

    /// Begins a new window if the newest has no room for a whole tensor.
    fn make_room(
        &mut self,
        kernel: Kernel,
        access: Access,
        span: &Span,
        block_elements: u64,
    ) -> Result<(), (u64, u64)> {
        let place = &span.place;
        let params = self.region(place.params_buffer, place.params, place.params_start, place.elements);
        let grads = self.region(place.grads_buffer, place.grads, place.grads_start, place.elements);
        let quads = place.elements.div_ceil(u64::from(QUAD)) as u32;
        let blocks = place.elements.div_ceil(block_elements);
        let key = self.key(kernel, access, place);
        let has_room = |window: &Window| {
            self.fits(window, params, grads, quads)
                && window.blocks.len() as u64 + blocks <= u64::from(self.geometry.dispatch_blocks)
                && span.work.iter().all(|work| window.room.with(work).largest() <= self.geometry.binding_elements)
                && span.rows.iter().all(|&shape| {
                    let table = u64::from(ROW_WORDS) * (window.blocks.len() as u64 + blocks);
                    let words = RowTensor::words(kernel, shape).iter().sum::<u64>();
                    table + window.row_words + words <= self.geometry.binding_elements
                })
        };
        let alone = Window::new(kernel, access, params, grads);
        if !has_room(&alone) || !binds(self.geometry, &alone, params, grads) {
            return Err((place.elements, self.geometry.binding_elements));
        }
        if self.newest.get(&key).is_some_and(|&index| !has_room(&self.filling[index].window)) {
            self.newest.remove(&key);
        }
        Ok(())
    }

    pub(super) fn add_block(
        &mut self,
        group: usize,
        kernel: Kernel,
        access: Access,
        span: &Span,
        at: u64,
        elements: u64,
    ) {
        let place = &span.place;
        let starts = match self.geometry.movable {
            true => (at, at),
            false => (place.params_start + at, place.grads_start + at),
        };
        let params = self.region(place.params_buffer, place.params, starts.0, elements);
        let grads = self.region(place.grads_buffer, place.grads, starts.1, elements);
        let quads = elements.next_multiple_of(u64::from(kernel.block_multiple())) as u32 / QUAD;
        let key = self.key(kernel, access, place);
        let index = match self.newest.get(&key) {
            Some(&index) if self.fits(&self.filling[index].window, params, grads, quads) => index,
            _ => {
                self.filling
                    .push(FillingWindow { window: Window::new(kernel, access, params, grads), starts: Vec::new() });
                self.newest.insert(key, self.filling.len() - 1);
                self.filling.len() - 1
            }
        };
        let FillingWindow { window, starts: all } = &mut self.filling[index];
        let of_span = |block: &&Block| u64::from(block.first_element) >= span.first_element;
        let lead = window.blocks.last().filter(of_span).map_or(window.blocks.len() as u32, |block| block.lead);
        window.params = union(window.params, params);
        window.grads = union(window.grads, grads);
        window.blocks.push(Block {
            params_start: 0, // set by `finish`
            grads_start: 0,  // set by `finish`
            state_quad: window.state_quads,
            elements: elements as u32,
            group: group as u32,
            row: 0, // set by `number_rows`
            first_element: (span.first_element + at) as u32,
            lead,
            present: 1,
        });
        all.push(starts);
        window.state_quads += quads;
    }

    /// Windows are filled one buffer at a time, unless buffers may change.
    fn key(&self, kernel: Kernel, access: Access, place: &Place) -> (Kernel, Access, usize, usize) {
        match self.geometry.movable {
            true => (kernel, access, 0, 0),
            false => (kernel, access, place.params_buffer, place.grads_buffer),
        }
    }

    pub(super) fn region(&self, buffer: usize, element: Element, start: u64, elements: u64) -> Region {
        region(self.geometry, buffer, element, start, elements)
    }

    pub(super) fn fits(&self, window: &Window, params: Region, grads: Region, quads: u32) -> bool {
        let limit = self.geometry.binding_elements;
        let vectors = u64::from(window.kernel.vectors_in_one_binding());
        let state_elements = (u64::from(window.state_quads) + u64::from(quads)) * u64::from(QUAD) * vectors;
        // Where the tensors are bound is decided later if they may move.
        (self.geometry.movable || binds(self.geometry, window, params, grads))
            && state_elements <= limit
            && window.blocks.len() < self.geometry.dispatch_blocks as usize
    }

    /// Returns the windows, whose regions are final.
    pub(super) fn finish(self) -> Vec<Window> {
        let movable = self.geometry.movable;
        let windows = self.filling.into_iter().enumerate().map(|(memory, mut filling)| {
            if movable {
                // Starts that are relative to the tensors.
                filling.window.params.start = 0;
                filling.window.grads.start = 0;
            }
            let mut window = filling.settled();
            window.memory = memory;
            for tensor in &mut window.limited {
                tensor.columns_first += window.room.rows as u32;
                tensor.means_first += (window.room.rows + window.room.columns) as u32;
            }
            window
        });
        windows.collect()
    }
}
