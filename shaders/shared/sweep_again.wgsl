// What a sweep looks at a second time, because it rarely has to: elements whose squares f32 cannot hold, elements that are not
// finite, and the parameters before the first step. `load(what, block, quad)` is the pass's own.

// What there is to look at. Not every pass can load all of it.
const GRADIENT = 0u;      // what the regime sees: sign * g + λ w
const RAW_GRADIENT = 1u;  // sign * g
const PARAMETERS = 2u;    // w

// The sum of squares, from the plain sum and the largest magnitude; sweeps again where the plain sum cannot be trusted.
fn squares_of(what: u32, block: Block, lane: u32, largest: u32, plain: f32) -> Squares {
    if largest == 0u || largest >= INFINITY_BITS {
        return no_squares();
    }
    if largest >= SMALL_BITS && largest <= BIG_BITS {
        return Squares(plain, 0);
    }
    let exponent = clamp(i32(largest >> 23u) - 127, -126, 126);
    let scale = power_of_two(-exponent);
    var squares = vec4<f32>();
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        let x = scale * load(what, block, quad);
        squares += x * x;
    }
    return Squares(across(squares), exponent);
}

// Counts what is not finite among four elements from `first` on.
fn count_nonfinite(bits: vec4<u32>, first: u32, t: ptr<function, Totals>) {
    for (var i = 0u; i < 4u; i++) {
        if bits[i] >= INFINITY_BITS {
            (*t).nonfinite += 1u;
            (*t).first_nonfinite = min((*t).first_nonfinite, first + i);
        }
    }
}

// Counts what is not finite, and finds the first.
fn find_nonfinite(what: u32, block: Block, lane: u32, t: ptr<function, Totals>) {
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        count_nonfinite(magnitude_bits(load(what, block, quad)), block.first_element + 4u * quad, t);
    }
}

// ‖w₀‖², and what of the parameters is not finite.
fn measure_initial_norm(block: Block, lane: u32, t: ptr<function, Totals>) {
    var largest = vec4<u32>();
    var squares = vec4<f32>();
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        let w = load_parameters(block, quad);
        largest = max(largest, magnitude_bits(w));
        squares += w * w;
    }
    let magnitude = largest_of(largest);
    (*t).initial_square = squares_of(PARAMETERS, block, lane, magnitude, across(squares));
    if magnitude >= INFINITY_BITS {
        find_nonfinite(PARAMETERS, block, lane, t);
    }
}
