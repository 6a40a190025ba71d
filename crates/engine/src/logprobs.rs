//! How likely the model found a token, and what it would rather have said.

use crate::Logprobs;

/// The log-probability of `id` under `logits [vocab_size]`, and the `top` likeliest tokens; of equal ones the lower id is
/// first.
pub(crate) fn logprobs(logits: &[f32], id: u32, top: usize) -> Logprobs {
    let largest = logits.iter().copied().filter(|l| !l.is_nan()).fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().filter(|l| !l.is_nan()).map(|&l| f64::from(l - largest).exp()).sum();
    let total = f64::from(largest) + sum.ln();
    let logprob = |logit: f32| (f64::from(logit) - total) as f32;
    let own = logits[id as usize];
    let rank = logits.iter().zip(0u32..).filter(|&(&l, i)| l > own || (l == own && i < id)).count();
    let top = likeliest(logits, top).into_iter().map(|(logit, id)| (id, logprob(logit))).collect();
    Logprobs { id, logprob: logprob(own), rank, top }
}

fn likeliest(logits: &[f32], n: usize) -> Vec<(f32, u32)> {
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(n + 1);
    for (&logit, id) in logits.iter().zip(0u32..) {
        if logit.is_nan() || best.len() == n && best.last().is_none_or(|worst| logit <= worst.0) {
            continue;
        }
        let at = best.partition_point(|b| b.0 >= logit);
        best.insert(at, (logit, id));
        best.truncate(n);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_of_the_softmax_best_first() {
        let found = logprobs(&[1.0, 3.0, 2.0, 3.0], 2, 3);
        let sum: f32 = [1.0f32, 3.0, 2.0, 3.0].iter().map(|l| l.exp()).sum();
        assert_eq!((found.id, found.rank), (2, 2));
        assert!((found.logprob - (2.0 - sum.ln())).abs() < 1e-6);
        assert_eq!(found.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 2]);
        assert!((found.top[0].1 - (3.0 - sum.ln())).abs() < 1e-6);
        assert!(logprobs(&[0.0, 1.0], 0, 0).top.is_empty());
    }
}
