// Keeps infinities out of the parameters and the momentum. An element takes no step if its new value or its new
// momentum would be outside the range of its type. Finite gradients can cause this if they, the rate or the decay are
// too large, or in 16 bits. The record of the step names the first such element.
//
// `measures_step`: the partial sums of the step carry this element to pass 5, which writes it to the record.
// `whole_step`: the kernel of all passes writes it. Otherwise this pass does.

import package::layout::{Block, Update, LARGEST_F32, NO_ELEMENT};
import package::update::moved::Moved;
import package::elements::parameters::largest_parameter;

@if(!measures_step && !whole_step) @group(2) @binding(1) var<storage, read_write> record_words: array<atomic<u32>>;

// Largest value of NO_ELEMENT minus the index over the elements that this invocation left unchanged, by their place in
// the quad; 0 for none.
var<private> outside: vec4<u32>;

// The numbers are compared with a finite number, and not by their bits. A compiler that assumes that computed numbers
// are finite cannot remove these comparisons. There is no branch, because software drivers pay for a branch in every
// quad.
fn in_range(block: Block, quad: u32, moved: Moved) -> vec4<bool> {
    let fits = (abs(moved.parameters) <= vec4<f32>(largest_parameter())) & (abs(moved.beside) <= vec4<f32>(LARGEST_F32));
    let keys = vec4<u32>(NO_ELEMENT - block.first_element - 4u * quad) - vec4<u32>(0u, 1u, 2u, 3u);
    outside = max(outside, select(keys, vec4<u32>(0u), fits));
    return fits;
}

// Returns the overflow key (RawRecord.overflow_key) for the elements of this invocation.
fn overflow_key() -> u32 {
    return max(max(outside.x, outside.y), max(outside.z, outside.w));
}

@if(!measures_step && !whole_step)
fn tell_overflow(update: Update) {
    let key = overflow_key();
    if key != 0u {
        atomicMax(&record_words[update.overflow_word], key);
    }
}
