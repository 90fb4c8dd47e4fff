// Second sweeps, which are rarely needed: over elements whose squares f32 cannot hold, elements that are not finite, and the parameters
// before the first step. The pass defines `load(what, block, quad)`, which returns four elements, and `loaded(what, block, quad)`, which
// returns the magnitude bits, as they were loaded, of all numbers from which these elements are computed.
//
// Whether a number is finite is decided on bits that no arithmetic has touched. Drivers may compile floats as if there were neither NaN nor
// infinities (Metal's fast math, which wgpu does not turn off). A compiler that assumes that a product is finite removes a test of the
// product's exponent, and the step would be taken.

import package::layout::{Block, Squares, INFINITY_BITS, MAGNITUDE_BITS, SMALL_BITS, BIG_BITS};
import package::elements::parameters::bits_of_parameters;
import package::geometry::WORKGROUP;
import package::reduce_gradient::{load, loaded};
import package::reduction::scaled_squares::{across, largest_of, magnitude_bits};
import package::reduction::totals::{Totals, no_squares};
import package::scaled::power_of_two;

// Values of `what`.
const GRADIENT = 0u;      // what the regime sees: sign * g + λ w
const RAW_GRADIENT = 1u;  // sign * g
const PARAMETERS = 2u;    // w

// Returns the sum of squares, from the plain sum and the largest magnitude. Sweeps again if the plain sum is not valid.
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

// Counts elements that are not finite, and finds the first. It must be called only if there is such an element.
fn find_nonfinite(what: u32, block: Block, lane: u32, t: ptr<function, Totals>) {
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        // If the loaded bits are finite and the computed number is not, the computation overflowed.
        let bits = max(loaded(what, block, quad), magnitude_bits(load(what, block, quad)));
        for (var i = 0u; i < 4u; i++) {
            if bits[i] >= INFINITY_BITS {
                (*t).nonfinite += 1u;
                (*t).first_nonfinite = min((*t).first_nonfinite, block.first_element + 4u * quad + i);
            }
        }
    }
    // An element overflowed, but the compiler has removed the test that would count it. The block's first element is reported instead.
    if (*t).nonfinite == 0u {
        (*t).nonfinite = 1u;
        (*t).first_nonfinite = block.first_element;
    }
}

// Measures ‖w₀‖², and counts parameters that are not finite.
fn measure_initial_norm(block: Block, lane: u32, t: ptr<function, Totals>) {
    var largest = vec4<u32>(0u);
    var squares = vec4<f32>();
    for (var quad = lane; 4u * quad < block.elements; quad += WORKGROUP) {
        let bits = bits_of_parameters(block, quad);
        largest = max(largest, bits & vec4<u32>(MAGNITUDE_BITS));
        let w = bitcast<vec4<f32>>(bits);
        squares += w * w;
    }
    let magnitude = largest_of(largest);
    (*t).initial_square = squares_of(PARAMETERS, block, lane, magnitude, across(squares));
    if magnitude >= INFINITY_BITS {
        find_nonfinite(PARAMETERS, block, lane, t);
    }
}
