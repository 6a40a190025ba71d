//! Mistral's card of a model.

use serde_json::{Value, json};

use crate::models::Model;

/// The card; clients fail without `type` and `capabilities`.
pub fn card(name: &str, model: &Model) -> Value {
    let can_fill = model.tokenizer.control_id("[SUFFIX]").is_some();
    json!({
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "octet",
        "type": "base",
        "name": model.name,
        "description": null,
        "max_context_length": model.facts.context,
        "aliases": [],
        "deprecation": null,
        "default_model_temperature": 1.0,
        "capabilities": {
            "completion_chat": model.format.is_ok(),
            "completion_fim": can_fill,
            "function_calling": model.format.is_ok(),
            "fine_tuning": false,
            "vision": false,
            "classification": false,
        },
    })
}
