//! RMS norm: `y = x / sqrt(mean(x²) + eps) · weight`, in f32.

use crate::lanes::{Instructions, Kernel, LANES, Lanes};

/// Norms one row: `x`, `weight` and `out` are `[dim]`.
///
/// # Panics
/// If the lengths differ.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "a norm's input, weight and output have one length");
    Instructions::best().run(RmsNorm { x, weight, eps, out });
}

/// `x += delta`, unless that is empty, and then the norm. All `[dim]`.
pub(crate) struct AddNorm<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) delta: &'a [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
    pub(crate) out: &'a mut [f32],
}

impl Kernel for AddNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let AddNorm { x, delta, weight, eps, out } = self;
        x.iter_mut().zip(delta).for_each(|(x, delta)| *x += delta);
        RmsNorm { x, weight, eps, out }.run::<V>();
    }
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let mean = sum_of_squares::<V>(self.x) / self.x.len() as f32;
        let scale = 1.0 / (mean + self.eps).sqrt();
        for ((y, x), weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *y = weight * (x * scale);
        }
    }
}

/// Sum of squares in 32 running sums, the tail in one: an order that depends on the length alone.
#[inline(always)]
fn sum_of_squares<V: Lanes>(x: &[f32]) -> f32 {
    let mut sums = [V::splat(0.0); 4];
    let chunks = x.chunks_exact(4 * LANES);
    let tail: f32 = chunks.remainder().iter().fold(0.0, |sum, x| x.mul_add(*x, sum));
    for chunk in chunks {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: a chunk holds four times eight floats.
            let x = unsafe { V::load(chunk.as_ptr().add(i * LANES)) };
            *sum = x.fma(x, *sum);
        }
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum() + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: usize) -> (Vec<f32>, Vec<f32>) {
        let x = (0..n).map(|i| ((i * 7919 % 1009) as f32 / 100.0 - 5.0) * 1.7).collect();
        (x, (0..n).map(|i| 0.5 + (i % 13) as f32 / 10.0).collect())
    }

    /// The sum of n squares in 32 chains errs by some n/32 roundings of 6e-8 at worst; 1e-6 covers 4096 with room.
    #[test]
    fn agrees_with_f64() {
        for n in [1, 2, 7, 8, 31, 32, 33, 48, 64, 576, 4096] {
            let (x, weight) = row(n);
            let mut out = vec![f32::NAN; n];
            rms_norm(&x, &weight, 1e-5, &mut out);
            let mean = x.iter().map(|&x| x as f64 * x as f64).sum::<f64>() / n as f64;
            for i in 0..n {
                let want = x[i] as f64 / (mean + 1e-5).sqrt() * weight[i] as f64;
                assert!((out[i] as f64 - want).abs() <= 1e-6 * want.abs(), "{n}: {} {want}", out[i]);
            }
        }
    }

    #[test]
    fn the_same_bits_on_all_instructions() {
        for n in [5, 64, 100, 4096] {
            let (x, weight) = row(n);
            let [mut a, mut b] = [vec![0.0; n], vec![0.0; n]];
            Instructions::best().run(RmsNorm { x: &x, weight: &weight, eps: 1e-6, out: &mut a });
            Instructions::Portable.run(RmsNorm { x: &x, weight: &weight, eps: 1e-6, out: &mut b });
            assert_eq!(a, b);
        }
    }

    #[test]
    fn hostile_values_give_numbers_or_nan_but_no_panic() {
        let mut out = [1.0; 3];
        rms_norm(&[f32::INFINITY, f32::NAN, 1.0], &[1.0; 3], 0.0, &mut out);
        rms_norm(&[0.0; 3], &[1.0; 3], 0.0, &mut out);
        rms_norm(&[], &[], 0.0, &mut []);
    }
}
