//! Arithmetic that no loss scale can overflow, and logarithms that do not drift. Twin of `shaders/scaled.wgsl`,
//! operation by operation.

use std::f32::consts::{LOG2_E, SQRT_2};

pub(crate) use crate::layout::numbers::{LN_2_HIGH, LN_2_LOW};
use crate::layout::{Fixed, Scaled, Squares};

/// Returns 2^k, with `k` clamped to the range of normal f32 numbers.
pub(crate) fn power_of_two(k: i32) -> f32 {
    f32::from_bits(((k.clamp(-126, 127) + 127) as u32) << 23)
}

impl Scaled {
    pub(crate) const ZERO: Scaled = Scaled { mantissa: 0.0, exponent: 0 };
    pub(crate) const ONE: Scaled = Scaled { mantissa: 1.0, exponent: 0 };

    /// Returns `|x| * 2^exponent` for a normal `x`.
    pub(crate) fn new(x: f32, exponent: i32) -> Self {
        let field = (x.to_bits() >> 23) & 0xff;
        if field == 0 {
            return Scaled::ZERO;
        }
        Scaled {
            mantissa: f32::from_bits((x.to_bits() & 0x007f_ffff) | 0x3f80_0000),
            exponent: exponent + field as i32 - 127,
        }
    }

    pub(crate) fn of_squares(squares: Squares) -> Self {
        Scaled::new(squares.sum, 2 * squares.exponent)
    }

    pub(crate) fn is_zero(self) -> bool {
        self.mantissa == 0.0
    }

    pub(crate) fn less(self, other: Self) -> bool {
        if self.is_zero() || other.is_zero() {
            return !other.is_zero();
        }
        (self.exponent, self.mantissa) < (other.exponent, other.mantissa)
    }

    pub(crate) fn smaller(self, other: Self) -> Self {
        if other.less(self) { other } else { self }
    }

    pub(crate) fn larger(self, other: Self) -> Self {
        if self.less(other) { other } else { self }
    }

    pub(crate) fn sum(self, other: Self) -> Self {
        if self.is_zero() {
            return other;
        }
        if other.is_zero() {
            return self;
        }
        let exponent = self.exponent.max(other.exponent);
        Scaled::new(
            self.mantissa * power_of_two(self.exponent - exponent)
                + other.mantissa * power_of_two(other.exponent - exponent),
            exponent,
        )
    }

    /// Returns `self - other`, or 0 if the difference is negative.
    pub(crate) fn excess_over(self, other: Self) -> Self {
        if !other.less(self) {
            return Scaled::ZERO;
        }
        Scaled::new(self.mantissa - other.mantissa * power_of_two(other.exponent - self.exponent), self.exponent)
    }

    pub(crate) fn times(self, factor: f32) -> Self {
        let factor = Scaled::new(factor, 0);
        if self.is_zero() || factor.is_zero() {
            return Scaled::ZERO;
        }
        Scaled::new(self.mantissa * factor.mantissa, self.exponent + factor.exponent)
    }

    pub(crate) fn product(self, other: Self) -> Self {
        if self.is_zero() || other.is_zero() {
            return Scaled::ZERO;
        }
        Scaled::new(self.mantissa * other.mantissa, self.exponent + other.exponent)
    }

    /// Returns `self / other` for `other` above 0.
    pub(crate) fn quotient(self, other: Self) -> Self {
        if self.is_zero() {
            return self;
        }
        Scaled::new(self.mantissa / other.mantissa, self.exponent - other.exponent)
    }

    pub(crate) fn root(self) -> Self {
        if self.exponent & 1 == 0 {
            Scaled::new(self.mantissa.sqrt(), self.exponent / 2)
        } else {
            Scaled::new((2.0 * self.mantissa).sqrt(), (self.exponent - 1) / 2)
        }
    }

    /// Converts to f32. Saturates at the largest f32, and is 0 below the smallest normal one.
    pub(crate) fn to_float(self) -> f32 {
        if self.is_zero() || self.exponent < -126 {
            0.0
        } else if self.exponent > 127 {
            f32::MAX
        } else {
            self.mantissa * power_of_two(self.exponent)
        }
    }

    /// Computes `ln(self / other)` to about two ulps, even if both are close: `ln r = 2 atanh((r-1)/(r+1))`.
    pub(crate) fn ln_ratio(self, other: Self) -> f32 {
        let mut x = self.mantissa;
        let mut exponent = self.exponent - other.exponent;
        if x > SQRT_2 * other.mantissa {
            x *= 0.5;
            exponent += 1;
        } else if x < std::f32::consts::FRAC_1_SQRT_2 * other.mantissa {
            x *= 2.0;
            exponent -= 1;
        }
        let s = (x - other.mantissa) / (x + other.mantissa);
        let z = s * s;
        let tail = s * z * (0.666_666_7 + z * (0.4 + z * (0.285_714_3 + z * (0.222_222_22 + z * 0.181_818_18))));
        exponent as f32 * LN_2_HIGH + (2.0 * s + (tail + exponent as f32 * LN_2_LOW))
    }

    /// Computes ln of a value above 0.
    pub(crate) fn ln_fixed(self) -> Fixed {
        self.ln_ratio_fixed(Scaled::ONE)
    }

