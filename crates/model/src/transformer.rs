//! The decoder: embedding, layers, last norm, output head.

use std::path::Path;
use std::sync::Arc;

use octet_checkpoint::{Checkpoint, ElementType};
use octet_kernels::{Activations, PackedMatrix, Product, Reads, Rope, RopeAngles, ThreadPool, matmul};

use crate::attention::Step;
use crate::embedding::Embedding;
use crate::layer::{Layer, LayerBuffers, norm_rows};
use crate::lora::{Adapters, Loras, Span, find_spans};
use crate::packer::Packer;
use crate::{Adapter, AdapterId, Batch, Config, Error, KvCache, Record, Run, weights};

/// How a model is loaded.
#[derive(Default)]
pub struct LoadOptions<'a> {
    /// Quantize float matrices to this type while they are read; `None` keeps what the file holds.
    pub quantize: Option<ElementType>,
    /// When weights are packed.
    pub packing: Packing,
    /// Called with bytes read so far and bytes in all.
    pub progress: Option<&'a mut dyn FnMut(u64, u64)>,
}

/// When weights are packed into the order in which this machine reads them fastest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// Meanwhile, if the model is large and its file in the page cache: then the first token comes many times sooner.
    /// Otherwise at once.
    #[default]
    Auto,
    /// Before the model is ready.
    AtOnce,
    /// On a thread of its own while the model works, which is slower until that is done. The answers have the same bits.
    Meanwhile,
}

/// A model, ready to run: weights packed for this machine, and the threads to run them on.
pub struct Transformer {
    config: Config,
    pool: ThreadPool,
    embedding: Embedding,
    pub(crate) layers: Vec<Layer>,
    /// `[dim]`.
    norm: Vec<f32>,
    /// `[vocab_size, dim]`.
    output: PackedMatrix,
    rope: Rope,
    packer: Packer,
    adapters: Adapters,
}

/// Buffers of a forward pass, reused from step to step so that the steady state allocates nothing.
#[derive(Default)]
pub struct Workspace {
    /// Residual stream `[n, dim]`.
    x: Vec<f32>,
    positions: Vec<usize>,
    angles: RopeAngles,
    embedding_row: Vec<u8>,
    layer: LayerBuffers,
    /// Rows whose logits are wanted, normed, `[logit_rows, dim]`.
    wanted: Vec<f32>,
    normed: Vec<f32>,
    wanted_rows: Activations,
    /// `[logit_rows, vocab_size]`.
    logits: Vec<f32>,
    spans: Vec<Span>,
    inner: Vec<f32>,
}

impl Transformer {
    /// Opens the checkpoint at `path` and packs its weights, with `threads` threads.
    ///
    /// # Errors
    /// If the checkpoint cannot be read, or describes no model that we can run.
    pub fn open(path: &Path, threads: usize, options: LoadOptions<'_>) -> Result<Transformer, Error> {
        Transformer::load(Arc::new(Checkpoint::open(path)?), threads, options)
    }

    /// Packs the weights of an opened checkpoint.
    ///
    /// # Errors
    /// As [`Transformer::open`].
    pub fn load(checkpoint: Arc<Checkpoint>, threads: usize, options: LoadOptions<'_>) -> Result<Transformer, Error> {
        let config = Config::new(checkpoint.params())?;
        let pool = ThreadPool::new(threads);
        let weights = weights::load(&checkpoint, &config, &pool, options)?;
        let rope = Rope::new(config.head_dim, config.rope_theta);
        let packer = Packer::start(weights.unsettled, Arc::clone(&checkpoint));
        let embedding = Embedding::new(checkpoint)?;
        Ok(Transformer {
            config,
            pool,
            embedding,
            layers: weights.layers,
            norm: weights.norm,
            output: weights.output,
            rope,
            packer,
            adapters: Adapters::default(),
        })
    }

    /// Waits until all weights are packed.
    pub fn settle(&self) {
        self.packer.wait();
    }

    /// The shape of the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The threads that the model runs on.
    pub fn pool(&self) -> &ThreadPool {
        &self.pool
    }

    /// Lets runs of a batch have this adapter.
    ///
    /// # Errors
    /// [`Error::Config`] if it is for a model of another shape.
    pub fn add_adapter(&mut self, adapter: &Adapter) -> Result<AdapterId, Error> {
        self.adapters.add(&self.pool, adapter, self.embedding.params())
    }

    /// Bytes of all adapters.
    pub fn adapters_bytes(&self) -> usize {
        self.adapters.bytes()
    }

    /// Bytes of packed weights in memory.
    pub fn weights_bytes(&self) -> usize {
        let layers = self.layers.iter().map(Layer::weights_bytes).sum::<usize>();
        layers + self.output.bytes() + self.norm.len() * 4
    }

    /// Bytes of weights that one generated token reads when `per_token` experts work on it.
    pub fn active_bytes(&self, per_token: usize) -> usize {
        let layers = self.layers.iter().map(|layer| layer.active_bytes(per_token)).sum::<usize>();
        layers + self.output.bytes() + self.norm.len() * 4
    }

