// Sums of one invocation, one block or one scope, from which ScopeSums is made.

import package::layout::{ScopeSums, Squares, NO_ELEMENT, PARTIAL_WORDS};

alias Totals = ScopeSums;

// Returns the index of word `word` of partial `at` in an array of `words` words: first come all partials' words 0, then all words 1, and so on.
fn place(word: u32, at: u32, words: u32) -> u32 {
    return word * (words / PARTIAL_WORDS) + at;
}

fn no_squares() -> Squares {
    return Squares(0.0, 0);
}

fn no_totals() -> Totals {
    return Totals(no_squares(), no_squares(), no_squares(), 0.0, 0.0, 0.0, 0.0, 0u, NO_ELEMENT, 0.0);
}

// Rounds once, like an f32 with an unbounded exponent. Scaling every gradient by a power of two therefore changes no bit of the
// sum. The loss by underflow is below 2^-100 of the other term.
fn add_squares(a: Squares, b: Squares) -> Squares {
    if a.exponent == b.exponent {
        return Squares(a.sum + b.sum, a.exponent);
    }
    if a.sum == 0.0 {
        return b;
    }
    if b.sum == 0.0 {
        return a;
    }
    let exponent = max(a.exponent, b.exponent);
    return Squares(
        a.sum * quarter_to_the(exponent - a.exponent) + b.sum * quarter_to_the(exponent - b.exponent),
        exponent,
    );
}

// Returns 4^-k for k >= 0, or 0 if that is too small for f32.
fn quarter_to_the(k: i32) -> f32 {
    if k > 63 {
        return 0.0;
    }
    return bitcast<f32>(u32(127 - 2 * k) << 23u);
}

fn add_totals(a: Totals, b: Totals) -> Totals {
    return Totals(
        add_squares(a.square, b.square),
        add_squares(a.raw_square, b.raw_square),
        add_squares(a.initial_square, b.initial_square),
        a.absolute + b.absolute,
        a.slow_dot + b.slow_dot,
        a.fast_dot + b.fast_dot,
        a.direction_square + b.direction_square,
        a.nonfinite + b.nonfinite,
        min(a.first_nonfinite, b.first_nonfinite),
        0.0,
    );
}
