//! Anthropic's list of models.

use serde_json::{Value, json};

use crate::ids;
use crate::models::Model;

/// A model.
pub fn card(name: &str, model: &Model) -> Value {
    json!({
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": ids::rfc3339(model.created),
        "lifecycle": "active",
        "max_input_tokens": model.facts.context,
        "max_tokens": model.facts.context,
    })
}

/// All of them, on one page.
pub fn list(cards: Vec<Value>) -> Value {
    let id = |card: Option<&Value>| card.map(|card| card["id"].clone());
    json!({"first_id": id(cards.first()), "last_id": id(cards.last()), "has_more": false, "data": cards})
}