    /// Runs a batch: its tokens join `cache`, and the logits `[logit_rows, vocab_size]` of the rows that it asked for come
    /// back.
    ///
    /// Bits of a row of logits do not depend on what else is in the batch, on how a prompt was cut into batches, or on the
    /// number of threads.
    ///
    /// # Errors
    /// A token outside the vocabulary, no room in the cache, or a pass that `record` gave up; nothing has changed then.
    pub fn forward<'w>(
        &self,
        batch: &Batch,
        cache: &mut KvCache,
        workspace: &'w mut Workspace,
        record: &mut dyn Record,
    ) -> Result<&'w [f32], Error> {
        self.check(batch)?;
        admit(batch, cache, &mut workspace.positions)?;
        let Workspace { x, positions, angles, embedding_row, layer: buffers, spans, wanted, .. } = &mut *workspace;
        let dim = self.config.dim;
        x.resize(batch.tokens.len() * dim, 0.0);
        self.embedding.look_up(&batch.tokens, dim, embedding_row, x);
        // A pass that was given up may have left some.
        buffers.delta.clear();
        self.rope.angles(positions, angles);
        find_spans(batch, spans);
        let loras = Loras::new(&self.adapters, spans);
        // Rows of an adapter are known by where they are in the batch.
        let all_rows = record.wants_all_rows() || batch.runs.iter().any(|run| run.adapter.is_some());
        let mut step = Step { pool: &self.pool, config: &self.config, layer: 0, angles, batch, loras };
        for (index, layer) in self.layers.iter().enumerate() {
            if !record.is_wanted() {
                retreat(&batch.runs, cache);
                return Err(Error::GivenUp);
            }
            step.layer = index;
            layer.attend(&step, x, cache, buffers, record);
            record.hidden(index, x);
            if index + 1 == self.layers.len() && !all_rows {
                keep_rows(x, &batch.logit_rows, dim, wanted);
                keep_rows(&mut buffers.delta, &batch.logit_rows, dim, wanted);
            }
            if !x.is_empty() {
                layer.feed_forward(&step, x, buffers, record);
            }
        }
        buffers.settle(x);
        Ok(self.head(batch, all_rows, workspace, record))
    }

    /// The last norm, and logits where they are wanted; there are `all_rows` left, or those alone.
    fn head<'w>(
        &self,
        batch: &Batch,
        all_rows: bool,
        workspace: &'w mut Workspace,
        record: &mut dyn Record,
    ) -> &'w [f32] {
        let Workspace { x, wanted, normed, wanted_rows, logits, spans, inner, .. } = workspace;
        let dim = self.config.dim;
        norm_rows(x, &self.norm, self.config.norm_eps, normed);
        record.hidden(self.layers.len(), normed);
        if all_rows {
            keep_rows(normed, &batch.logit_rows, dim, wanted);
        }
        let wanted = &*normed;
        record.head_input(wanted);
        logits.resize(batch.logit_rows.len() * self.config.vocab_size, 0.0);
        if !wanted.is_empty() {
            let loras = Loras::new(&self.adapters, spans);
            wanted_rows.set(&self.pool, wanted, dim, Reads::of(loras.head_inputs().chain([&self.output])));
            matmul(&self.pool, &mut [Product { w: &self.output, x: wanted_rows, y: logits }]);
            loras.change_logits(&self.pool, &batch.logit_rows, wanted_rows, logits, inner);
        }
        self.packer.begin();
        logits
    }

    fn check(&self, batch: &Batch) -> Result<(), Error> {
        let n: usize = batch.runs.iter().map(|run| run.n_tokens).sum();
        assert_eq!(n, batch.tokens.len(), "the runs of a batch cover its tokens");
        assert!(batch.logit_rows.iter().all(|&row| row < n), "logits are asked for rows of the batch");
        let known = |run: &Run| run.adapter.is_none_or(|id| self.adapters.contains(id));
        assert!(batch.runs.iter().all(known), "adapters are this model's");
        let vocab_size = self.config.vocab_size;
        if let Some(&id) = batch.tokens.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::TokenOutsideVocabulary { id, vocab_size });
        }
        match batch.experts_per_token {
            Some(asked) if asked == 0 || asked > self.config.num_experts => Err(Error::Config(format!(
                "{asked} experts per token cannot be: this model has {} experts",
                self.config.num_experts
            ))),
            _ => Ok(()),
        }
    }
}

/// Takes back the room that these runs were given.
fn retreat(runs: &[Run], cache: &mut KvCache) {
    for run in runs {
        cache.truncate(run.sequence, cache.len(run.sequence) - run.n_tokens);
    }
}

/// Leaves `rows` of `x [n, dim]`, in this order; `kept` is room for them.
fn keep_rows(x: &mut Vec<f32>, rows: &[usize], dim: usize, kept: &mut Vec<f32>) {
    kept.clear();
    rows.iter().for_each(|&row| kept.extend_from_slice(&x[row * dim..][..dim]));
    std::mem::swap(x, kept);
}

/// Makes room in the cache for every run, or for none, and tells the position of every token.
fn admit(batch: &Batch, cache: &mut KvCache, positions: &mut Vec<usize>) -> Result<(), Error> {
    positions.clear();
    for (done, run) in batch.runs.iter().enumerate() {
        let first = cache.len(run.sequence);
        if let Err(error) = cache.extend(run.sequence, run.n_tokens) {
            retreat(&batch.runs[..done], cache);
            return Err(error);
        }
        positions.extend(first..first + run.n_tokens);
    }
    Ok(())
}
