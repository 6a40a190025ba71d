//! Grouped-query attention with rotary positions: `wo · Attention(rope(wq x), rope(wk x), wv x)`.
//!
//! Every group of `n_heads / n_kv_heads` query heads shares one key and value head.

use octet_checkpoint::LayerTensor;
use octet_kernels::{
    Activations, AttentionLayer, AttentionScratch, LowRank, PackedMatrix, Product, Projections, Reads, RopeAngles,
    ThreadPool, matmul,
};

use crate::lora::{Loras, change};
use crate::{Batch, Config, KvCache, Record};

/// The four matrices of a layer's attention.
pub(crate) struct Attention {
    pub(crate) wq: PackedMatrix,
    pub(crate) wk: PackedMatrix,
    pub(crate) wv: PackedMatrix,
    pub(crate) wo: PackedMatrix,
}

/// Buffers of one forward pass; `n` is the number of tokens.
#[derive(Default)]
pub(crate) struct AttentionBuffers {
    /// `[n, n_heads * head_dim]`.
    q: Vec<f32>,
    /// `[n, n_kv_heads * head_dim]`.
    k: Vec<f32>,
    /// `[n, n_kv_heads * head_dim]`.
    v: Vec<f32>,
    /// `[n, n_heads * head_dim]`.
    attended: Vec<f32>,
    attended_rows: Activations,
    scratch: AttentionScratch,
    /// Between `A` and `B` of an adapter.
    inner: Vec<f32>,
}

/// Where a forward pass is, and what all its layers share.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    pub(crate) pool: &'a ThreadPool,
    pub(crate) config: &'a Config,
    /// The layer at work.
    pub(crate) layer: usize,
    /// Rotary angles of every token.
    pub(crate) angles: &'a RopeAngles,
    pub(crate) batch: &'a Batch,
    pub(crate) loras: Loras<'a>,
}

impl Attention {
    /// `out [n, dim]` = attention over `x`, the normed residual stream; keys and values join the cache.
    pub(crate) fn forward(
        &self,
        step: &Step<'_>,
        x: &Activations,
        cache: &mut KvCache,
        buffers: &mut AttentionBuffers,
        record: &mut dyn Record,
        out: &mut [f32],
    ) {
        let AttentionBuffers { q, k, v, attended, attended_rows, scratch, inner } = buffers;
        let (n, config) = (step.batch.tokens.len(), step.config);
        q.resize(n * config.q_dim(), 0.0);
        k.resize(n * config.kv_dim(), 0.0);
        v.resize(n * config.kv_dim(), 0.0);
        attended.resize(n * config.q_dim(), 0.0);
        matmul(
            step.pool,
            &mut [Product { w: &self.wq, x, y: q }, Product { w: &self.wk, x, y: k }, Product { w: &self.wv, x, y: v }],
        );
        for (rows, lora) in step.loras.of_layer(step.layer) {
            change(step.pool, lora.wq.as_ref(), rows.clone(), (x, q), inner);
            change(step.pool, lora.wk.as_ref(), rows.clone(), (x, k), inner);
            change(step.pool, lora.wv.as_ref(), rows, (x, v), inner);
        }
        let (tables, pages) = cache.split();
        let queries = step.batch.runs.iter().map(|run| tables.queries(run));
        pages.append_turned(step.pool, step.layer, queries.clone(), Projections { angles: step.angles, q, k, v });
        let past = AttentionLayer { pages, layer: step.layer, window: config.sliding_window };
        octet_kernels::attention(step.pool, q, &past, queries, scratch, attended);
        record.input(step.layer, LayerTensor::Wo, attended, config.q_dim());
        let changes = || step.loras.of_layer(step.layer);
        let inputs = changes().filter_map(|(_, lora)| lora.wo.as_ref()).map(LowRank::a);
        attended_rows.set(step.pool, attended, config.q_dim(), Reads::of(inputs.chain([&self.wo])));
        matmul(step.pool, &mut [Product { w: &self.wo, x: attended_rows, y: out }]);
        for (rows, lora) in changes() {
            change(step.pool, lora.wo.as_ref(), rows, (attended_rows, out), inner);
        }
    }
}
