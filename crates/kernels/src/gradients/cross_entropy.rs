//! Cross-entropy of one row: `log p = logits[target] - log Σ_i e^logits[i]`, and its gradient
//! `d_logits = weight (p - onehot(target))` of the loss `-weight log p`.

use crate::exp::exp;
use crate::gradients::rows::largest;
use crate::lanes::{Instructions, Kernel, LANES, Lanes, load_some, store_some};

/// Gives `log p(target)`, and leaves in `logits [n]` the gradient of `-weight log p(target)`.
///
/// # Panics
/// If the target is no index into the logits.
pub fn cross_entropy(logits: &mut [f32], target: usize, weight: f32) -> f32 {
    assert!(target < logits.len(), "target {target} of {} logits", logits.len());
    Instructions::best().run(CrossEntropy { logits, target, weight })
}

struct CrossEntropy<'a> {
    logits: &'a mut [f32],
    target: usize,
    weight: f32,
}

impl Kernel for CrossEntropy<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<V: Lanes>(self) -> f32 {
        let CrossEntropy { logits, target, weight } = self;
        let of_target = logits[target];
        let largest = largest::<V>(logits);
        let mut total = 0.0f64;
        // Partial sums of 4096 terms in f32, their total in f64: vocabularies are large.
        for part in logits.chunks_mut(4096) {
            let mut sums = V::splat(0.0);
            for chunk in part.chunks_mut(LANES) {
                let e = exp(load_some::<V>(chunk, f32::NEG_INFINITY).sub(V::splat(largest)));
                sums = sums.add(e);
                store_some(e, chunk);
            }
            total += f64::from(sums.sum());
        }
        let scale = (f64::from(weight) / total) as f32;
        logits.iter_mut().for_each(|x| *x *= scale);
        logits[target] -= weight;
        (f64::from(of_target) - f64::from(largest) - total.ln()) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each e^x errs by 1e-7 and each partial sum by some 1e-5 at worst; probabilities are below 1.
    #[test]
    fn agrees_with_f64() {
        for n in [1, 7, 8, 300, 9001] {
            let x: Vec<f32> = (0..n).map(|i| (i * 7919 % 1009) as f32 / 100.0 - 5.0).collect();
            let sum: f64 = x.iter().map(|&x| (x as f64).exp()).sum();
            let target = n / 2;
            let mut d = x.clone();
            let log_p = cross_entropy(&mut d, target, 0.5);
            assert!((log_p as f64 - (x[target] as f64 - sum.ln())).abs() < 2e-6, "{n}: {log_p}");
            for i in 0..n {
                let want = 0.5 * ((x[i] as f64).exp() / sum - if i == target { 1.0 } else { 0.0 });
                assert!((d[i] as f64 - want).abs() < 1e-6, "{n}: {} {want}", d[i]);
            }
        }
    }
}
