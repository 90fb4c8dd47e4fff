// Arithmetic that no scale of the loss can overflow, and logarithms that do not drift. CPU twin: src/scaled.rs.
//
// The code is scalar and runs once per group and step, so accuracy is more important than speed. WGSL's own log has an absolute
// error of up to 2^-21 near 1, which is too large for the changes of a learning rate. There are no branches, and no && and ||, which naga
// translates to branches. Compilers inline these functions some hundred times, and FXC takes several times as long for branches.

import package::layout::{Scaled, Fixed, LN_2_HIGH, LN_2_LOW};

// Scaled is mantissa * 2^exponent, with the mantissa in [1, 2), or 0 with exponent 0. It has no negative values.

// Returns 2^k, with k clamped to the range of normal f32 numbers.
fn power_of_two(k: i32) -> f32 {
    return bitcast<f32>(u32(clamp(k, -126, 127) + 127) << 23u);
}

// Returns |x| * 2^exponent for a normal x. Do not pass -y or abs(y) as x: Direct3D's compiler FXC folds both into the bit-field operation
// here, and then stops with "Invalid Bytecode: Negate modifier not allowed".
fn scaled(x: f32, exponent: i32) -> Scaled {
    let bits = bitcast<u32>(x);
    let field = (bits >> 23u) & 0xffu;
    let value = Scaled(bitcast<f32>((bits & 0x007fffffu) | 0x3f800000u), exponent + i32(field) - 127);
    return choose(value, Scaled(0.0, 0), field == 0u);
}

fn is_zero(a: Scaled) -> bool {
    return a.mantissa == 0.0;
}

// Returns `second` if the condition holds, else `first`.
fn choose(first: Scaled, second: Scaled, condition: bool) -> Scaled {
    return Scaled(
        select(first.mantissa, second.mantissa, condition),
        select(first.exponent, second.exponent, condition),
    );
}

// Returns a < b.
fn less(a: Scaled, b: Scaled) -> bool {
    let is_less = (a.exponent < b.exponent) | ((a.exponent == b.exponent) & (a.mantissa < b.mantissa));
    return select(is_less, !is_zero(b), is_zero(a) | is_zero(b));
}

fn smaller(a: Scaled, b: Scaled) -> Scaled {
    return choose(a, b, less(b, a));
}

fn larger(a: Scaled, b: Scaled) -> Scaled {
    return choose(a, b, less(a, b));
}

fn sum(a: Scaled, b: Scaled) -> Scaled {
    let exponent = max(a.exponent, b.exponent);
    let both = scaled(
        a.mantissa * power_of_two(a.exponent - exponent) + b.mantissa * power_of_two(b.exponent - exponent),
        exponent,
    );
    return choose(choose(both, a, is_zero(b)), b, is_zero(a));
}

// Returns a - b, or 0 if a < b.
fn excess_over(a: Scaled, b: Scaled) -> Scaled {
    let left = scaled(a.mantissa - b.mantissa * power_of_two(b.exponent - a.exponent), a.exponent);
    return choose(Scaled(0.0, 0), left, less(b, a));
}

// Returns a * factor for a normal, non-negative factor.
fn times(a: Scaled, factor: f32) -> Scaled {
    return product(a, scaled(factor, 0));
}

fn product(a: Scaled, b: Scaled) -> Scaled {
    return scaled(a.mantissa * b.mantissa, a.exponent + b.exponent);
}

// Returns a / b for b > 0, and 0 if a is 0.
fn quotient(a: Scaled, b: Scaled) -> Scaled {
    return choose(scaled(a.mantissa / b.mantissa, a.exponent - b.exponent), a, is_zero(a));
}

fn root(a: Scaled) -> Scaled {
    let odd = (a.exponent & 1) != 0;
    return scaled(sqrt(select(a.mantissa, 2.0 * a.mantissa, odd)), (a.exponent - select(0, 1, odd)) / 2);
}

// Converts to f32. The result saturates at the largest f32, and is 0 below the smallest normal one.
fn to_float(a: Scaled) -> f32 {
    let value = select(a.mantissa * power_of_two(a.exponent), 3.4028234e38, a.exponent > 127);
    return select(value, 0.0, is_zero(a) | (a.exponent < -126));
}

