//! Ollama's error body: one sentence.

use serde_json::{Value, json};

use crate::refusal::Refusal;

/// `{"error": "sentence"}`.
pub fn body(refusal: &Refusal) -> Value {
    json!({"error": refusal.message})
}
