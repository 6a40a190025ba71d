//! `/v1/models`, in the words of whoever asks.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::anthropic;
use crate::app::Shared;
use crate::caller::{Caller, Dialect};
use crate::mistral;
use crate::models::Model;
use crate::refusal::Refusal;

/// All models that answer, and their aliases.
pub async fn list(State(app): State<Shared>, caller: Caller) -> Json<Value> {
    let ready = app.models.ready();
    let cards: Vec<Value> = ready.iter().map(|(name, model)| card(caller.dialect, name, model)).collect();
    Json(match caller.dialect {
        Dialect::Anthropic => anthropic::models::list(cards),
        _ => json!({"object": "list", "data": cards}),
    })
}

/// One model.
///
/// # Errors
/// 404 if there is none of that name.
pub async fn one(State(app): State<Shared>, caller: Caller, Path(name): Path<String>) -> Result<Json<Value>, Refusal> {
    let model = app.models.get(Some(&name))?;
    Ok(Json(card(caller.dialect, &name, &model)))
}

fn card(dialect: Dialect, name: &str, model: &Model) -> Value {
    match dialect {
        Dialect::Anthropic => anthropic::models::card(name, model),
        Dialect::Mistral | Dialect::VercelAi => mistral::models::card(name, model),
        Dialect::OpenAi | Dialect::Ollama => {
            let mut card = json!({"id": name, "object": "model", "created": model.created, "owned_by": "octet",
                "max_model_len": model.facts.context});
            if let Some(parent) = &model.parent {
                card["parent"] = json!(parent);
            }
            card
        }
    }
}
