//! A model of a few layers with made-up weights, to measure what a run will cost before there is one.
//!
//! Widths, types and what is trained are the real model's, and so is the code that runs, so the time is the real one's:
//! where weights lie in main memory too, which takes more layers of a small model.

use std::time::Instant;

use octet_checkpoint::{ElementType, LayerTensor, Params, TensorName};
use octet_kernels::quantize::{is_writable, quantize_row};
use octet_model::LoraOptions;

use super::build::Source;
use super::{Model, StepOptions, Trained};
use crate::adamw::{self, AdamW, Slot, StepSize};
use crate::embedding::Embedding;
use crate::linear::{Frozen, Weight};
use crate::lora::noise;
use crate::pace::{Line, Pace};
use crate::{AdapterUse, Batch, Error, Gradients, new_adapter};

/// Different tokens that are tried.
const TOKENS: usize = 256;
/// Weights times tokens of the largest pass that is tried: a second or so of two cores.
const MULTIPLY_ADDS: usize = 100_000_000_000;
/// Bytes of layers that no cache holds, so that weights come from where those of the whole model do.
const UNCACHED_BYTES: u64 = 512 << 20;
/// Passes are tried again, and the best counts: the first one takes its memory, and something else may have wanted the
/// machine. So long, and more than once unless that alone takes longer than the second of these.
const TRY_SECONDS: [f64; 2] = [0.05, 2.0];

/// Largest weight: activations stay finite.
const SPREAD: f32 = 0.02;

/// Numbers that were never read from a file.
pub(super) struct Blank<'a> {
    pub(super) params: &'a Params,
    pub(super) element_type: &'a dyn Fn(TensorName) -> ElementType,
}

impl Blank<'_> {
    pub(super) fn frozen(&self, name: TensorName) -> Frozen {
        let shape = self.params.shape(name);
        if shape[0] == 1 || matches!(name, TensorName::Layer(_, LayerTensor::Router)) {
            let bytes = Blank::values(name, shape).into_iter().flat_map(f32::to_le_bytes).collect();
            return Frozen::of_bytes(name, ElementType::F32, bytes);
        }
        let element_type = (self.element_type)(name);
        // Columns that no block fills are refused where files are read, and stay floats where they are written.
        let (element_type, row_bytes) = match element_type.row_bytes(shape[1]) {
            Some(bytes) => (element_type, bytes),
            None => (ElementType::F32, 4 * shape[1]),
        };
        // A row of small numbers again and again; pages that were never written to would all be one page in the cache.
        let mut row = vec![0; row_bytes];
        if is_writable(element_type) {
            let numbers: Vec<f32> = some_numbers(shape[1]).iter().map(|x| SPREAD * x).collect();
            quantize_row(element_type, &numbers, None, &mut row);
        }
        Frozen::of_bytes(name, element_type, row.repeat(shape[0]))
    }

    pub(super) fn values(name: TensorName, [rows, cols]: [usize; 2]) -> Vec<f32> {
        match name {
            TensorName::TokenEmbedding => {
                let mut values = some_numbers(rows.min(TOKENS) * cols);
                values.resize(rows * cols, 0.0);
                values
            }
            TensorName::Layer(_, LayerTensor::Router) => some_numbers(rows * cols),
            _ if rows == 1 => vec![1.0; cols],
            _ => some_numbers(cols).iter().map(|x| SPREAD * x).collect::<Vec<_>>().repeat(rows),
        }
    }
}

