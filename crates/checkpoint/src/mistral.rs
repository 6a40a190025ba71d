//! Mistral's release: `params.json` and `consolidated.*` files, of which several are one union of tensors.
//!
//! Experts stand by themselves (`feed_forward.experts.E.w1.weight`) or stacked as in the torrent of 8x7B
//! (`block_sparse_moe.w1`, all experts' rows in one matrix), where w2 is stored transposed so that it stacks too.

use crate::config_file::{ConfigFile, as_count};
use crate::error::shown;
use crate::tensor::{Arrangement, Source};
use crate::{Architecture, Error, ExpertMatrix, LayerTensor, Moe, Params, TensorName};

/// The name of the configuration.
pub(crate) const PARAMS: &str = "params.json";
/// What the names of weights begin with.
pub(crate) const WEIGHTS: &str = "consolidated";

/// The model's shape from `params.json`.
pub(crate) fn params(config: &ConfigFile) -> Result<Params, Error> {
    refuse_unsupported(config)?;
    let moe = moe(config)?;
    let sliding_window = config.optional_count("sliding_window")?;
    // Mistral's own code: 1e6, or 1e4 where there is a sliding window.
    let default_theta = if sliding_window.is_some() { 1e4 } else { 1e6 };
    let params = Params {
        architecture: if moe.is_some() { Architecture::Mixtral } else { Architecture::Mistral },
        dim: config.count("dim")?,
        n_layers: config.count("n_layers")?,
        head_dim: config.count("head_dim")?,
        hidden_dim: config.count("hidden_dim")?,
        n_heads: config.count("n_heads")?,
        n_kv_heads: config.count("n_kv_heads")?,
        vocab_size: config.count("vocab_size")?,
        norm_eps: config.optional_float("norm_eps")?.ok_or_else(|| config.missing("norm_eps"))?,
        rope_theta: config.optional_float("rope_theta")?.unwrap_or(default_theta),
        sliding_window,
        context_length: context_length(config)?,
        tied_embeddings: config.flag("tied_embeddings")?,
        moe,
        router_aux_loss_coef: None,
        bos_id: None,
        eos_id: None,
    };
    params.check(config.path())
}

/// Mistral's later files say how long a context the model was made for, under either name.
fn context_length(config: &ConfigFile) -> Result<Option<usize>, Error> {
    Ok(match config.optional_count("max_position_embeddings")? {
        Some(n) => Some(n),
        None => config.optional_count("max_seq_len")?,
    })
}

fn moe(config: &ConfigFile) -> Result<Option<Moe>, Error> {
    let Some(moe) = config.get("moe") else { return Ok(None) };
    let count = |key: &str| {
        let name = format!("moe.{key}");
        match moe.get(key) {
            Some(value) => as_count(config.path(), &name, value),
            None => Err(config.missing(&name)),
        }
    };
    Ok(Some(Moe { num_experts: count("num_experts")?, num_experts_per_tok: count("num_experts_per_tok")? }))
}

/// Refuses what would change the numbers if we passed over it.
fn refuse_unsupported(config: &ConfigFile) -> Result<(), Error> {
    const PLAIN: &str = "Octet runs Mistral's plain and expert decoders";
    for key in
        ["yarn", "rope_scaling", "llama_4_scaling", "quantization", "lora", "vision_encoder", "q_lora_rank", "ssm_cfg"]
    {
        if config.has(key) && config.get(key).is_some() {
            return Err(Error::unsupported(config.path(), format!("`{key}`"), PLAIN));
        }
    }
    if config.flag("use_biases")? {
        return Err(Error::unsupported(config.path(), "`use_biases` true", PLAIN));
    }
    if let Some(kind) = config.get("model_type").and_then(|kind| kind.as_str())
        && kind != "transformer"
    {
        return Err(Error::unsupported(config.path(), format!("`model_type` {:?}", shown(kind)), PLAIN));
    }
    Ok(())
}

/// Where a file may hold a tensor: by itself, or among the stacked experts.
pub(crate) fn sources(params: &Params, name: TensorName) -> Vec<Source> {
    let [rows, cols] = params.shape(name).map(|n| n as u64);
    let as_is = |stored| Source { stored, shape: vec![rows, cols], arrangement: Arrangement::Rows { first: 0 } };
    let mut sources = vec![as_is(name.mistral(params.moe))];
    match (name, params.moe) {
        (TensorName::Layer(layer, LayerTensor::Router), _) => {
            sources.push(as_is(format!("layers.{layer}.block_sparse_moe.gate.weight")));
        }
        (TensorName::Layer(layer, LayerTensor::Expert(expert, matrix)), Some(moe)) => {
            let stacked = format!("layers.{layer}.block_sparse_moe.{}", matrix.mistral());
            sources.extend(
                [stacked.clone() + ".weight", stacked].map(|stored| in_stack(params, moe, expert, matrix, stored)),
            );
        }
        _ => {}
    }
    sources
}

/// An expert's matrix within the stack of all, `[num_experts * hidden_dim, dim]` for each of w1, w2, w3.
fn in_stack(params: &Params, moe: Moe, expert: usize, matrix: ExpertMatrix, stored: String) -> Source {
    let first = expert * params.hidden_dim;
    let arrangement = match matrix {
        ExpertMatrix::W2 => Arrangement::Transposed { first },
        ExpertMatrix::W1 | ExpertMatrix::W3 => Arrangement::Rows { first },
    };
    Source { stored, shape: vec![(moe.num_experts * params.hidden_dim) as u64, params.dim as u64], arrangement }
}
