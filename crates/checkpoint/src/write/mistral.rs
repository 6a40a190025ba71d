//! Mistral's layout: `params.json` and one `consolidated.safetensors`, as mistral-inference reads them.

use serde_json::{Value, json};

use super::{NewTensor, Plan, exact, json_bytes, safetensors};
use crate::Params;

/// Lays out a folder with `params.json` and the weights in one file.
///
/// # Panics
/// If a tensor is of a quantized type, which safetensors does not know.
pub fn plan<'a>(params: &Params, tensors: Vec<NewTensor<'a>>) -> Plan<'a> {
    let mut plan = safetensors::plan("consolidated", tensors, u64::MAX);
    plan.add_file("params.json", json_bytes(&params_json(params)));
    plan
}

/// `params.json`, in the order of the announcement's.
fn params_json(params: &Params) -> Value {
    let mut json = json!({
        "dim": params.dim,
        "n_layers": params.n_layers,
        "head_dim": params.head_dim,
        "hidden_dim": params.hidden_dim,
        "n_heads": params.n_heads,
        "n_kv_heads": params.n_kv_heads,
        "norm_eps": exact(params.norm_eps),
        "vocab_size": params.vocab_size,
        "rope_theta": exact(params.rope_theta),
    });
    if let Some(window) = params.sliding_window {
        json["sliding_window"] = json!(window);
    }
    if let Some(length) = params.context_length {
        json["max_position_embeddings"] = json!(length);
    }
    if params.tied_embeddings {
        json["tied_embeddings"] = json!(true);
    }
    if let Some(moe) = params.moe {
        json["moe"] = json!({ "num_experts_per_tok": moe.num_experts_per_tok, "num_experts": moe.num_experts });
    }
    json
}
