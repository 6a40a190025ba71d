//! The sparse feed-forward block: `y = Σ_k p_k · w2_k (silu(w1_k x) ⊙ (w3_k x))` over the experts that the router chose.

use octet_checkpoint::{ExpertMatrix, LayerTensor};
use octet_kernels::{
    Activations, Expert, ExpertScratch, ExpertsChange, PackedMatrix, Product, Reads, Routes, ThreadPool, matmul, swiglu,
};

use crate::{Record, Routing};

/// The three matrices of an expert.
pub(crate) struct ExpertWeights {
    pub(crate) w1: PackedMatrix,
    pub(crate) w2: PackedMatrix,
    pub(crate) w3: PackedMatrix,
}

/// `y [tokens, dim]` = the weighted sum of the chosen experts' answers to `x`, with adapters' changes of them.
pub(crate) fn forward(
    pool: &ThreadPool,
    experts: &[ExpertWeights],
    x: &Activations,
    routing: &Routing,
    changes: &[ExpertsChange<'_>],
    scratch: &mut ExpertScratch,
    y: &mut [f32],
) {
    let routes = Routes { experts: &routing.experts, weights: &routing.weights, per_token: routing.per_token, changes };
    octet_kernels::experts(pool, experts.iter().map(ExpertWeights::as_kernel), x, &routes, scratch, y);
}

impl ExpertWeights {
    fn as_kernel(&self) -> Expert<'_> {
        Expert { w1: &self.w1, w2: &self.w2, w3: &self.w3 }
    }

    /// Bytes of the three packed matrices.
    pub(crate) fn bytes(&self) -> usize {
        self.w1.bytes() + self.w2.bytes() + self.w3.bytes()
    }
}

/// Rows that an expert is given at a time by [`add_answers`], to bound its buffers.
const ROWS: usize = 1024;

/// Which expert of which layer.
#[derive(Clone, Copy)]
pub(crate) struct ExpertIndex {
    pub(crate) layer: usize,
    pub(crate) expert: usize,
}

/// `y += p · expert(x)` for the tokens that chose this expert, by plain products, so that the inputs of every matrix can be
/// recorded, and no other expert need be in memory. `x`, `y`: `[tokens, dim]`.
pub(crate) fn add_answers(
    pool: &ThreadPool,
    (index, expert): (ExpertIndex, &ExpertWeights),
    x: &[f32],
    routing: &Routing,
    record: &mut dyn Record,
    y: &mut [f32],
) {
    let dim = expert.w1.cols();
    let chosen: Vec<(usize, f32)> = (routing.experts.iter().zip(&routing.weights).enumerate())
        .filter(|(_, (e, _))| **e as usize == index.expert)
        .map(|(at, (_, weight))| (at / routing.per_token, *weight))
        .collect();
    for chosen in chosen.chunks(ROWS) {
        let input: Vec<f32> = chosen.iter().flat_map(|&(token, _)| &x[token * dim..][..dim]).copied().collect();
        let answers = answer(pool, index, expert, &input, record);
        for (&(token, weight), answer) in chosen.iter().zip(answers.chunks_exact(dim)) {
            y[token * dim..][..dim].iter_mut().zip(answer).for_each(|(y, a)| *y += weight * a);
        }
    }
}

/// One expert on `x [rows, dim]`; gives `[rows, dim]`.
fn answer(
    pool: &ThreadPool,
    index: ExpertIndex,
    expert: &ExpertWeights,
    x: &[f32],
    record: &mut dyn Record,
) -> Vec<f32> {
    let (dim, hidden_dim) = (expert.w1.cols(), expert.w1.rows());
    let n = x.len() / dim;
    let mut input =
        |matrix, x: &[f32], cols| record.input(index.layer, LayerTensor::Expert(index.expert, matrix), x, cols);
    input(ExpertMatrix::W1, x, dim);
    input(ExpertMatrix::W3, x, dim);
    let mut rows = Activations::new();
    rows.set(pool, x, dim, Reads::of([&expert.w1, &expert.w3]));
    let (mut gate, mut up) = (vec![0.0; n * hidden_dim], vec![0.0; n * hidden_dim]);
    matmul(
        pool,
        &mut [Product { w: &expert.w1, x: &rows, y: &mut gate }, Product { w: &expert.w3, x: &rows, y: &mut up }],
    );
    let mut hidden = vec![0.0; n * hidden_dim];
    swiglu(&gate, &up, &mut hidden);
    input(ExpertMatrix::W2, &hidden, hidden_dim);
    rows.set(pool, &hidden, hidden_dim, Reads::of([&expert.w2]));
    let mut y = vec![0.0; n * dim];
    matmul(pool, &mut [Product { w: &expert.w2, x: &rows, y: &mut y }]);
    y
}
