//! Adapters at work (LoRA): `y = W x + scale · B (A x)` for the tokens of sequences that have one, over weights of any type.
//!
//! A [`Batch`] says which adapter a run of tokens has; neighbours with the same one become a span, whose rows are changed
//! together. Products with the weights are made for all tokens at once, as without adapters; a change is f32 throughout and
//! touches the rows of its span alone.

use std::ops::Range;

use octet_checkpoint::{ExpertMatrix, LayerTensor, Params, TensorName};
use octet_kernels::{
    Activations, Changed, ExpertChange, ExpertsChange, LowRank, PackedMatrix, ThreadPool, add_low_rank,
};

use crate::{Adapter, Batch, Error};

/// Names an adapter of a [`Transformer`](crate::Transformer).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(usize);

/// An adapter in the form in which it is computed with.
pub(crate) struct Lora {
    layers: Vec<LoraLayer>,
    output: Option<LowRank>,
}

/// The changes of a layer.
pub(crate) struct LoraLayer {
    pub(crate) wq: Option<LowRank>,
    pub(crate) wk: Option<LowRank>,
    pub(crate) wv: Option<LowRank>,
    pub(crate) wo: Option<LowRank>,
    pub(crate) router: Option<LowRank>,
    experts: Vec<ExpertChange>,
}

/// All adapters of a model.
#[derive(Default)]
pub(crate) struct Adapters(Vec<Lora>);

/// Consecutive rows of a batch that have an adapter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Span {
    rows: Range<usize>,
    adapter: AdapterId,
}

/// What a forward pass knows of adapters.
#[derive(Clone, Copy)]
pub(crate) struct Loras<'a> {
    adapters: &'a Adapters,
    spans: &'a [Span],
}

impl Adapters {
    /// Adds one, which has been read for a model of this shape.
    pub(crate) fn add(&mut self, pool: &ThreadPool, adapter: &Adapter, params: &Params) -> Result<AdapterId, Error> {
        adapter.check(params)?;
        let change = |name: TensorName| {
            let of = adapter.matrices.get(&name)?;
            Some(LowRank::new(pool, of.rank, of.scale, &of.a, &of.b))
        };
        let layer = |index: usize| {
            use LayerTensor::{Expert, Router, Wk, Wo, Wq, Wv};
            let at = |tensor| change(TensorName::Layer(index, tensor));
            let expert = |e| ExpertChange {
                w1: at(Expert(e, ExpertMatrix::W1)),
                w2: at(Expert(e, ExpertMatrix::W2)),
                w3: at(Expert(e, ExpertMatrix::W3)),
            };
            let experts = (0..params.moe.as_ref().map_or(1, |moe| moe.num_experts)).map(expert).collect();
            LoraLayer { wq: at(Wq), wk: at(Wk), wv: at(Wv), wo: at(Wo), router: at(Router), experts }
        };
        let output = change(TensorName::Output);
        self.0.push(Lora { layers: (0..params.n_layers).map(layer).collect(), output });
        Ok(AdapterId(self.0.len() - 1))
    }

    /// Bytes of memory of all.
    pub(crate) fn bytes(&self) -> usize {
        let expert = |expert: &ExpertChange| {
            [&expert.w1, &expert.w2, &expert.w3].into_iter().flatten().map(LowRank::bytes).sum::<usize>()
        };
        let layer = |layer: &LoraLayer| {
            let LoraLayer { wq, wk, wv, wo, router, experts } = layer;
            let matrices = [wq, wk, wv, wo, router].into_iter().flatten();
            matrices.map(LowRank::bytes).sum::<usize>() + experts.iter().map(expert).sum::<usize>()
        };
        let one =
            |lora: &Lora| lora.layers.iter().map(layer).sum::<usize>() + lora.output.as_ref().map_or(0, LowRank::bytes);
        self.0.iter().map(one).sum()
    }

    /// Whether there is one of this name.
    pub(crate) fn contains(&self, id: AdapterId) -> bool {
        id.0 < self.0.len()
    }
}

/// The spans of a batch.
pub(crate) fn find_spans(batch: &Batch, spans: &mut Vec<Span>) {
    spans.clear();
    let mut first = 0;
    for run in &batch.runs {
        let rows = first..first + run.n_tokens;
        first = rows.end;
        let Some(adapter) = run.adapter else { continue };
        match spans.last_mut() {
            Some(last) if last.adapter == adapter && last.rows.end == rows.start => last.rows.end = rows.end,
            _ => spans.push(Span { rows, adapter }),
        }
    }
}

impl<'a> Loras<'a> {
    pub(crate) fn new(adapters: &'a Adapters, spans: &'a [Span]) -> Loras<'a> {
        Loras { adapters, spans }
    }

    /// The changes of a layer, each with its rows.
    pub(crate) fn of_layer(self, layer: usize) -> impl Iterator<Item = (Range<usize>, &'a LoraLayer)> {
        let of = move |span: &'a Span| (span.rows.clone(), &self.adapters.0[span.adapter.0].layers[layer]);
        self.spans.iter().map(of)
    }

    /// The changes of a layer's experts.
    pub(crate) fn of_experts(self, layer: usize) -> Vec<ExpertsChange<'a>> {
        self.of_layer(layer).map(|(tokens, of)| ExpertsChange { tokens, experts: &of.experts }).collect()
    }

    /// Every `A` of the output head.
    pub(crate) fn head_inputs(self) -> impl Iterator<Item = &'a PackedMatrix> {
        self.spans.iter().filter_map(move |span| self.adapters.0[span.adapter.0].output.as_ref()).map(LowRank::a)
    }

    /// Changes the logits of `rows`, each of which names its row of the batch. `x`: what the head was given.
    pub(crate) fn change_logits(
        self,
        pool: &ThreadPool,
        rows: &[usize],
        x: &Activations,
        logits: &mut [f32],
        buffer: &mut Vec<f32>,
    ) {
        for (at, row) in rows.iter().enumerate() {
            let span = self.spans.iter().find(|span| span.rows.contains(row));
            if let Some(change) = span.and_then(|span| self.adapters.0[span.adapter.0].output.as_ref()) {
                add_low_rank(pool, Changed { change, rows: at..at + 1, x, y: logits }, buffer);
            }
        }
    }
}

impl LoraLayer {
    /// Every `A` that takes the attention's input.
    pub(crate) fn attention_inputs(&self) -> impl Iterator<Item = &PackedMatrix> {
        [&self.wq, &self.wk, &self.wv].into_iter().flatten().map(LowRank::a)
    }

    /// Every `A` that takes the experts' input, the router's too.
    pub(crate) fn expert_inputs(&self) -> impl Iterator<Item = &PackedMatrix> {
        let of_experts = self.experts.iter().flat_map(|expert| [&expert.w1, &expert.w3]);
        of_experts.chain([&self.router]).flatten().map(LowRank::a)
    }
}

/// Adds a change, if there is one, to rows of `y`, the product of its matrix and `x`.
pub(crate) fn change(
    pool: &ThreadPool,
    change: Option<&LowRank>,
    rows: Range<usize>,
    (x, y): (&Activations, &mut [f32]),
    buffer: &mut Vec<f32>,
) {
    if let Some(change) = change {
        add_low_rank(pool, Changed { change, rows, x, y }, buffer);
    }
}
