//! Hugging Face's layout: `config.json` of transformers 4 and 5, `model.safetensors` in one file or sharded.
//!
//! Rows of q and k stand as halves (see `tensor`). transformers 5 may fuse the experts of a layer into
//! `gate_up_proj [num_experts, 2 hidden_dim, dim]` (gate first) and `down_proj [num_experts, dim, hidden_dim]`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config_file::ConfigFile;
use crate::error::shown;
use crate::tensor::{Arrangement, Source};
use crate::{Architecture, Error, ExpertMatrix, LayerTensor, Moe, Params, TensorName};

/// The name of the file that says which shard holds which tensor.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// The name of a checkpoint's only weights file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The name of the configuration.
pub(crate) const CONFIG: &str = "config.json";

/// The model's shape from `config.json`.
pub(crate) fn params(config: &ConfigFile) -> Result<Params, Error> {
    let architecture = architecture(config)?;
    refuse_unsupported(config)?;
    let dim = config.count("hidden_size")?;
    let n_heads = config.count("num_attention_heads")?;
    let kv_default = if architecture == Architecture::Llama { n_heads } else { 8 };
    let params = Params {
        architecture,
        dim,
        n_layers: config.count("num_hidden_layers")?,
        head_dim: config.optional_count("head_dim")?.unwrap_or(dim.checked_div(n_heads).unwrap_or(0)),
        hidden_dim: config.count("intermediate_size")?,
        n_heads,
        n_kv_heads: config.optional_count("num_key_value_heads")?.unwrap_or(kv_default),
        vocab_size: config.count("vocab_size")?,
        norm_eps: config.optional_float("rms_norm_eps")?.unwrap_or(default_norm_eps(architecture)),
        rope_theta: rope_theta(config)?.unwrap_or(default_rope_theta(architecture)),
        sliding_window: sliding_window(config, architecture)?,
        context_length: config.optional_count("max_position_embeddings")?,
        tied_embeddings: config.flag("tie_word_embeddings")?,
        moe: moe(config, architecture)?,
        router_aux_loss_coef: config.optional_float("router_aux_loss_coef")?,
        bos_id: config.id("bos_token_id"),
        eos_id: config.id("eos_token_id"),
    };
    params.check(config.path())
}

/// transformers' `MixtralConfig` says 1e-5, its other two 1e-6.
fn default_norm_eps(architecture: Architecture) -> f32 {
    if architecture == Architecture::Mixtral { 1e-5 } else { 1e-6 }
}

/// transformers' `MixtralConfig` says 1e6, its other two 1e4.
fn default_rope_theta(architecture: Architecture) -> f32 {
    if architecture == Architecture::Mixtral { 1e6 } else { 1e4 }
}

fn architecture(config: &ConfigFile) -> Result<Architecture, Error> {
    let listed = config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let model_type = config.get("model_type").and_then(Value::as_str);
    match listed.or(model_type) {
        Some("MixtralForCausalLM" | "mixtral") => Ok(Architecture::Mixtral),
        Some("MistralForCausalLM" | "mistral") => Ok(Architecture::Mistral),
        Some("LlamaForCausalLM" | "llama") => Ok(Architecture::Llama),
        Some(other) => Err(Error::unsupported(
            config.path(),
            format!("architecture {:?}", shown(other)),
            "Octet runs MixtralForCausalLM, MistralForCausalLM and LlamaForCausalLM",
        )),
        None => Err(config.missing("architectures")),
    }
}

/// Refuses what would change the numbers if we passed over it.
fn refuse_unsupported(config: &ConfigFile) -> Result<(), Error> {
    const PLAIN: &str = "Octet runs the plain Mixtral, Mistral and Llama decoders";
    for key in ["attention_bias", "mlp_bias"] {
        if config.flag(key)? {
            return Err(Error::unsupported(config.path(), format!("`{key}` true"), PLAIN));
        }
    }
    if let Some(activation) = config.get("hidden_act").and_then(Value::as_str)
        && activation != "silu"
    {
        return Err(Error::unsupported(config.path(), format!("`hidden_act` {:?}", shown(activation)), PLAIN));
    }
    if config.optional_float("partial_rotary_factor")?.is_some_and(|x| x != 1.0) {
        return Err(Error::unsupported(config.path(), "`partial_rotary_factor`", PLAIN));
    }
    if let Some(quantization) = config.get("quantization_config") {
        let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
        let what = format!("`quantization_config` of method {:?}", shown(method));
        return Err(Error::unsupported(config.path(), what, "get the model's BF16 weights, or a GGUF of it"));
    }
    Ok(())
}

/// The base of the rotary angles: `rope_theta` of transformers 4, `rope_parameters.rope_theta` of 5.
fn rope_theta(config: &ConfigFile) -> Result<Option<f32>, Error> {
    for key in ["rope_parameters", "rope_scaling"] {
        if let Some(rope) = config.get(key) {
            check_rope(config, key, rope)?;
        }
    }
    let of_5 = config.get("rope_parameters").and_then(|rope| rope.get("rope_theta"));
    match of_5 {
        Some(theta) => match theta.as_f64() {
            Some(theta) => Ok(Some(theta as f32)),
            None => Err(Error::key(config.path(), "rope_parameters.rope_theta", "is no number")),
        },
        None => config.optional_float("rope_theta"),
    }
}

