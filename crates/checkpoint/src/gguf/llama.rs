//! Mixtral in GGUF: the `llama.*` keys, and which stored tensor holds what.
//!
//! The experts of a layer are one tensor `[num_experts, out, in]`; files from December 2023 to April 2024 hold one
//! tensor an expert, `blk.3.ffn_gate.5.weight`. Rows of q and k already have rotary pairs as neighbours.

use std::path::Path;

use super::Metadata;
use crate::checkpoint::Inventory;
use crate::error::shown;
use crate::tensor::{Arrangement, Source};
use crate::{Architecture, Error, ExpertMatrix, LayerTensor, Moe, Params, TensorName};

/// The model's shape from the keys; tied embeddings and, where no key says it, the vocabulary from the tensors.
pub(crate) fn params(path: &Path, metadata: &Metadata, inventory: &Inventory) -> Result<Params, Error> {
    let keys = Keys { path, metadata };
    keys.check_architecture()?;
    keys.check_rope_scaling()?;
    let moe = keys.moe()?;
    let dim = keys.count("llama.embedding_length")?;
    let n_heads = keys.count("llama.attention.head_count")?;
    let params = Params {
        architecture: if moe.is_some() { Architecture::Mixtral } else { Architecture::Llama },
        dim,
        n_layers: keys.count("llama.block_count")?,
        head_dim: keys.head_dim(dim, n_heads)?,
        hidden_dim: keys.count("llama.feed_forward_length")?,
        n_heads,
        n_kv_heads: keys.optional_count("llama.attention.head_count_kv")?.unwrap_or(n_heads),
        vocab_size: keys.vocab_size(inventory)?,
        norm_eps: keys.float("llama.attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
        rope_theta: keys.float("llama.rope.freq_base")?.unwrap_or(1e4),
        sliding_window: keys.optional_count("llama.attention.sliding_window")?.filter(|&n| n > 0),
        context_length: keys.optional_count("llama.context_length")?,
        tied_embeddings: inventory.find(&TensorName::Output.gguf(moe)).is_none(),
        moe,
        router_aux_loss_coef: None,
        bos_id: keys.id("tokenizer.ggml.bos_token_id"),
        eos_id: keys.id("tokenizer.ggml.eos_token_id"),
    };
    params.check(path)
}

/// Where a file may hold a tensor: the merged form first, then the old one.
pub(crate) fn sources(params: &Params, name: TensorName) -> Vec<Source> {
    let [rows, cols] = params.shape(name).map(|n| n as u64);
    let plain = |stored: String, shape| Source { stored, shape, arrangement: Arrangement::Rows { first: 0 } };
    match (name, params.moe) {
        (TensorName::Layer(layer, LayerTensor::Expert(expert, matrix)), Some(moe)) => {
            let merged = Source {
                stored: name.gguf(Some(moe)),
                shape: vec![moe.num_experts as u64, rows, cols],
                arrangement: Arrangement::Rows { first: expert * rows as usize },
            };
            vec![merged, plain(one_tensor_an_expert(layer, expert, matrix), vec![rows, cols])]
        }
        _ => vec![plain(name.gguf(params.moe), vec![rows, cols])],
    }
}

fn one_tensor_an_expert(layer: usize, expert: usize, matrix: ExpertMatrix) -> String {
    format!("blk.{layer}.ffn_{}.{expert}.weight", matrix.gguf())
}

struct Keys<'a> {
    path: &'a Path,
    metadata: &'a Metadata,
}

impl Keys<'_> {
    fn check_architecture(&self) -> Result<(), Error> {
        const KEY: &str = "general.architecture";
        match self.metadata.str(KEY) {
            Some("llama") => Ok(()),
            Some(other) => {
                let what = format!("architecture {:?}", shown(other));
                Err(Error::unsupported(self.path, what, "Octet runs `llama` files: Mixtral, Mistral and Llama"))
            }
            None => Err(Error::key(self.path, KEY, "is missing; this is no language model's GGUF")),
        }
    }

    /// Anything that changes the rotary angles would give wrong numbers in silence.
    fn check_rope_scaling(&self) -> Result<(), Error> {
        const REMEDY: &str = "Octet runs models with plain rotary embeddings";
        if let Some(kind) = self.metadata.str("llama.rope.scaling.type")
            && kind != "none"
            && !(kind == "linear" && self.metadata.f32("llama.rope.scaling.factor").is_none_or(|x| x == 1.0))
        {
            return Err(Error::unsupported(self.path, format!("rope scaling {:?}", shown(kind)), REMEDY));
        }
        if self.metadata.f32("llama.rope.scale_linear").is_some_and(|x| x != 1.0) {
            return Err(Error::unsupported(self.path, "rope scaling \"linear\"", REMEDY));
        }
        Ok(())
    }

    fn moe(&self) -> Result<Option<Moe>, Error> {
        match self.optional_count("llama.expert_count")? {
            None | Some(0) => Ok(None),
            Some(num_experts) => {
                let num_experts_per_tok = self.count("llama.expert_used_count")?;
                Ok(Some(Moe { num_experts, num_experts_per_tok }))
            }
        }
    }

    fn head_dim(&self, dim: usize, n_heads: usize) -> Result<usize, Error> {
        const KEY: &str = "llama.attention.key_length";
        let head_dim = match self.optional_count(KEY)? {
            Some(head_dim) => head_dim,
            None => dim.checked_div(n_heads).unwrap_or(0),
        };
        for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            if let Some(other) = self.optional_count(key)?
                && other != head_dim
            {
                let what = format!("`{key}` {other} beside a head of {head_dim}");
                return Err(Error::unsupported(self.path, what, "Octet runs heads of one width, rotated as a whole"));
            }
        }
        Ok(head_dim)
    }

    fn vocab_size(&self, inventory: &Inventory) -> Result<usize, Error> {
        if let Some(tokens) = self.metadata.array("tokenizer.ggml.tokens") {
            return Ok(tokens.len());
        }
        if let Some(n) = self.optional_count("llama.vocab_size")? {
            return Ok(n);
        }
        let embedding = inventory.find("token_embd.weight").and_then(|tensor| tensor.shape.first().copied());
        embedding.map(|rows| rows as usize).ok_or_else(|| self.missing("tokenizer.ggml.tokens"))
    }

    fn count(&self, key: &str) -> Result<usize, Error> {
        self.optional_count(key)?.ok_or_else(|| self.missing(key))
    }

    /// An integer, or a list of equal integers, one a layer, as some writers have it.
    fn optional_count(&self, key: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        if let Some(n) = value.as_u64() {
            return Ok(Some(usize::try_from(n).unwrap_or(usize::MAX)));
        }
        let integers = value.as_array().and_then(|array| array.integers()).unwrap_or_default();
        match integers.first() {
            Some(&first) if first >= 0 && integers.iter().all(|&n| n == first) => Ok(Some(first as usize)),
            Some(_) => Err(Error::unsupported(
                self.path,
                format!("`{key}` that differs by layer"),
                "Octet runs models whose layers are alike",
            )),
            None => Err(Error::key(self.path, key, "is no whole number; the file is damaged")),
        }
    }

    fn float(&self, key: &str) -> Result<Option<f32>, Error> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(value) => {
                value.as_f32().map(Some).ok_or_else(|| Error::key(self.path, key, "is no number; the file is damaged"))
            }
        }
    }

    fn id(&self, key: &str) -> Option<u32> {
        self.metadata.u64(key).and_then(|id| id.try_into().ok())
    }

    fn missing(&self, key: &str) -> Error {
        Error::key(self.path, key, "is missing; the file is damaged or no language model, fetch it again")
    }
}
