// Keeps infinities out of the parameters and the momentum. An element takes no step where its new value, or that of its momentum, would be
// outside the range of its type: finite gradients can do that by their size, by a rate or a decay that does not fit, or in 16 bits. The
// record of the step names the first such element.
//
// `measures_step`: the partial sums of the step carry it to pass 5, which writes it to the record. Otherwise this pass does.

import package::layout::{Block, Update, LARGEST_F32, NO_ELEMENT};
import package::update::moved::Moved;
import package::elements::parameters::largest_parameter;
@if(measures_step) import package::update::measure_step::watch_overflow;

@if(!measures_step) @group(2) @binding(1) var<storage, read_write> record_words: array<atomic<u32>>;

// Comparisons with a finite number, and not of bits: a compiler that takes computed numbers to be finite cannot leave them out.
fn in_range(moved: Moved) -> vec4<bool> {
    return (abs(moved.parameters) <= vec4<f32>(largest_parameter())) & (abs(moved.beside) <= vec4<f32>(LARGEST_F32));
}

// To be called where an element of the quad is out of range.
fn tell_overflow(update: Update, block: Block, quad: u32, fits: vec4<bool>) {
    var first = select(2u, 3u, fits.z);
    first = select(1u, first, fits.y);
    first = select(0u, first, fits.x);
    let key = NO_ELEMENT - (block.first_element + 4u * quad + first);
    @if(measures_step) watch_overflow(key);
    @if(!measures_step) atomicMax(&record_words[update.overflow_word], key);
}
