//! Bytes that a model takes in memory: weights, keys and values, and the buffers of a forward pass.

use std::path::Path;

use octet_checkpoint::{Checkpoint, ElementType, Error, LayerTensor, Params, TensorName};
use octet_engine::OpenOptions;
use octet_kernels::{KvPages, KvType};

use crate::format;

/// Tokens of context that are meant where nobody says how many, in this program and in its tables.
pub const CONTEXT_TOKENS: usize = OpenOptions::DEFAULT_CONTEXT;
/// The program itself, its tokenizer and the metadata of the files.
const PROGRAM_BYTES: u64 = 24 << 20;

/// The shape of the model at `path`, and its checkpoint unless only a `params.json` or `config.json` is given or there.
///
/// # Errors
/// Neither is there, or what is there is no model that Octet runs.
pub fn read(path: &Path) -> Result<(Params, Option<Checkpoint>), Error> {
    let params = Params::read(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with(".json") && !name.ends_with(".index.json") {
        return Ok((params, None));
    }
    match Checkpoint::open(path) {
        Ok(checkpoint) => Ok((checkpoint.params().clone(), Some(checkpoint))),
        Err(Error::NotFound { .. }) => Ok((params, None)),
        Err(error) => Err(error),
    }
}

/// What a model takes in memory once its context is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Footprint {
    /// Packed weights.
    pub weights: u64,
    /// Keys and values of the whole context.
    pub kv_cache: u64,
    /// Activations of one pass, and the program.
    pub buffers: u64,
}

/// How a model is to run.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Tokens of context of each user.
    pub context: usize,
    /// Conversations held at the same time.
    pub users: usize,
    /// How keys and values are kept.
    pub kv: KvType,
    /// Tokens of a prompt that run in one pass.
    pub chunk: usize,
}

impl Footprint {
    /// The footprint of a model whose tensors have these types.
    pub fn new(params: &Params, element_type: impl Fn(TensorName) -> ElementType, usage: &Use) -> Footprint {
        let tokens = (usage.context * usage.users) as u64;
        Footprint {
            weights: weights_bytes(params, element_type),
            kv_cache: tokens.saturating_mul(kv_bytes_per_token(params, usage.kv)),
            buffers: PROGRAM_BYTES + buffers_bytes(params, usage.chunk.min(usage.context)),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv_cache).saturating_add(self.buffers)
    }
}

impl std::fmt::Display for Footprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [total, weights, kv_cache, buffers] =
            [self.total(), self.weights, self.kv_cache, self.buffers].map(format::bytes);
        write!(f, "{total} (weights {weights}, KV cache {kv_cache}, buffers {buffers})")
    }
}

/// Context where nobody says how much: the model's own, at most [`CONTEXT_TOKENS`].
pub fn default_context(params: &Params) -> usize {
    params.context_length.unwrap_or(CONTEXT_TOKENS).min(CONTEXT_TOKENS)
}

/// The type that each tensor has in a checkpoint, or would have if float matrices were quantized while loading.
pub fn types_of(checkpoint: &Checkpoint, quantize: Option<ElementType>) -> impl Fn(TensorName) -> ElementType {
    move |name| {
        let stored = checkpoint.find(name).map_or(ElementType::F32, |tensor| tensor.element_type());
        let [rows, cols] = checkpoint.params().shape(name);
        match quantize {
            Some(asked) if rows > 1 && !stored.is_quantized() && !is_router(name) => {
                octet_kernels::quantize::fallback(asked, cols)
            }
            _ => stored,
        }
    }
}

fn is_router(name: TensorName) -> bool {
    matches!(name, TensorName::Layer(_, LayerTensor::Router))
}

/// Bytes of the weights that stay in memory. Vectors and routers run in f32. The table of embeddings is looked up in its
/// file, row by row, and takes memory only where it is the output head too.
pub fn weights_bytes(params: &Params, element_type: impl Fn(TensorName) -> ElementType) -> u64 {
    let bytes = |name: TensorName| {
        let is_vector = params.shape(name)[0] == 1;
        let kept = if is_vector || is_router(name) { ElementType::F32 } else { element_type(name) };
        tensor_bytes(params, name, kept)
    };
    let resident = |name: &TensorName| *name != TensorName::TokenEmbedding || params.tied_embeddings;
    params.tensors().filter(resident).map(bytes).sum()
}

/// Bytes of the weights in a file.
pub fn file_bytes(params: &Params, element_type: impl Fn(TensorName) -> ElementType) -> u64 {
    params.tensors().map(|name| tensor_bytes(params, name, element_type(name))).sum()
}

/// Bytes of the weights that one step reads in which each of `users` draws a token: of each layer those experts that at
/// least one of them chose, if all experts are equally likely.
pub fn active_bytes(params: &Params, element_type: impl Fn(TensorName) -> ElementType, users: usize) -> u64 {
    let all = weights_bytes(params, &element_type);
    let Some(moe) = params.moe else { return all };
    let is_expert = |name: &TensorName| matches!(name, TensorName::Layer(_, LayerTensor::Expert(..)));
    let experts: u64 = params.tensors().filter(is_expert).map(|n| tensor_bytes(params, n, element_type(n))).sum();
    let idle = (1.0 - moe.num_experts_per_tok as f64 / moe.num_experts as f64).powf(users as f64);
    all - (experts as f64 * idle) as u64
}

fn tensor_bytes(params: &Params, name: TensorName, element_type: ElementType) -> u64 {
    let [rows, cols] = params.shape(name);
    // A mix never chooses a type whose blocks the columns do not fill.
    rows as u64 * element_type.row_bytes(cols).unwrap_or(cols * 4) as u64
}

/// Bytes that a token's keys and values take over all layers; of a shape for which there is no such number, the largest.
pub fn kv_bytes_per_token(params: &Params, kind: KvType) -> u64 {
    const PAGE_TOKENS: usize = octet_model::KvCache::PAGE_TOKENS;
    // Of no page: it is the size that is asked for, and no memory.
    let pages = KvPages::new(kind, params.n_layers, params.n_kv_heads, params.head_dim, PAGE_TOKENS, 0);
    pages.map_or(u64::MAX, |pages| pages.bytes_per_token() as u64)
}

/// Bytes of the buffers through which `chunk` tokens pass: in f32, the residual stream and its norm, queries, keys, values
/// and what was attended, and for each expert of a token the gate, the up-projection and the result.
fn buffers_bytes(params: &Params, chunk: usize) -> u64 {
    let per_token = params.moe.map_or(1, |moe| moe.num_experts_per_tok);
    let queries = params.n_heads * params.head_dim;
    let keys = params.n_kv_heads * params.head_dim;
    let attention = 3 * params.dim + 2 * queries + 2 * keys;
    let experts = per_token * (2 * params.hidden_dim + params.dim);
    4 * (chunk * (attention + experts) + params.vocab_size) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page of 2^48 bytes is more than any process of today can map.
    #[test]
    fn keys_and_values_count_where_no_page_of_them_could_be_had() {
        let shape = crate::synth::params_of("mixtral-8x7b").unwrap();
        let tokens = |params: &Params| kv_bytes_per_token(params, KvType::F16);
        assert_eq!(tokens(&shape), 128 << 10);
        let wide = Params { n_layers: 1 << 16, n_kv_heads: 1 << 12, head_dim: 1 << 12, ..shape.clone() };
        assert_eq!(tokens(&wide), 1 << 42);
        let usage = Use { context: usize::MAX >> 12, users: 4096, kv: KvType::F16, chunk: 512 };
        assert_eq!(Footprint::new(&wide, |_| ElementType::BF16, &usage).total(), u64::MAX);
    }
}
