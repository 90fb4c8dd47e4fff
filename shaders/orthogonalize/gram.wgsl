// Products of a matrix and its transpose, for orthogonalize/multiply.wgsl. They are symmetric: only tiles on and above
// the diagonal are computed, and each element above it is stored on both sides.
//
// Without `polynomial`, source is X, and A = X Xᵀ is stored. With `polynomial`, source is A, and b A + c A Aᵀ is
// stored, which is b A + c A².

import package::layout::Matrix;
import package::orthogonalize::matrices::Number;
@if(!polynomial) import package::orthogonalize::matrices::place_of;

@group(1) @binding(0) var<storage, read> source: array<Number>;
@group(1) @binding(1) var<storage, read_write> product: array<Number>;

fn inner_length(m: Matrix) -> u32 {
    @if(!polynomial) return m.columns;
    @if(polynomial) return m.rows;
}

fn element(m: Matrix, row: u32, step: u32) -> f32 {
    if row < m.rows && step < inner_length(m) {
        @if(!polynomial) return f32(source[place_of(m, row, step)]);
        // The matrix is symmetric. Its columns are read, because their elements are adjacent for the quads.
        @if(polynomial) return f32(source[m.gram_first + step * m.rows + row]);
    }
    return 0.0;
}

fn left_quad(m: Matrix, row: u32, step: u32) -> vec4<f32> {
    return vec4<f32>(
        element(m, row, step), element(m, row + 1u, step), element(m, row + 2u, step), element(m, row + 3u, step),
    );
}

// A column of the transpose is a row.
fn right_quad(m: Matrix, column: u32, step: u32) -> vec4<f32> {
    return left_quad(m, column, step);
}

fn left_steps_are_neighbours(m: Matrix) -> bool {
    @if(!polynomial) return m.transposed == 0u;
    @if(polynomial) return false;
}

fn right_steps_are_neighbours(m: Matrix) -> bool {
    return left_steps_are_neighbours(m);
}

fn store(m: Matrix, row: u32, column: u32, sum: f32) {
    if row <= column && column < m.rows {
        let at = m.gram_first + row * m.rows + column;
        @if(!polynomial) let value = sum;
        @if(polynomial) let value = m.b * f32(source[at]) + m.c * sum;
        product[at] = Number(value);
        product[m.gram_first + column * m.rows + row] = Number(value);
    }
}