    /// Computes `ln(self / other)` in fixed point. The distance of the two does not affect the accuracy, and a common
    /// power of two changes no bit.
    pub(crate) fn ln_ratio_fixed(self, other: Self) -> Fixed {
        let mantissa = |of: Self| Scaled { exponent: 0, ..of };
        let exponent = (self.exponent - other.exponent) as f32;
        Fixed::default()
            .add_float(exponent * LN_2_HIGH)
            .add_float(mantissa(self).ln_ratio(mantissa(other)) + exponent * LN_2_LOW)
    }
}

impl Fixed {
    fn from_bits(bits: i64) -> Self {
        Fixed { whole: (bits >> 32) as i32, fraction: bits as u32 }
    }

    fn bits(self) -> i64 {
        i64::from(self.whole) << 32 | i64::from(self.fraction)
    }

    /// Returns `self + x` for |x| < 2^30, accurate to 2⁻³².
    pub(crate) fn add_float(self, x: f32) -> Self {
        // Scaling by 2^32 is exact. Only digits below 2^-32 are rounded, half away from zero.
        let steps = (f64::from(x) * 4_294_967_296.0).round() as i64;
        Fixed::from_bits(self.bits().saturating_add(steps))
    }

    pub(crate) fn add(self, other: Self) -> Self {
        Fixed::from_bits(self.bits().saturating_add(other.bits()))
    }

    pub(crate) fn subtract(self, other: Self) -> Self {
        Fixed::from_bits(self.bits().saturating_sub(other.bits()))
    }

    pub(crate) fn to_float(self) -> f32 {
        self.whole as f32 + self.fraction as f32 * 2.328_306_4e-10
    }

    /// Computes `factor * self`, part by part, so that a large whole part does not cost the fraction its digits.
    pub(crate) fn times(self, factor: f32) -> Self {
        Fixed::default()
            .add_float(factor * self.whole as f32)
            .add_float(factor * (self.fraction as f32 * 2.328_306_4e-10))
    }

    /// Computes exp of a value below 2^8 in magnitude, to about two ulps.
    pub(crate) fn exp(self) -> Scaled {
        let k = (self.to_float() * LOG2_E).round_ties_even();
        // |rest| <= ln 2 / 2. The subtraction in fixed point is exact.
        let rest = self.add_float(-k * LN_2_HIGH).add_float(-k * LN_2_LOW).to_float();
        let tail = rest
            * rest
            * (0.5
                + rest
                    * (0.166_666_67
                        + rest
                            * (0.041_666_668
                                + rest * (0.008_333_334 + rest * (0.001_388_888_9 + rest * 0.000_198_412_7)))));
        Scaled::new(1.0 + (rest + tail), k as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An f32 loses the fraction of a value with a large whole part. `rest` of `exp` is small and keeps it.
    #[test]
    fn fixed_point_adds_and_subtracts_exactly() {
        let a = Fixed::default().add_float(-4.625).add_float(1e-9);
        assert_eq!(a.whole, -5);
        assert_eq!(a.fraction, 0x6000_0004); // 0.375 and 4 * 2^-32
        assert_eq!(a.subtract(a), Fixed::default());
        assert_eq!(a.add(Fixed::default().add_float(4.625)).bits(), 4);
    }

    #[test]
    fn exp_is_within_two_ulps() {
        for step in -5000..5000 {
            let x = step as f32 * 0.0137;
            let exact = f64::from(x).exp();
            let got = Fixed::default().add_float(x).exp();
            let got = f64::from(got.mantissa) * f64::from(got.exponent).exp2();
            // Fixed point represents x to 2^-33.
            assert!((got / exact - 1.0).abs() <= 2.0 * f64::from(f32::EPSILON), "exp {x}: {got} against {exact}");
        }
    }

    #[test]
    fn ln_ratio_is_within_three_ulps_also_near_one() {
        for step in 1..4000 {
            for near in [1.0 + f64::from(step) * 1e-6, 1.0007_f64.powi(step * 20)] {
                if near > 1e36 {
                    continue;
                }
                let (a, b) = (near as f32 * 1.3, 1.3f32);
                let exact = (f64::from(a) / f64::from(b)).ln();
                let got = f64::from(Scaled::new(a, 0).ln_ratio(Scaled::new(b, 0)));
                assert!(
                    (got - exact).abs() <= 3.0 * f64::from(f32::EPSILON) * exact.abs(),
                    "ln {a}/{b}: {got} against {exact}"
                );
            }
        }
    }

    #[test]
    fn floats_saturate_at_both_ends() {
        let least = 1.5 * f32::MIN_POSITIVE;
        for (exponent, float) in [(-300, 0.0), (-127, 0.0), (-126, least), (0, 1.5), (128, f32::MAX), (300, f32::MAX)] {
            assert_eq!(Scaled { mantissa: 1.5, exponent }.to_float(), float, "1.5 * 2^{exponent}");
        }
    }

    #[test]
    fn roots_and_sums_keep_any_scale() {
        for exponent in [-260, -127, -1, 0, 1, 99, 260] {
            let x = Scaled { mantissa: 1.5, exponent };
            let square = Scaled::new(1.5 * 1.5, 2 * exponent);
            assert_eq!(square.root(), x);
            assert_eq!(x.sum(Scaled::ZERO), x);
            assert_eq!(x.sum(x), Scaled { mantissa: 1.5, exponent: exponent + 1 });
        }
    }
}