fn check_rope(config: &ConfigFile, key: &str, rope: &Value) -> Result<(), Error> {
    let Some(rope) = rope.as_object() else {
        return Err(Error::key(config.path(), key, "is no object"));
    };
    if rope.values().any(Value::is_object) {
        let what = format!("`{key}` that differs by kind of layer");
        return Err(Error::unsupported(config.path(), what, "Octet runs models whose layers are alike"));
    }
    let kind = rope.get("rope_type").or_else(|| rope.get("type"));
    match kind.and_then(Value::as_str) {
        Some("default") => {}
        None if kind.is_none() && !rope.contains_key("factor") => {}
        kind => {
            let what = format!("rope scaling {:?}", shown(kind.unwrap_or("of unknown type")));
            return Err(Error::unsupported(config.path(), what, "Octet runs models with plain rotary embeddings"));
        }
    }
    if rope.get("partial_rotary_factor").and_then(Value::as_f64).is_some_and(|x| x != 1.0) {
        let what = format!("`{key}.partial_rotary_factor`");
        return Err(Error::unsupported(config.path(), what, "Octet runs models with plain rotary embeddings"));
    }
    Ok(())
}

/// `null` turns the window off; where the key is absent, transformers' `MistralConfig` has one of 4096 and the
/// others have none.
fn sliding_window(config: &ConfigFile, architecture: Architecture) -> Result<Option<usize>, Error> {
    match (config.has("sliding_window"), architecture) {
        (_, Architecture::Llama) => Ok(None),
        (false, Architecture::Mistral) => Ok(Some(4096)),
        _ => config.optional_count("sliding_window"),
    }
}

fn moe(config: &ConfigFile, architecture: Architecture) -> Result<Option<Moe>, Error> {
    if architecture != Architecture::Mixtral {
        return Ok(None);
    }
    let num_experts = config.optional_count("num_local_experts")?.unwrap_or(8);
    let num_experts_per_tok = config.optional_count("num_experts_per_tok")?.unwrap_or(2);
    Ok(Some(Moe { num_experts, num_experts_per_tok }))
}

/// Where a file may hold a tensor.
pub(crate) fn sources(params: &Params, name: TensorName) -> Vec<Source> {
    let [rows, cols] = params.shape(name);
    let source = |stored: String, arrangement| Source { stored, shape: vec![rows as u64, cols as u64], arrangement };
    let stored = name.hugging_face(params.moe);
    let as_is = Arrangement::Rows { first: 0 };
    let TensorName::Layer(layer, tensor) = name else {
        return vec![source(stored, as_is)];
    };
    match (tensor, params.moe) {
        (LayerTensor::Wq | LayerTensor::Wk, _) => {
            vec![source(stored, Arrangement::RotaryHalves { head_dim: params.head_dim })]
        }
        (LayerTensor::Router, _) => {
            vec![source(stored, as_is), source(format!("model.layers.{layer}.mlp.gate.weight"), as_is)]
        }
        (LayerTensor::Expert(expert, matrix), Some(moe)) => {
            vec![source(stored, as_is), fused(params, moe, layer, expert, matrix)]
        }
        _ => vec![source(stored, as_is)],
    }
}

/// An expert's matrix within transformers 5's fused tensors.
fn fused(params: &Params, moe: Moe, layer: usize, expert: usize, matrix: ExpertMatrix) -> Source {
    let (hidden, dim) = (params.hidden_dim, params.dim);
    let (part, rows, cols, first) = match matrix {
        ExpertMatrix::W1 => ("gate_up_proj", 2 * hidden, dim, expert * 2 * hidden),
        ExpertMatrix::W3 => ("gate_up_proj", 2 * hidden, dim, expert * 2 * hidden + hidden),
        ExpertMatrix::W2 => ("down_proj", dim, hidden, expert * dim),
    };
    Source {
        stored: format!("model.layers.{layer}.mlp.experts.{part}"),
        shape: vec![moe.num_experts as u64, rows as u64, cols as u64],
        arrangement: Arrangement::Rows { first },
    }
}

/// The shards that an index file names, in order, each once.
pub(crate) fn read_index(path: &Path) -> Result<Vec<PathBuf>, Error> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: Map<String, Value>,
    }
    let text = crate::config_file::read_text(path)?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|e| Error::malformed(path, format!("is no index of shards ({e}); fetch it again")))?;
    let mut shards = BTreeSet::new();
    for shard in index.weight_map.values() {
        let name = shard.as_str().unwrap_or_default();
        // A shard lies beside its index; anything else is a mistake or an attempt to read other files.
        if name.is_empty() || name == ".." || name.contains(['/', '\\', '\0']) {
            return Err(Error::key(path, "weight_map", format!("names {:?}, which is no file beside it", shown(name))));
        }
        shards.insert(path.with_file_name(name));
    }
    if shards.is_empty() {
        return Err(Error::key(path, "weight_map", "names no file; fetch the index again"));
    }
    match shards.iter().find(|shard| !shard.is_file()) {
        Some(missing) => {
            Err(Error::not_found(missing, format!("is missing, though {} names it; fetch it", path.display())))
        }
        None => Ok(shards.into_iter().collect()),
    }
}
