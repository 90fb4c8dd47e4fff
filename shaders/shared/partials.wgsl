// Where a sweep leaves its totals; what the kernel does not measure is not stored.

fn store_squares(word: u32, at: u32, squares: Squares) {
    partials[place(word, at, arrayLength(&partials))] = bitcast<u32>(squares.sum);
    partials[place(word + 1u, at, arrayLength(&partials))] = bitcast<u32>(squares.exponent);
}

fn store_partial(at: u32, t: Totals) {
    store_squares(SQUARE, at, t.square);
    if RAW_NORM {
        store_squares(RAW_SQUARE, at, t.raw_square);
    }
    if INITIAL_NORM {
        store_squares(INITIAL_SQUARE, at, t.initial_square);
    }
    if MOMENTUM || COUNTERS {
        partials[place(SLOW_DOT, at, arrayLength(&partials))] = bitcast<u32>(t.slow_dot);
        partials[place(DIRECTION_SQUARE, at, arrayLength(&partials))] = bitcast<u32>(t.direction_square);
    }
    if COUNTERS {
        partials[place(ABSOLUTE, at, arrayLength(&partials))] = bitcast<u32>(t.absolute);
        partials[place(FAST_DOT, at, arrayLength(&partials))] = bitcast<u32>(t.fast_dot);
    }
    partials[place(NONFINITE, at, arrayLength(&partials))] = t.nonfinite;
    partials[place(FIRST_NONFINITE, at, arrayLength(&partials))] = t.first_nonfinite;
}
