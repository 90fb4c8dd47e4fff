// Where a sweep leaves its totals; what the kernel does not measure is not stored.

fn store_squares(word: u32, at: u32, squares: Squares) {
    partials[word * PARTIALS + at] = bitcast<u32>(squares.sum);
    partials[(word + 1u) * PARTIALS + at] = bitcast<u32>(squares.exponent);
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
        partials[SLOW_DOT * PARTIALS + at] = bitcast<u32>(t.slow_dot);
        partials[DIRECTION_SQUARE * PARTIALS + at] = bitcast<u32>(t.direction_square);
    }
    if COUNTERS {
        partials[ABSOLUTE * PARTIALS + at] = bitcast<u32>(t.absolute);
        partials[FAST_DOT * PARTIALS + at] = bitcast<u32>(t.fast_dot);
    }
    partials[NONFINITE * PARTIALS + at] = t.nonfinite;
    partials[FIRST_NONFINITE * PARTIALS + at] = t.first_nonfinite;
}
