// Declarations that Adafactor's passes and the update pass share.
//
// `factored`: second moments are kept for rows and columns.
//
// A tensor with factored moments is a stack of matrices. `moments` holds the second moments of the rows of all tensors,
// then those of their columns, then the mean of each matrix's rows.

import package::layout::{Block, FactoredTensor};

// A tensor's entry is at the index of its first block.
@group(1) @binding(6) var<storage, read> tensors: array<FactoredTensor>;
@if(factored) @group(1) @binding(3) var<storage, read> moments: array<f32>;

// Returns the second moments of four elements of a tensor, from element `first` on.
@if(factored)
fn second_moments(t: FactoredTensor, epsilon: f32, first: u32) -> vec4<f32> {
    return vec4<f32>(
        second_moment(t, epsilon, first),
        second_moment(t, epsilon, first + 1u),
        second_moment(t, epsilon, first + 2u),
        second_moment(t, epsilon, first + 3u),
    );
}

@if(factored)
fn second_moment(t: FactoredTensor, epsilon: f32, element: u32) -> f32 {
    // Indices past the last element are clamped.
    let at = min(element, t.elements - 1u);
    let row = at / t.columns;
    let matrix = row / t.rows;
    let of_row = moments[t.rows_first + row] / max(moments[t.means_first + matrix], epsilon);
    return of_row * moments[t.columns_first + matrix * t.columns + (at - row * t.columns)];
}
