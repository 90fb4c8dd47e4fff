// Arithmetic that no scale of the loss can overflow, and logarithms that do not drift. CPU twin: src/cpu/scaled.rs.
//
// Everything here is scalar and runs once per group and step, so that it is written for accuracy: WGSL's own log is only good
// to 2^-21 absolute near 1, where the changes of a learning rate live.

// value = mantissa * 2^exponent, mantissa in [1, 2), or 0 with exponent 0. Only values of 0 and above.
struct Scaled {
    mantissa: f32,
    exponent: i32,
}

// ln 2 in two parts: a whole exponent times the first is exact.
const LN_2_HIGH = 0.693145751953125;
const LN_2_LOW = 1.42860677e-6;

// 2^k; k is clamped to what a normal f32 can hold.
fn power_of_two(k: i32) -> f32 {
    return bitcast<f32>(u32(clamp(k, -126, 127) + 127) << 23u);
}

// |x| * 2^exponent for a normal x. x is never given with a minus: Direct3D's compiler FXC folds a negation into the bit field that is taken
// here, and then stops with "Invalid Bytecode: Negate modifier not allowed".
fn scaled(x: f32, exponent: i32) -> Scaled {
    let bits = bitcast<u32>(x);
    let field = (bits >> 23u) & 0xffu;
    if field == 0u {
        return Scaled(0.0, 0);
    }
    return Scaled(bitcast<f32>((bits & 0x007fffffu) | 0x3f800000u), exponent + i32(field) - 127);
}

fn is_zero(a: Scaled) -> bool {
    return a.mantissa == 0.0;
}

// a < b
fn less(a: Scaled, b: Scaled) -> bool {
    if is_zero(a) || is_zero(b) {
        return !is_zero(b);
    }
    return a.exponent < b.exponent || (a.exponent == b.exponent && a.mantissa < b.mantissa);
}

fn smaller(a: Scaled, b: Scaled) -> Scaled {
    if less(b, a) {
        return b;
    }
    return a;
}

fn larger(a: Scaled, b: Scaled) -> Scaled {
    if less(a, b) {
        return b;
    }
    return a;
}

fn sum(a: Scaled, b: Scaled) -> Scaled {
    if is_zero(a) {
        return b;
    }
    if is_zero(b) {
        return a;
    }
    let exponent = max(a.exponent, b.exponent);
    return scaled(
        a.mantissa * power_of_two(a.exponent - exponent) + b.mantissa * power_of_two(b.exponent - exponent),
        exponent,
    );
}

// a * factor for a normal, non-negative factor.
fn times(a: Scaled, factor: f32) -> Scaled {
    let f = scaled(factor, 0);
    if is_zero(a) || is_zero(f) {
        return Scaled(0.0, 0);
    }
    return scaled(a.mantissa * f.mantissa, a.exponent + f.exponent);
}

fn product(a: Scaled, b: Scaled) -> Scaled {
    if is_zero(a) || is_zero(b) {
        return Scaled(0.0, 0);
    }
    return scaled(a.mantissa * b.mantissa, a.exponent + b.exponent);
}

// a / b for b above 0.
fn quotient(a: Scaled, b: Scaled) -> Scaled {
    if is_zero(a) {
        return a;
    }
    return scaled(a.mantissa / b.mantissa, a.exponent - b.exponent);
}

fn root(a: Scaled) -> Scaled {
    if (a.exponent & 1) == 0 {
        return scaled(sqrt(a.mantissa), a.exponent / 2);
    }
    return scaled(sqrt(2.0 * a.mantissa), (a.exponent - 1) / 2);
}

// As an f32; saturates at the largest one, and is 0 below the smallest normal one.
fn to_float(a: Scaled) -> f32 {
    if is_zero(a) || a.exponent < -126 {
        return 0.0;
    }
    if a.exponent > 127 {
        return 3.4028234e38;
    }
    return a.mantissa * power_of_two(a.exponent);
}

// ln(a / b) to about two ulps even where a is close to b: ln r = 2 atanh((r-1)/(r+1)).
fn ln_ratio(a: Scaled, b: Scaled) -> f32 {
    var x = a.mantissa;
    var exponent = a.exponent - b.exponent;
    if x > 1.41421356 * b.mantissa {
        x = 0.5 * x;
        exponent += 1;
    } else if x < 0.70710678 * b.mantissa {
        x = 2.0 * x;
        exponent -= 1;
    }
    let s = (x - b.mantissa) / (x + b.mantissa);
    let z = s * s;
    let tail = s * z * (0.666666667 + z * (0.4 + z * (0.285714286 + z * (0.222222222 + z * 0.181818182))));
    return f32(exponent) * LN_2_HIGH + (2.0 * s + (tail + f32(exponent) * LN_2_LOW));
}

// A sum of logarithms in fixed point: value = whole + fraction / 2^32.
struct Fixed {
    whole: i32,
    fraction: u32,
}

// a + x for |x| < 2^30, to 2^-32.
fn add_float(a: Fixed, x: f32) -> Fixed {
    let magnitude = abs(x);
    let whole = i32(magnitude);
    // The product is exact; only what lies below 2^-32 is rounded.
    let parts = (magnitude - f32(whole)) * 4294967296.0;
    let fraction = u32(select(parts, floor(parts + 0.5), parts < 8388608.0));
    if x >= 0.0 {
        let low = a.fraction + fraction;
        return Fixed(a.whole + whole + select(0, 1, low < fraction), low);
    }
    return Fixed(a.whole - whole - select(0, 1, a.fraction < fraction), a.fraction - fraction);
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

// factor * a, part by part, so that a large whole part does not cost the fraction its digits.
fn times_fixed(a: Fixed, factor: f32) -> Fixed {
    let whole = add_float(Fixed(0, 0u), factor * f32(a.whole));
    return add_float(whole, factor * (f32(a.fraction) * 2.3283064365386963e-10));
}

// ln a for a above 0.
fn ln_fixed(a: Scaled) -> Fixed {
    return ln_ratio_fixed(a, Scaled(1.0, 0));
}

// ln(a / b) in fixed point: how far apart the two are costs no accuracy, and a power of two in both changes no bit.
fn ln_ratio_fixed(a: Scaled, b: Scaled) -> Fixed {
    let exponent = f32(a.exponent - b.exponent);
    let whole = add_float(Fixed(0, 0u), exponent * LN_2_HIGH);
    return add_float(whole, ln_ratio(Scaled(a.mantissa, 0), Scaled(b.mantissa, 0)) + exponent * LN_2_LOW);
}

// exp a for |a| < 2^8, to about two ulps.
fn exp_fixed(a: Fixed) -> Scaled {
    let k = round(fixed_to_float(a) * 1.44269504);
    // |rest| <= ln 2 / 2; subtracting in fixed point loses nothing.
    let rest = fixed_to_float(add_float(add_float(a, -k * LN_2_HIGH), -k * LN_2_LOW));
    let tail = rest * rest * (0.5 + rest * (0.166666667 + rest * (0.0416666667 + rest * (0.00833333333
        + rest * (0.00138888889 + rest * 0.000198412698)))));
    return scaled(1.0 + (rest + tail), i32(k));
}
