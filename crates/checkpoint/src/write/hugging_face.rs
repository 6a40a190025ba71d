//! Hugging Face's layout: `config.json` that transformers 4 and 5 read, `generation_config.json`, and sharded weights.

use serde_json::{Map, Value, json};

use super::{NewTensor, Plan, context_length, exact, json_bytes, safetensors};
use crate::{Architecture, ElementType, Params};

/// Most bytes of a weights file, unless the user says otherwise: what the Hub's own tools take.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// Lays out a folder with `config.json`, `generation_config.json` and weights; `dtype` is what most weights are.
///
/// # Panics
/// If a tensor is of a quantized type, which safetensors does not know.
pub fn plan<'a>(params: &Params, dtype: ElementType, tensors: Vec<NewTensor<'a>>, shard_bytes: u64) -> Plan<'a> {
    let mut plan = safetensors::plan("model", tensors, shard_bytes);
    plan.add_file("config.json", json_bytes(&config(params, dtype)));
    let ids = json!({ "_from_model_config": true, "bos_token_id": params.bos_id, "eos_token_id": params.eos_id });
    plan.add_file("generation_config.json", json_bytes(&ids));
    plan
}

/// The family by which transformers shall know the model: a window makes a Mistral out of a Llama.
fn family(params: &Params) -> Architecture {
    match (params.moe, params.sliding_window, params.architecture) {
        (Some(_), ..) => Architecture::Mixtral,
        (None, None, Architecture::Llama) => Architecture::Llama,
        _ => Architecture::Mistral,
    }
}

/// `config.json`. What changed its name between transformers 4 and 5 is there under both names.
fn config(params: &Params, dtype: ElementType) -> Value {
    let family = family(params);
    let (class, model_type) = match family {
        Architecture::Mixtral => ("MixtralForCausalLM", "mixtral"),
        Architecture::Mistral => ("MistralForCausalLM", "mistral"),
        Architecture::Llama => ("LlamaForCausalLM", "llama"),
    };
    let dtype = match dtype {
        ElementType::F16 => "float16",
        ElementType::BF16 => "bfloat16",
        _ => "float32",
    };
    let theta = exact(params.rope_theta);
    let mut config = json!({
        "architectures": [class],
        "attention_dropout": 0.0,
        "bos_token_id": params.bos_id,
        "dtype": dtype,
        "eos_token_id": params.eos_id,
        "head_dim": params.head_dim,
        "hidden_act": "silu",
        "hidden_size": params.dim,
        "initializer_range": 0.02,
        "intermediate_size": params.hidden_dim,
        "max_position_embeddings": context_length(params),
        "model_type": model_type,
        "num_attention_heads": params.n_heads,
        "num_hidden_layers": params.n_layers,
        "num_key_value_heads": params.n_kv_heads,
        "rms_norm_eps": exact(params.norm_eps),
        "rope_parameters": { "rope_theta": theta, "rope_type": "default" },
        "rope_theta": theta,
        "tie_word_embeddings": params.tied_embeddings,
        "torch_dtype": dtype,
        "use_cache": true,
        "vocab_size": params.vocab_size,
    });
    let keys = config.as_object_mut().expect("made as an object above");
    if family != Architecture::Llama {
        // Left out, it would mean 4096 to transformers' Mistral.
        keys.insert("sliding_window".into(), json!(params.sliding_window));
    }
    insert_experts(params, keys);
    config
}

fn insert_experts(params: &Params, keys: &mut Map<String, Value>) {
    let Some(moe) = params.moe else { return };
    keys.insert("num_experts_per_tok".into(), json!(moe.num_experts_per_tok));
    keys.insert("num_local_experts".into(), json!(moe.num_experts));
    keys.insert("output_router_logits".into(), json!(false));
    if let Some(coefficient) = params.router_aux_loss_coef {
        keys.insert("router_aux_loss_coef".into(), json!(exact(coefficient)));
    }
    keys.insert("router_jitter_noise".into(), json!(0.0));
}
