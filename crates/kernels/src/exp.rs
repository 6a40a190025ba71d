//! `e^x`, eight at a time, within 1e-7 of the true value.

use crate::lanes::Lanes;

/// ln 2 in two parts: the first has few bits, so that `n * LN_2_HIGH` is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -0.000_212_194_44;

/// `Q` in `e^r = 1 + r + r² Q(r)`, interpolated at the Chebyshev nodes of |r| <= ln 2 / 2: off by 1e-8 at most.
const Q: [f32; 5] = [0.5, 0.166_665_78, 0.041_666_556, 0.008_363_173, 0.001_392_617_6];

/// `e^x` in every lane. Infinity past 88.8, zero under -104, gradual underflow between; NaN stays NaN.
///
/// `x = n ln 2 + r`, and `e^x = 2^n e^r`.
#[inline(always)]
pub(crate) fn exp<V: Lanes>(x: V) -> V {
    // The limits come first: of two operands one of which is NaN, `max` and `min` give the second.
    let x = V::splat(90.0).min(V::splat(-110.0).max(x));
    let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
    let n_float = V::from_int(n);
    let r = n_float.fma(V::splat(-LN_2_LOW), n_float.fma(V::splat(-LN_2_HIGH), x));
    let mut q = V::splat(Q[4]);
    for &c in Q[..4].iter().rev() {
        q = q.fma(r, V::splat(c));
    }
    q.fma(r.mul(r), r).add(V::splat(1.0)).scale_by_power_of_two(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::{Instructions, Kernel};

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
            let x: [f32; 8] = std::array::from_fn(|i| (step * 8 + i) as f32 * 2e-4 - 75.0);
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
        let x = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 89.0, -105.0, -100.0, f32::NAN];
        for instructions in [Instructions::best(), Instructions::Portable] {
            let y = instructions.run(Exp(x));
            assert_eq!(y[..6], [1.0, 1.0, f32::INFINITY, 0.0, f32::INFINITY, 0.0]);
            assert!((y[6] - (-100f32).exp()).abs() <= f32::from_bits(1));
            assert!(y[7].is_nan());
        }
    }
}
