//! The same decoder for a model larger than memory: a whole text goes through one layer, and within it one expert, before
//! the weights of the next are read.
//!
//! Resident are the residual stream of all tokens, and the weights at work: of Mixtral 8x22B in bf16 an expert of 0.6 GB.
//! This is how a text is scored or calibrated on; it generates nothing, since the second token would read it all again.

use std::sync::Arc;

use octet_checkpoint::{Checkpoint, TensorName};
use octet_kernels::{Activations, KvType, PackedMatrix, Product, Reads, Rope, RopeAngles, ThreadPool, matmul};

use crate::attention::Step;
use crate::embedding::Embedding;
use crate::experts::{self, ExpertIndex};
use crate::layer::{Layer, LayerBuffers, norm_rows};
use crate::lora::{Adapters, Loras};
use crate::weights::Loader;
use crate::{Batch, Config, Error, KvCache, LoadOptions, Logits, Packing, Record, Routing};

/// Bytes of the residual stream and its norm together, for the tokens that run at once.
const STREAM_BYTES: usize = 1 << 30;

/// A model whose weights stay on disk until they are used.
pub struct Layerwise {
    checkpoint: Arc<Checkpoint>,
    config: Config,
    pool: ThreadPool,
    embedding: Embedding,
    rope: Rope,
}

impl Layerwise {
    /// Prepares to run an opened checkpoint. Reads no weights.
    ///
    /// # Errors
    /// If it describes no model that we can run.
    pub fn new(checkpoint: Arc<Checkpoint>, threads: usize) -> Result<Layerwise, Error> {
        let config = Config::new(checkpoint.params())?;
        let rope = Rope::new(config.head_dim, config.rope_theta);
        let embedding = Embedding::new(Arc::clone(&checkpoint))?;
        Ok(Layerwise { checkpoint, config, pool: ThreadPool::new(threads), embedding, rope })
    }

    /// The shape of the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Tokens that [`Layerwise::forward`] should be given at most, to stay within its share of memory.
    pub fn tokens_at_once(&self) -> usize {
        STREAM_BYTES / (2 * size_of::<f32>() * self.config.dim)
    }

    /// Runs texts that know nothing of each other, and gives what follows the last norm, `[tokens, dim]`, text after text:
    /// what [`Head::logits`] takes. `record` sees the inputs of every matrix but the head's; `progress` gets bytes of
    /// weights read so far and in all.
    ///
    /// # Errors
    /// A token outside the vocabulary, or a tensor that is missing.
    pub fn forward(
        &self,
        texts: &[&[u32]],
        record: &mut dyn Record,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Vec<f32>, Error> {
        let (config, ids) = (&self.config, texts.concat());
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= config.vocab_size) {
            return Err(Error::TokenOutsideVocabulary { id, vocab_size: config.vocab_size });
        }
        let mut loader =
            Loader::new(&self.checkpoint, &self.pool, LoadOptions { progress: Some(progress), ..at_once() });
        let mut x = vec![0.0; ids.len() * config.dim];
        self.embedding.look_up(&ids, config.dim, &mut Vec::new(), &mut x);
        let mut normed = Vec::new();
        for layer in 0..config.n_layers {
            let weights = loader.layer_without_experts(config, layer)?;
            self.attend(layer, &weights, texts, &mut x, record)?;
            norm_rows(&x, &weights.ffn_norm, config.norm_eps, &mut normed);
            let routing = self.route(&weights, &normed);
            record.routing(layer, &routing);
            for expert in 0..config.num_experts {
                let weights = loader.expert(layer, expert)?;
                let index = ExpertIndex { layer, expert };
                experts::add_answers(&self.pool, (index, &weights), &normed, &routing, record, &mut x);
            }
        }
        let norm = loader.vector(TensorName::OutputNorm)?;
        norm_rows(&x, &norm, config.norm_eps, &mut normed);
        Ok(normed)
    }

    /// Attention of one layer, text by text.
    fn attend(
        &self,
        layer: usize,
        weights: &Layer,
        texts: &[&[u32]],
        x: &mut [f32],
        record: &mut dyn Record,
    ) -> Result<(), Error> {
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let mut cache = KvCache::new(&self.config, KvType::F32, longest)?;
        let adapters = Adapters::default();
        let loras = Loras::new(&adapters, &[]);
        let (mut buffers, mut angles, mut rest) = (LayerBuffers::default(), RopeAngles::default(), x);
        for text in texts {
            let (x, others) = rest.split_at_mut(text.len() * self.config.dim);
            rest = others;
            let sequence = cache.add_sequence();
            let mut batch = Batch::default();
            batch.push(sequence, text, Logits::None);
            cache.extend(sequence, text.len())?;
            let positions: Vec<usize> = (0..text.len()).collect();
            self.rope.angles(&positions, &mut angles);
            let step = Step { pool: &self.pool, config: &self.config, layer, angles: &angles, batch: &batch, loras };
            weights.attend(&step, x, &mut cache, &mut buffers, record);
            buffers.settle(x);
            cache.remove_sequence(sequence);
        }
        Ok(())
    }

    /// The choices for every row of `normed [tokens, dim]`, a few rows at a time.
    fn route(&self, weights: &Layer, normed: &[f32]) -> Routing {
        const ROWS: usize = 512;
        let (config, mut all, mut some) = (&self.config, Routing::default(), Routing::default());
        let (mut rows, angles) = (Activations::new(), RopeAngles::default());
        let adapters = Adapters::default();
        let loras = Loras::new(&adapters, &[]);
        let step = Step { pool: &self.pool, config, layer: 0, angles: &angles, batch: &Batch::default(), loras };
        for normed in normed.chunks(ROWS * config.dim) {
            rows.set(&self.pool, normed, config.dim, Reads::of(&weights.router));
            weights.route(&step, &rows, &mut some);
            all.append(&some);
        }
        all
    }

    /// Reads the output head.
    ///
    /// # Errors
    /// If it is missing.
    pub fn head(&self) -> Result<Head<'_>, Error> {
        let matrix = Loader::new(&self.checkpoint, &self.pool, at_once()).head()?;
        Ok(Head { matrix, pool: &self.pool, rows: Activations::new() })
    }
}

/// The output head of a [`Layerwise`].
pub struct Head<'a> {
    /// `[vocab_size, dim]`.
    matrix: PackedMatrix,
    pool: &'a ThreadPool,
    rows: Activations,
}

impl Head<'_> {
    /// Logits `[rows, vocab_size]` of rows of the normed stream, `[rows, dim]`.
    pub fn logits(&mut self, normed: &[f32]) -> Vec<f32> {
        self.rows.set(self.pool, normed, self.matrix.cols(), Reads::of([&self.matrix]));
        let mut logits = vec![0.0; self.rows.rows() * self.matrix.rows()];
        matmul(self.pool, &mut [Product { w: &self.matrix, x: &self.rows, y: &mut logits }]);
        logits
    }
}

/// A layer is packed, used, and let go of.
fn at_once<'a>() -> LoadOptions<'a> {
    LoadOptions { packing: Packing::AtOnce, ..Default::default() }
}
