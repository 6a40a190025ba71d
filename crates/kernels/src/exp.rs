//! `e^x`, some at a time, within 1e-7 of the true value.

use crate::lanes::Vector;

/// ln 2 in two parts: the first has few bits, so that `n * LN_2_HIGH` is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -0.000_212_194_44;

/// `e^r = Σ_i C_i r^i` for |r| <= ln 2 / 2, off by 1e-8 at most: 1, r, and an interpolation at the Chebyshev nodes.
const C: [f32; 7] = [1.0, 1.0, 0.5, 0.166_665_78, 0.041_666_556, 0.008_363_173, 0.001_392_617_6];

/// Added to a number below 2^22 in size, it leaves the nearest integer, plus 127, in the low bits.
const ROUNDER: f32 = 12_582_912.0 + 127.0;

/// The largest number whose power is computed: `e^88.37 = 2.4e38`.
const MOST: f32 = 88.37;
/// The smallest: powers below, which are under 1.2e-38, are zero.
const LEAST: f32 = -87.33;

/// `e^x` in every lane, for `x` up to 88.37, as which larger ones count; zero below -87.33; NaN of NaN.
///
/// `x = n ln 2 + r`, and `e^x = 2^n e^r`.
#[inline(always)]
pub(crate) fn exp<V: Vector>(x: V) -> V {
    // The limit comes first: of two operands one of which is NaN, `min` gives the second.
    let x = V::splat(MOST).min(x);
    let rounded = x.fma(V::splat(std::f32::consts::LOG2_E), V::splat(ROUNDER));
    let n = rounded.sub(V::splat(ROUNDER));
    let r = n.fma(V::splat(-LN_2_LOW), n.fma(V::splat(-LN_2_HIGH), x));
    let mut sum = V::splat(C[6]);
    for &c in C[..6].iter().rev() {
        sum = sum.fma(r, V::splat(c));
    }
    sum.mul(rounded.low_bits_to_exponent()).zero_where_less(x, V::splat(LEAST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::{Instructions, Kernel, Lanes};

    struct Exp([f32; 8]);

    impl Kernel for Exp {
        type Output = [f32; 8];
        #[inline(always)]
        fn run<V: Lanes>(self) -> [f32; 8] {
            // SAFETY: eight floats.
            exp(unsafe { V::load(self.0.as_ptr()) }).to_array()
        }
    }

    /// f32 rounds to 6e-8; the rest is the polynomial.
    #[test]
    fn exp_is_within_1e_7_and_the_same_on_all_instructions() {
        for step in 0..100_000 {
            let x: [f32; 8] = std::array::from_fn(|i| (step * 8 + i) as f32 * 2.1e-4 - 87.0);
            let y = Instructions::best().run(Exp(x));
            assert_eq!(y.map(f32::to_bits), Instructions::Portable.run(Exp(x)).map(f32::to_bits));
            for (x, y) in x.into_iter().zip(y) {
                let error = y as f64 / (x as f64).exp() - 1.0;
                assert!(error.abs() < 1e-7, "e^{x} = {y}: {error:e}");
            }
        }
    }

    #[test]
    fn exp_of_hard_numbers() {
        let x = [0.0, -0.0, 88.0, f32::NEG_INFINITY, -88.0, -105.0, f32::INFINITY, f32::NAN];
        for instructions in [Instructions::best(), Instructions::Portable] {
            let y = instructions.run(Exp(x));
            assert_eq!([y[0], y[1], y[3], y[4], y[5]], [1.0, 1.0, 0.0, 0.0, 0.0]);
            assert!((y[2] as f64 / 88f64.exp() - 1.0).abs() < 1e-7 && y[6] > 2e38 && y[7].is_nan(), "{y:?}");
        }
    }
}
