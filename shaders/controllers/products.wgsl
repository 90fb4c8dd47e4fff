// Inner products over the elements of a tensor, or of a part of one, for controllers: a pair of sums for each row of elements.
//
// `distance`: Σ (x - z)² and 0. `product`: Σ g x and 0. `along`: Σ g x and Σ g (x - z). x are parameters, z a copy of them, g gradients.
//
// Reads:  part, parameters; their copy, except with `product`; gradients, except with `distance`.
// Writes: rows.
// Grid:   one workgroup of WORKGROUP invocations for each row of PRODUCT_ROW elements; invocation i takes elements i, i + WORKGROUP, ….
//
// CPU twin: src/controllers/products.rs.

import package::controllers::lanes::add_up_lanes;
import package::elements::half::widened_bits;
import package::geometry::WORKGROUP;
import package::layout::{ProductPart, PRODUCT_ROW};

// Element type of x: 0 for f32, else a number of elements/half.wgsl.
override X_IS: u32;
override G_IS: u32;

@group(0) @binding(0) var<storage, read_write> rows: array<vec2<f32>>;
@group(0) @binding(1) var<uniform> part: ProductPart;
@group(0) @binding(2) var<storage, read> parameters: array<u32>;
@if(!product) @group(0) @binding(3) var<storage, read> copies: array<u32>;
@if(!distance) @group(0) @binding(4) var<storage, read> gradients: array<u32>;

// Returns the index of the word that contains element i, for an element type and a first word.
fn word_at(element: u32, first: u32, i: u32) -> u32 {
    return first + select(i / 2u, i, element == 0u);
}

fn value_of(element: u32, word: u32, i: u32) -> f32 {
    if element == 0u {
        return bitcast<f32>(word);
    }
    let code = (word >> (16u * (i & 1u))) & 0xffffu;
    return bitcast<f32>(widened_bits(element, vec4<u32>(code)).x);
}

@compute @workgroup_size(WORKGROUP)
fn products(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = workgroup.x * PRODUCT_ROW;
    let end = min(first + PRODUCT_ROW, part.elements);
    var own = vec2<f32>();
    for (var i = first + lane; i < end; i += WORKGROUP) {
        let x = value_of(X_IS, parameters[word_at(X_IS, part.parameters_word, i)], i);
        @if(!product) let moved = x - value_of(X_IS, copies[word_at(X_IS, 0u, i)], i);
        @if(!distance) let g = value_of(G_IS, gradients[word_at(G_IS, part.gradients_word, i)], i);
        @if(distance) own.x += moved * moved;
        @if(!distance) own.x += g * x;
        @if(along) own.y += g * moved;
    }
    let total = add_up_lanes(lane, own);
    if lane == 0u {
        rows[part.row + workgroup.x] = total;
    }
}
