//! The router backward: from what the chosen experts' weights did to the loss, to its logits.
//!
//! With weights `w = softmax` over the chosen logits: `d_logit_i = w_i (d_w_i - Σ_j w_j d_w_j)` for the chosen, 0 for the
//! others. The balancing loss reaches all logits; see `balance.rs`.

use octet_model::Routing;

use crate::balance::Balance;
use crate::linear::{Linear, Pass};

/// Logits of the router for `x [n, dim]`, and whom it chose.
pub(crate) fn forward(
    pass: &mut Pass<'_>,
    router: Option<&Linear>,
    x: &[f32],
    dim: usize,
    per_token: usize,
) -> Routing {
    let (n, mut routing) = (x.len() / dim, Routing::default());
    match router {
        None => routing.all_to_one(n),
        Some(router) => {
            routing.num_experts = router.rows;
            routing.logits = pass.buffers.take(n * router.rows);
            router.forward(pass, x, &mut routing.logits);
            routing.choose(n, per_token);
        }
    }
    routing
}

/// `d_logits [n, num_experts]` from `d_weights [n, per_token]`, and from the balancing loss where it counts.
pub(crate) fn logits_gradient(routing: &Routing, d_weights: &[f32], balance: Option<&Balance>) -> Vec<f32> {
    let (k, n_experts) = (routing.per_token, routing.num_experts);
    let mut d_logits = vec![0.0; routing.logits.len()];
    for (token, d_logits) in d_logits.chunks_exact_mut(n_experts).enumerate() {
        let chosen = token * k..(token + 1) * k;
        let (weights, d_weights) = (&routing.weights[chosen.clone()], &d_weights[chosen.clone()]);
        let mean: f32 = weights.iter().zip(d_weights).map(|(w, d)| w * d).sum();
        for ((&expert, w), d_w) in routing.experts[chosen].iter().zip(weights).zip(d_weights) {
            d_logits[expert as usize] += w * (d_w - mean);
        }
        if let Some(balance) = balance {
            balance.add_gradient(&routing.logits[token * n_experts..][..n_experts], d_logits);
        }
    }
    d_logits
}
