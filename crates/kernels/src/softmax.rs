//! Softmax in place: `x_i ← e^(x_i - max) / Σ_j e^(x_j - max)`.

use crate::exp::exp;
use crate::lanes::{Instructions, Kernel, LANES, Lanes};

/// Turns logits `x [n]` into probabilities. A logit of minus infinity gets probability 0; if all are, or one is NaN or
/// plus infinity, the result holds NaN.
pub fn softmax(x: &mut [f32]) {
    Instructions::best().run(Softmax(x));
}

struct Softmax<'a>(&'a mut [f32]);

impl Kernel for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let x = self.0;
        let largest = x.iter().fold(f32::NEG_INFINITY, |a, &b| if a > b { a } else { b });
        let mut sums = V::splat(0.0);
        for chunk in x.chunks_mut(LANES) {
            let mut eight = [f32::NEG_INFINITY; LANES];
            eight[..chunk.len()].copy_from_slice(chunk);
            // SAFETY: eight floats.
            let e = exp(unsafe { V::load(eight.as_ptr()) }.sub(V::splat(largest)));
            sums = sums.add(e);
            chunk.copy_from_slice(&e.to_array()[..chunk.len()]);
        }
        let sum = sums.sum();
        x.iter_mut().for_each(|x| *x /= sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each term errs by 1e-7, and so does each of the n / 8 additions of a lane at worst.
    #[test]
    fn agrees_with_f64() {
        for n in [1, 2, 7, 8, 9, 100, 32000] {
            let x: Vec<f32> = (0..n).map(|i| (i * 7919 % 1009) as f32 / 30.0 - 15.0).collect();
            let mut p = x.clone();
            softmax(&mut p);
            let largest = x.iter().fold(f64::MIN, |a, &b| a.max(b as f64));
            let sum: f64 = x.iter().map(|&x| (x as f64 - largest).exp()).sum();
            for i in 0..n {
                let want = (x[i] as f64 - largest).exp() / sum;
                let tolerance = 1e-7 * (4.0 + n as f64 / 8.0);
                assert!((p[i] as f64 / want - 1.0).abs() < tolerance, "{n}: {} {want}", p[i]);
            }
            let mut q = x.clone();
            Instructions::Portable.run(Softmax(&mut q));
            assert_eq!(p, q);
        }
    }

    #[test]
    fn masked_logits_get_nothing_and_hostile_ones_do_not_panic() {
        let mut x = [1.0, f32::NEG_INFINITY, 1.0];
        softmax(&mut x);
        assert_eq!(x, [0.5, 0.0, 0.5]);
        for mut x in [vec![], vec![f32::NEG_INFINITY; 3], vec![f32::NAN, 1.0], vec![f32::INFINITY, 0.0]] {
            softmax(&mut x);
        }
    }
}
