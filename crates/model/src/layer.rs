//! A decoder layer: `x += attention(norm(x)); x += experts(norm(x))`.

use octet_checkpoint::LayerTensor;
use octet_kernels::{Activations, ExpertScratch, PackedMatrix, Reads, Residual, add_assign, rms_norm};

use crate::attention::{Attention, AttentionBuffers, Step};
use crate::experts::{self, ExpertWeights};
use crate::lora::change;
use crate::{KvCache, Record, Routing};

/// The weights of a layer.
pub(crate) struct Layer {
    /// `[dim]`.
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) attention: Attention,
    /// `[dim]`.
    pub(crate) ffn_norm: Vec<f32>,
    /// `[num_experts, dim]`; `None` in dense models.
    pub(crate) router: Option<PackedMatrix>,
    pub(crate) experts: Vec<ExpertWeights>,
}

/// Buffers that all layers share.
#[derive(Default)]
pub(crate) struct LayerBuffers {
    /// Normed residual stream `[n, dim]`.
    normed: Vec<f32>,
    rows: Activations,
    /// What the last block adds to the stream, `[n, dim]`, which the next one does; empty if that is done.
    pub(crate) delta: Vec<f32>,
    pub(crate) routing: Routing,
    attention: AttentionBuffers,
    scratch: ExpertScratch,
}

impl LayerBuffers {
    /// Adds to the stream `x [n, dim]` what the last block left.
    pub(crate) fn settle(&mut self, x: &mut [f32]) {
        if !self.delta.is_empty() {
            add_assign(x, &self.delta);
            self.delta.clear();
        }
    }
}

impl Layer {
    /// The second half: `x += experts(norm(x))`, of any rows, where the sum is [`LayerBuffers::delta`]'s.
    pub(crate) fn feed_forward(
        &self,
        step: &Step<'_>,
        x: &mut [f32],
        buffers: &mut LayerBuffers,
        record: &mut dyn Record,
    ) {
        let LayerBuffers { normed, rows, delta, routing, scratch, .. } = buffers;
        let first = self.experts.iter().flat_map(|expert| [&expert.w1, &expert.w3]);
        let changed = step.loras.of_layer(step.layer).flat_map(|(_, lora)| lora.expert_inputs());
        let reads = Reads::of(first.chain(&self.router).chain(changed));
        let residual = Residual { x, delta, weight: &self.ffn_norm, eps: step.config.norm_eps };
        rows.set_normed(step.pool, residual, reads, normed);
        delta.resize(x.len(), 0.0);
        self.route(step, rows, routing);
        record.routing(step.layer, routing);
        let changes = step.loras.of_experts(step.layer);
        experts::forward(step.pool, &self.experts, rows, routing, &changes, scratch, delta);
    }

    /// The first half: `x += attention(norm(x))`, where the sum is [`LayerBuffers::delta`]'s.
    pub(crate) fn attend(
        &self,
        step: &Step<'_>,
        x: &mut [f32],
        cache: &mut KvCache,
        buffers: &mut LayerBuffers,
        record: &mut dyn Record,
    ) {
        let LayerBuffers { normed, rows, delta, attention, .. } = buffers;
        let dim = step.config.dim;
        let Attention { wq, wk, wv, .. } = &self.attention;
        let changed = step.loras.of_layer(step.layer).flat_map(|(_, lora)| lora.attention_inputs());
        let reads = Reads::of([wq, wk, wv].into_iter().chain(changed));
        let residual = Residual { x, delta, weight: &self.attention_norm, eps: step.config.norm_eps };
        rows.set_normed(step.pool, residual, reads, normed);
        delta.resize(x.len(), 0.0);
        for tensor in [LayerTensor::Wq, LayerTensor::Wk, LayerTensor::Wv] {
            record.input(step.layer, tensor, normed, dim);
        }
        self.attention.forward(step, rows, cache, attention, record, delta);
    }

    /// Chooses the experts of each row of the normed stream.
    pub(crate) fn route(&self, step: &Step<'_>, rows: &Activations, routing: &mut Routing) {
        let asked = step.batch.experts_per_token.unwrap_or(step.config.num_experts_per_tok);
        match &self.router {
            Some(wg) => routing.route(step.pool, wg, rows, asked, |logits| {
                for (tokens, lora) in step.loras.of_layer(step.layer) {
                    change(step.pool, lora.router.as_ref(), tokens, (rows, logits), &mut Vec::new());
                }
            }),
            None => routing.all_to_one(rows.rows()),
        }
    }
}

/// RMS norm of every row of `x [n, dim]`; `out` becomes as long.
pub(crate) fn norm_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut Vec<f32>) {
    out.resize(x.len(), 0.0);
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        rms_norm(x, weight, eps, out);
    }
}

impl Layer {
    /// Bytes of this layer's packed weights.
    pub(crate) fn weights_bytes(&self) -> usize {
        self.shared_bytes() + self.experts.iter().map(ExpertWeights::bytes).sum::<usize>()
    }

    /// Bytes that a token reads when `per_token` experts work on it.
    pub(crate) fn active_bytes(&self, per_token: usize) -> usize {
        self.shared_bytes() + self.experts.iter().take(per_token).map(ExpertWeights::bytes).sum::<usize>()
    }

    fn shared_bytes(&self) -> usize {
        let Attention { wq, wk, wv, wo } = &self.attention;
        let norms = (self.attention_norm.len() + self.ffn_norm.len()) * 4;
        let router = self.router.as_ref().map_or(0, PackedMatrix::bytes);
        [wq, wk, wv, wo].iter().map(|w| w.bytes()).sum::<usize>() + norms + router
    }
}