// Returns ln(a / b) to about two ulps even if a is close to b: ln r = 2 atanh((r-1)/(r+1)).
fn ln_ratio(a: Scaled, b: Scaled) -> f32 {
    let halve = a.mantissa > 1.41421356 * b.mantissa;
    let double = a.mantissa < 0.70710678 * b.mantissa;
    let x = a.mantissa * select(select(1.0, 2.0, double), 0.5, halve);
    let exponent = a.exponent - b.exponent + select(select(0, -1, double), 1, halve);
    let s = (x - b.mantissa) / (x + b.mantissa);
    let z = s * s;
    let tail = s * z * (0.666666667 + z * (0.4 + z * (0.285714286 + z * (0.222222222 + z * 0.181818182))));
    return f32(exponent) * LN_2_HIGH + (2.0 * s + (tail + f32(exponent) * LN_2_LOW));
}

// Fixed is a sum of logarithms in fixed point: value = whole + fraction / 2^32.

// Returns a + x for |x| < 2^30, to 2^-32.
fn add_float(a: Fixed, x: f32) -> Fixed {
    let magnitude = abs(x);
    let whole = i32(magnitude);
    // The product is exact. Only the part below 2^-32 is rounded.
    let parts = (magnitude - f32(whole)) * 4294967296.0;
    let fraction = u32(select(parts, floor(parts + 0.5), parts < 8388608.0));
    let more = add_fixed(a, Fixed(whole, fraction));
    let less = subtract_fixed(a, Fixed(whole, fraction));
    let is_more = x >= 0.0;
    return Fixed(select(less.whole, more.whole, is_more), select(less.fraction, more.fraction, is_more));
}

fn add_fixed(a: Fixed, b: Fixed) -> Fixed {
    let low = a.fraction + b.fraction;
    return Fixed(a.whole + b.whole + select(0, 1, low < b.fraction), low);
}

fn subtract_fixed(a: Fixed, b: Fixed) -> Fixed {
    return Fixed(a.whole - b.whole - select(0, 1, a.fraction < b.fraction), a.fraction - b.fraction);
}

fn fixed_to_float(a: Fixed) -> f32 {
    return f32(a.whole) + f32(a.fraction) * 2.3283064365386963e-10;
}

// Returns factor * a. It is computed part by part, so that a large whole part does not reduce the precision of the fraction.
fn times_fixed(a: Fixed, factor: f32) -> Fixed {
    let whole = add_float(Fixed(0, 0u), factor * f32(a.whole));
    return add_float(whole, factor * (f32(a.fraction) * 2.3283064365386963e-10));
}

// Returns ln a for a > 0.
fn ln_fixed(a: Scaled) -> Fixed {
    return ln_ratio_fixed(a, Scaled(1.0, 0));
}

// Returns ln(a / b) in fixed point. The accuracy does not depend on the ratio, and a common power of two changes no bit.
fn ln_ratio_fixed(a: Scaled, b: Scaled) -> Fixed {
    let exponent = f32(a.exponent - b.exponent);
    let whole = add_float(Fixed(0, 0u), exponent * LN_2_HIGH);
    return add_float(whole, ln_ratio(Scaled(a.mantissa, 0), Scaled(b.mantissa, 0)) + exponent * LN_2_LOW);
}

// Returns exp a for |a| < 2^8, to about two ulps.
fn exp_fixed(a: Fixed) -> Scaled {
    let k = round(fixed_to_float(a) * 1.44269504);
    // |rest| <= ln 2 / 2. Subtracting in fixed point causes no loss.
    let rest = fixed_to_float(add_float(add_float(a, -k * LN_2_HIGH), -k * LN_2_LOW));
    let tail = rest * rest * (0.5 + rest * (0.166666667 + rest * (0.0416666667 + rest * (0.00833333333
        + rest * (0.00138888889 + rest * 0.000198412698)))));
    return scaled(1.0 + (rest + tail), i32(k));
}
