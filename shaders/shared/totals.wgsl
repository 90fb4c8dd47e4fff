// What one invocation, one block or one scope has measured: ScopeSums, in the making.

alias Totals = ScopeSums;

fn no_totals() -> Totals {
    return Totals(array<f32, 3>(), array<f32, 3>(), array<f32, 3>(), 0.0, 0.0, 0.0, 0.0, 0u, NO_ELEMENT);
}

fn add_ranges(a: array<f32, 3>, b: array<f32, 3>) -> array<f32, 3> {
    return array<f32, 3>(a[0] + b[0], a[1] + b[1], a[2] + b[2]);
}

fn add_totals(a: Totals, b: Totals) -> Totals {
    return Totals(
        add_ranges(a.square, b.square),
        add_ranges(a.raw_square, b.raw_square),
        add_ranges(a.initial_square, b.initial_square),
        a.absolute + b.absolute,
        a.slow_dot + b.slow_dot,
        a.fast_dot + b.fast_dot,
        a.direction_square + b.direction_square,
        a.nonfinite + b.nonfinite,
        min(a.first_nonfinite, b.first_nonfinite),
    );
}
