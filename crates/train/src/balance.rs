//! The load-balancing loss, as transformers computes it: over the tokens of all layers together,
//! `num_experts · Σ_e f_e P_e`, where `f_e` is how often expert `e` is chosen, in choices a token, and `P_e` the mean of
//! its probability under the softmax over all experts. Only `P` has a gradient. There is no padding to be left out here:
//! batches have none.

use octet_kernels::softmax;
use octet_model::Routing;

/// What the routers of a batch did, over all layers.
pub(crate) struct Balance {
    /// Tokens times layers.
    rows: usize,
    /// How often each expert was chosen.
    chosen: Vec<u64>,
    /// The same in each layer with a router, in the order of the layers.
    chosen_in_layers: Vec<Vec<u64>>,
    /// Sum of each expert's probability.
    probabilities: Vec<f64>,
    /// Sum over rows of the entropy of the probabilities, in nats.
    entropy: f64,
    coefficient: f32,
}

impl Balance {
    /// Over layers of `num_experts` experts; gradients are multiplied by `coefficient`.
    pub(crate) fn new(num_experts: usize, coefficient: f32) -> Balance {
        Balance {
            rows: 0,
            chosen: vec![0; num_experts],
            chosen_in_layers: Vec::new(),
            probabilities: vec![0.0; num_experts],
            entropy: 0.0,
            coefficient,
        }
    }

    /// Counts a layer.
    pub(crate) fn count(&mut self, routing: &Routing) {
        let mut p = vec![0.0; routing.num_experts];
        for logits in routing.logits.chunks_exact(routing.num_experts) {
            p.copy_from_slice(logits);
            softmax(&mut p);
            self.rows += 1;
            self.probabilities.iter_mut().zip(&p).for_each(|(sum, &p)| *sum += f64::from(p));
            let nats = p.iter().filter(|p| **p > 0.0).map(|&p| -f64::from(p) * f64::from(p).ln());
            self.entropy += nats.sum::<f64>();
        }
        if !routing.logits.is_empty() {
            let mut chosen = vec![0; routing.num_experts];
            routing.experts.iter().for_each(|&e| chosen[e as usize] += 1);
            self.chosen.iter_mut().zip(&chosen).for_each(|(sum, count)| *sum += count);
            self.chosen_in_layers.push(chosen);
        }
    }

    /// The loss, before its coefficient; `None` where no router was seen.
    pub(crate) fn loss(&self) -> Option<f64> {
        let n = self.rows as f64;
        let sum: f64 = self.chosen.iter().zip(&self.probabilities).map(|(&f, p)| f as f64 / n * (p / n)).sum();
        (self.rows > 0).then_some(sum * self.chosen.len() as f64)
    }

    /// Mean entropy of the routers' probabilities, in nats.
    pub(crate) fn entropy(&self) -> f64 {
        if self.rows == 0 { 0.0 } else { self.entropy / self.rows as f64 }
    }

    /// How often each expert of each layer was chosen.
    pub(crate) fn into_chosen(self) -> Vec<Vec<u64>> {
        self.chosen_in_layers
    }

    /// Adds the gradient of `coefficient · loss` with respect to one token's logits, once all layers are counted:
    /// `d_p_e = num_experts f_e / rows`, through the softmax.
    pub(crate) fn add_gradient(&self, logits: &[f32], d_logits: &mut [f32]) {
        if self.coefficient == 0.0 {
            return;
        }
        let mut p = logits.to_vec();
        softmax(&mut p);
        let rows = self.rows as f32;
        let factor = self.coefficient * self.chosen.len() as f32 / (rows * rows);
        let d_p = |e: usize| factor * self.chosen[e] as f32;
        let mean: f32 = p.iter().enumerate().map(|(e, p)| p * d_p(e)).sum();
        for (e, d_logit) in d_logits.iter_mut().enumerate() {
            *d_logit += p[e] * (d_p(e) - mean);
        }
    }
}
