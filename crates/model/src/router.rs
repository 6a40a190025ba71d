//! The router: which experts work on a token, and with what weight.
//!
//! `G(x) = Softmax(TopK(x · Wg))` (Mixtral of Experts, section 2.1): the softmax over the chosen logits alone, which
//! equals the softmax over all of them, renormalised over the chosen.

use octet_kernels::{Activations, PackedMatrix, Product, ThreadPool, matmul};

/// The router's answer for a batch of tokens. `k` experts are chosen for each.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    /// Logits `[tokens, num_experts]`; empty in a dense model.
    pub logits: Vec<f32>,
    /// Chosen experts `[tokens, k]`, best first.
    pub experts: Vec<u32>,
    /// Their weights `[tokens, k]`, which add up to 1.
    pub weights: Vec<f32>,
    /// `k`.
    pub per_token: usize,
    /// `num_experts`.
    pub num_experts: usize,
}

impl Routing {
    /// Routes `x` (the normed residual stream): f32 throughout, whatever the weights are. `change` may change the logits
    /// before the choice.
    pub(crate) fn route(
        &mut self,
        pool: &ThreadPool,
        wg: &PackedMatrix,
        x: &Activations,
        per_token: usize,
        change: impl FnOnce(&mut [f32]),
    ) {
        self.num_experts = wg.rows();
        self.logits.resize(x.rows() * self.num_experts, 0.0);
        matmul(pool, &mut [Product { w: wg, x, y: &mut self.logits }]);
        change(&mut self.logits);
        self.choose(x.rows(), per_token);
    }

    /// The dense case: every token goes to expert 0, with weight 1.
    pub fn all_to_one(&mut self, n_tokens: usize) {
        self.num_experts = 1;
        self.per_token = 1;
        self.logits.clear();
        self.experts.clear();
        self.experts.resize(n_tokens, 0);
        self.weights.clear();
        self.weights.resize(n_tokens, 1.0);
    }

    /// Adds the rows of another of the same model.
    pub(crate) fn append(&mut self, other: &Routing) {
        (self.per_token, self.num_experts) = (other.per_token, other.num_experts);
        self.logits.extend_from_slice(&other.logits);
        self.experts.extend_from_slice(&other.experts);
        self.weights.extend_from_slice(&other.weights);
    }

    /// Chooses the best `per_token` experts of each of `n_tokens` tokens by `logits`, and weighs them.
    ///
    /// # Panics
    /// If there are not logits of `num_experts` for each token, or `per_token` is more than that.
    pub fn choose(&mut self, n_tokens: usize, per_token: usize) {
        self.per_token = per_token;
        self.experts.resize(n_tokens * per_token, 0);
        self.weights.resize(n_tokens * per_token, 0.0);
        let rows = self.logits.chunks_exact(self.num_experts);
        let chosen = self.experts.chunks_exact_mut(per_token).zip(self.weights.chunks_exact_mut(per_token));
        for (logits, (experts, weights)) in rows.zip(chosen) {
            top_k(logits, experts, weights);
            softmax_chosen(weights);
        }
    }
}

/// The `k = experts.len()` largest logits, best first; of equal ones the lower index. Logits go to `values`.
/// A NaN counts as the smallest, so that broken weights route somewhere rather than nowhere.
fn top_k(logits: &[f32], experts: &mut [u32], values: &mut [f32]) {
    for rank in 0..experts.len() {
        let mut best: Option<(usize, f32)> = None;
        for (i, &logit) in logits.iter().enumerate() {
            if experts[..rank].contains(&(i as u32)) {
                continue;
            }
            if best.is_none_or(|(_, b)| logit > b || (b.is_nan() && !logit.is_nan())) {
                best = Some((i, logit));
            }
        }
        let (i, logit) = best.expect("no more experts are chosen than there are");
        (experts[rank], values[rank]) = (i as u32, logit);
    }
}

/// Softmax in place over logits of which the first is the largest.
fn softmax_chosen(weights: &mut [f32]) {
    let largest = weights[0];
    let mut sum = 0.0;
    for w in weights.iter_mut() {
        *w = (*w - largest).exp();
        sum += *w;
    }
    weights.iter_mut().for_each(|w| *w /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_ties_go_to_the_lower_index() {
        let (mut experts, mut values) = ([0; 3], [0.0; 3]);
        top_k(&[1.0, 3.0, f32::NAN, 3.0, 2.0], &mut experts, &mut values);
        assert_eq!(experts, [1, 3, 4]);
        assert_eq!(values, [3.0, 3.0, 2.0]);
    }

    #[test]
    fn weights_are_the_softmax_over_all_renormalised() {
        let logits = [0.5f32, -1.0, 2.0, 1.5];
        let mut routing = Routing { logits: logits.to_vec(), num_experts: 4, ..Default::default() };
        routing.choose(1, 2);
        assert_eq!(routing.experts, [2, 3]);
        let p: Vec<f64> = logits.iter().map(|&l| (l as f64).exp()).collect();
        assert!((routing.weights[0] as f64 - p[2] / (p[2] + p[3])).abs() < 1e-7);
    }
}
