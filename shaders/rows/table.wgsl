// Rows and columns with their own rates, and rows that are skipped: src/rates.rs.
//
// `row_rates`: there is a factor for each row. `column_rates`: there is a factor for each column. `lazy_rows`: rows
// without a gradient are skipped.
//
// `rows` begins with ROW_WORDS words for each block, of which those of a tensor's first block are used. They are
// followed by the bits of the factors and, for each row of each tensor, by 1 if it has a gradient in this step, else 0.

import package::layout::{ROW_WORDS, COLUMNS_WORD, FACTORS_WORD, FLAGS_WORD};

@if(!marks_rows) @group(1) @binding(7) var<storage, read> rows: array<u32>;
@if(marks_rows) @group(1) @binding(7) var<storage, read_write> rows: array<u32>;

fn word_of(lead: u32, word: u32) -> u32 {
    return rows[ROW_WORDS * lead + word];
}

// Returns the factors of four elements of a tensor, from element `first` on.
@if(row_rates)
fn factors_of(lead: u32, first: u32) -> vec4<f32> {
    let row = (vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u)) / word_of(lead, COLUMNS_WORD);
    return factors_at(word_of(lead, FACTORS_WORD), row);
}

@if(column_rates)
fn factors_of(lead: u32, first: u32) -> vec4<f32> {
    let column = (vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u)) % word_of(lead, COLUMNS_WORD);
    return factors_at(word_of(lead, FACTORS_WORD), column);
}

fn factors_at(first: u32, at: vec4<u32>) -> vec4<f32> {
    // Indices past the last element are clamped.
    let last = arrayLength(&rows) - 1u;
    let place = min(vec4<u32>(first) + at, vec4<u32>(last));
    return bitcast<vec4<f32>>(vec4<u32>(rows[place.x], rows[place.y], rows[place.z], rows[place.w]));
}

@if(lazy_rows)
fn have_gradients(lead: u32, first: u32) -> vec4<bool> {
    let row = (vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u)) / word_of(lead, COLUMNS_WORD);
    let place = min(vec4<u32>(word_of(lead, FLAGS_WORD)) + row, vec4<u32>(arrayLength(&rows) - 1u));
    return vec4<u32>(rows[place.x], rows[place.y], rows[place.z], rows[place.w]) != vec4<u32>(0u);
}
