//! The router's gradient by all experts, also those that a token did not visit.
//!
//! Forward the block stays sparse. For the way back to the router alone the choice counts as if it had not been made (a
//! straight-through estimator, Bengio et al. 2013; for mixtures of experts DenseMixer, Yao et al. 2025): its logits get the
//! gradient of `y = Σ_e π_e E_e(x)` with `π = softmax` over all of them, `d_logit_j = π_j (g_j - Σ_e π_e g_e)`,
//! `g_e = d_y · E_e(x)`. So a router learns that an expert would have answered better, which nobody tells it otherwise, at
//! the price of running the experts that were not chosen once, forward.

use octet_kernels::gradients::dot;
use octet_kernels::softmax;
use octet_model::Routing;

use crate::balance::Balance;
use crate::experts::Expert;
use crate::linear::Pass;

/// Tokens that an expert runs at a time: what they take is taken once.
const TOKENS_AT_ONCE: usize = 512;

/// `g [n, num_experts]` of the experts that tokens did not choose, 0 at those that they did, from `x` and `d_out [n, dim]`.
pub(crate) fn by_the_others(
    pass: &mut Pass<'_>,
    experts: &[Expert],
    (x, routing): (&[f32], &Routing),
    d_out: &[f32],
) -> Vec<f32> {
    let (dim, hidden_dim, k) = (experts[0].w1.cols, experts[0].w1.rows, routing.per_token);
    let mut all = vec![0.0; x.len() / dim * experts.len()];
    for (index, expert) in experts.iter().enumerate() {
        let chosen = routing.experts.chunks_exact(k).enumerate();
        let others = chosen.filter(|(_, chosen)| !chosen.contains(&(index as u32))).map(|(token, _)| token);
        for tokens in others.collect::<Vec<_>>().chunks(TOKENS_AT_ONCE) {
            let [mut rows, mut answers] = [(); 2].map(|()| pass.buffers.take(tokens.len() * dim));
            let [mut gate, mut up, mut hidden] = [(); 3].map(|()| pass.buffers.take(tokens.len() * hidden_dim));
            for (row, &token) in rows.chunks_exact_mut(dim).zip(tokens) {
                row.copy_from_slice(&x[token * dim..][..dim]);
            }
            expert.forward(pass, &rows, [&mut gate, &mut up, &mut hidden], &mut answers);
            for (answer, &token) in answers.chunks_exact(dim).zip(tokens) {
                all[token * experts.len() + index] = dot(answer, &d_out[token * dim..][..dim]);
            }
            [rows, answers, gate, up, hidden].into_iter().for_each(|x| pass.buffers.give(x));
        }
    }
    all
}

/// `d_logits [n, num_experts]` from `d_weights [n, per_token]`, which are `g` of the chosen, `g` of the
/// [others](by_the_others), and the balancing loss where it counts.
pub(crate) fn logits_gradient(
    routing: &Routing,
    d_weights: &[f32],
    mut g: Vec<f32>,
    balance: Option<&Balance>,
) -> Vec<f32> {
    let (k, n_experts) = (routing.per_token, routing.num_experts);
    for (token, g) in g.chunks_exact_mut(n_experts).enumerate() {
        for (&expert, d_weight) in routing.experts[token * k..][..k].iter().zip(&d_weights[token * k..]) {
            g[expert as usize] = *d_weight;
        }
        let logits = &routing.logits[token * n_experts..][..n_experts];
        let mut p = logits.to_vec();
        softmax(&mut p);
        let mean: f32 = p.iter().zip(&*g).map(|(p, g)| p * g).sum();
        g.iter_mut().zip(&p).for_each(|(g, p)| *g = p * (*g - mean));
        if let Some(balance) = balance {
            balance.add_gradient(logits, g);
        }
    }
    g
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use octet_checkpoint::Checkpoint;

    use super::*;
    use crate::buffers::Buffers;
    use crate::{Model, Trained, experts, router};

    /// Where every expert is chosen, the ordinary way back knows all of them, and is the reference for tokens that visit two.
    #[test]
    fn the_others_count_as_if_all_were_chosen() {
        let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        let folder = std::env::var_os("OCTET_FIXTURES").map_or_else(here, PathBuf::from).join("mixtral-8x2");
        let model = Model::new(Arc::new(Checkpoint::open(&folder).unwrap()), 2, Trained::All).unwrap();
        let (layer, dim, n) = (model.layer(0), model.config().dim, 9);
        let wave = |speed: f32| -> Vec<f32> { (0..n * dim).map(|i| (speed * i as f32).sin()).collect() };
        let (x, d_out) = (wave(0.7), wave(1.3));
        let mut pass = Pass {
            pool: model.pool(),
            checkpoint: Some(model.checkpoint()),
            parameters: model.parameters(),
            buffers: Buffers::default(),
            adapter: true,
            dropout_seed: None,
            dense_router: true,
        };
        pass.buffers.begin(n);
        let mut gradients = model.zero_gradients();
        let mut weights_gradient = |pass: &mut Pass<'_>, per_token| {
            let routing = router::forward(pass, layer.router.as_ref(), &x, dim, per_token);
            let mut out = vec![0.0; x.len()];
            let kept = experts::forward(pass, &layer.experts, &x, &routing, &mut out);
            let given = (&x[..], &routing, kept);
            let d_weights = experts::backward(pass, &layer.experts, given, &d_out, &mut out, &mut gradients);
            (routing, d_weights)
        };
        let (all, d_all) = weights_gradient(&mut pass, layer.experts.len());
        let expected = router::logits_gradient(&all, &d_all, None);
        let (two, d_two) = weights_gradient(&mut pass, 2);
        let sparse = router::logits_gradient(&two, &d_two, None);
        let others = by_the_others(&mut pass, &layer.experts, (&x, &two), &d_out);
        let found = logits_gradient(&two, &d_two, others, None);
        let largest = expected.iter().fold(0f32, |most, d| most.max(d.abs()));
        let apart = |found: &[f32]| found.iter().zip(&expected).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(apart(&found) <= 1e-5 * largest, "{} of {largest}", apart(&found));
        assert!(apart(&sparse) > 0.1 * largest, "the ordinary gradient is another one");
    }
}
