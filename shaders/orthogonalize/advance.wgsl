// End of a Newton–Schulz iteration, for orthogonalize/multiply.wgsl. It computes the product P X, with P = b A + c A²
// from orthogonalize/gram.wgsl, and stores a X + P X. With the feature `last`, the result is multiplied by the factor
// of the direction.

import package::layout::Matrix;
import package::orthogonalize::matrices::{Number, place_of};

@group(1) @binding(0) var<storage, read> polynomial: array<Number>;
@group(1) @binding(1) var<storage, read> iterate: array<Number>;
@if(last) @group(1) @binding(2) var<storage, read_write> next: array<f32>;
@if(!last) @group(1) @binding(2) var<storage, read_write> next: array<Number>;

fn inner_length(m: Matrix) -> u32 {
    return m.rows;
}

// The matrix is symmetric. Its columns are read, because their elements are adjacent for the quads.
fn polynomial_element(m: Matrix, row: u32, step: u32) -> f32 {
    if row < m.rows && step < m.rows {
        return f32(polynomial[m.gram_first + step * m.rows + row]);
    }
    return 0.0;
}

fn left_quad(m: Matrix, row: u32, step: u32) -> vec4<f32> {
    return vec4<f32>(
        polynomial_element(m, row, step),
        polynomial_element(m, row + 1u, step),
        polynomial_element(m, row + 2u, step),
        polynomial_element(m, row + 3u, step),
    );
}

fn iterate_element(m: Matrix, step: u32, column: u32) -> f32 {
    if step < m.rows && column < m.columns {
        return f32(iterate[place_of(m, step, column)]);
    }
    return 0.0;
}

fn right_quad(m: Matrix, column: u32, step: u32) -> vec4<f32> {
    return vec4<f32>(
        iterate_element(m, step, column),
        iterate_element(m, step, column + 1u),
        iterate_element(m, step, column + 2u),
        iterate_element(m, step, column + 3u),
    );
}

fn left_steps_are_neighbours(m: Matrix) -> bool {
    return false;
}

fn right_steps_are_neighbours(m: Matrix) -> bool {
    return m.transposed != 0u;
}

fn store(m: Matrix, row: u32, column: u32, sum: f32) {
    if row < m.rows && column < m.columns {
        let at = place_of(m, row, column);
        let advanced = m.a * f32(iterate[at]) + sum;
        @if(last) next[at] = m.scale * advanced;
        @if(!last) next[at] = Number(advanced);
    }
}