/// Numbers between -1 and 1.
fn some_numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| (noise(0, 0, i as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

/// Some layers, output head and trained numbers of a model.
pub struct Sketch {
    model: Model,
}

impl Sketch {
    /// Of a model with these types, of which `lora` is trained, or all weights.
    ///
    /// # Errors
    /// A shape that we do not run, or options that make no adapter.
    pub fn new(
        params: &Params,
        element_type: &dyn Fn(TensorName) -> ElementType,
        lora: Option<&LoraOptions>,
        threads: usize,
    ) -> Result<Sketch, Error> {
        let few = Params { n_layers: Sketch::layers(params, element_type, lora), ..params.clone() };
        // In mixes of types the first and the last layers are often finer.
        let middle = |name| match name {
            TensorName::Layer(_, tensor) => TensorName::Layer(params.n_layers / 2, tensor),
            other => other,
        };
        let blank = Blank { params: &few, element_type: &|name| element_type(middle(name)) };
        let trained = match lora {
            Some(options) => Trained::Adapter(new_adapter(options.clone(), &few)?),
            None => Trained::All,
        };
        let mut model = Model::build(Source::Blank(&blank), threads, &trained)?;
        if let Weight::Frozen(_) = model.embedding.weight {
            let rows = some_numbers(TOKENS.min(few.vocab_size) * few.dim);
            let bytes = rows.into_iter().flat_map(f32::to_le_bytes).collect();
            let table = Frozen::of_bytes(TensorName::TokenEmbedding, ElementType::F32, bytes);
            model.embedding = Embedding { weight: Weight::Frozen(table), dim: few.dim };
        }
        Ok(Sketch { model })
    }

    /// How many layers are tried.
    pub fn layers(
        params: &Params,
        element_type: &dyn Fn(TensorName) -> ElementType,
        lora: Option<&LoraOptions>,
    ) -> usize {
        let middle = params.n_layers / 2;
        let bytes = |name: TensorName| {
            let [rows, cols] = params.shape(name);
            let stored = element_type(name).row_bytes(cols).filter(|_| lora.is_some());
            (rows * stored.unwrap_or(4 * cols)) as u64
        };
        let of_layer = params.tensors().filter(|name| matches!(name, TensorName::Layer(index, _) if *index == middle));
        let layer: u64 = of_layer.map(bytes).sum();
        (UNCACHED_BYTES.div_ceil(layer.max(1)) as usize).min(params.n_layers)
    }

    /// Measures, with passes of up to `tokens` tokens in samples of `sample` tokens.
    pub fn pace(mut self, tokens: usize, sample: usize) -> Pace {
        let config = &self.model.config;
        let expert = 3 * config.dim * config.hidden_dim;
        let layer = 2 * config.dim * (config.q_dim() + config.kv_dim())
            + config.num_experts_per_tok * expert
            + config.q_dim() * sample;
        let head = config.dim * config.vocab_size;
        let fitting = |weights: usize| (MULTIPLY_ADDS / weights).clamp(TOKENS / 2, MULTIPLY_ADDS).min(tokens).max(2);
        let (wide, read) = (fitting(layer * self.model.layers.len()), fitting(head));
        let batches = [wide.div_ceil(4), wide].map(|n| batch(&self.model, n, sample, false));
        let mut gradients = self.model.zero_gradients();
        let mut both = |model: &Model| batches.each_ref().map(|batch| seconds(model, batch, &mut gradients));
        let with_layers = both(&self.model);
        let n_layers = self.model.layers.len() as f64;
        self.model.layers.clear();
        let without = both(&self.model);
        let line = |of: fn([f64; 2]) -> f64| {
            let [narrow, wide] = [0, 1].map(|i| (of(with_layers[i]) - of(without[i])).max(0.0) / n_layers);
            Line::through(batches.each_ref().map(|batch| batch.tokens().len()), [narrow, wide])
        };
        let head = seconds(&self.model, &batch(&self.model, read, sample, true), &mut gradients);
        Pace {
            forward: line(|[forward, _]| forward),
            backward: line(|[forward, both]| both - forward),
            head: head.map(|seconds| seconds / read as f64),
            update: update_seconds(&mut self.model, &mut gradients),
        }
    }
}

/// Samples end to end, all of whose tokens are learned, or their last ones alone.
fn batch(model: &Model, tokens: usize, sample: usize, learned: bool) -> Batch {
    let ids: Vec<u32> = (0..tokens).map(|i| (i % TOKENS.min(model.config.vocab_size)) as u32).collect();
    let mut batch = Batch::default();
    for ids in ids.chunks(sample.max(1)) {
        let mut labels: Vec<_> = ids.iter().map(|&id| learned.then_some(id)).collect();
        labels[ids.len() - 1] = ids.last().copied();
        batch.push(ids, &labels);
    }
    batch
}

/// Seconds of a pass forward, and of one forward and back.
fn seconds(model: &Model, batch: &Batch, gradients: &mut Gradients) -> [f64; 2] {
    let options = StepOptions { divisor: Some(1.0), kept_bytes: usize::MAX, ..StepOptions::default() };
    let works = "ids are within the vocabulary";
    [
        best_of(|| model.loss(batch, &options, AdapterUse::On).map(drop).expect(works)),
        best_of(|| model.loss_and_gradients(batch, &options, gradients).map(drop).expect(works)),
    ]
}

/// Seconds that a step's clearing, norm and update take for each trained number.
fn update_seconds(model: &mut Model, gradients: &mut Gradients) -> f64 {
    let (parameters, pool) = model.parameters_and_pool();
    let count = parameters.n_values();
    let mut moments: Vec<[Vec<f32>; 2]> = gradients.iter().map(|g| [g.to_vec(), g.to_vec()]).collect();
    let whole = best_of(|| {
        gradients.clear();
        let norm = adamw::norm(gradients.iter());
        let size = StepSize { step: 1, rate: 0.0, gradient_factor: adamw::clip_factor(norm, None) };
        let all = parameters.iter_mut().zip(gradients.iter()).zip(&mut moments);
        let mut slots = Vec::with_capacity(all.len());
        for ((parameter, gradient), [first, second]) in all {
            let decays = parameter.decays();
            slots.push(Slot { weights: &mut parameter.values, gradient, first, second, decays });
        }
        AdamW::default().step(pool, size, slots);
    });
    whole / count.max(1) as f64
}

fn best_of(mut run: impl FnMut()) -> f64 {
    let (begun, mut best, mut runs) = (Instant::now(), f64::INFINITY, 0);
    loop {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
        let spent = begun.elapsed().as_secs_f64();
        if spent > TRY_SECONDS[1] || (runs > 1 && spent > TRY_SECONDS[0]) {
            return best;
        }
    }
}
