//! `/health`, `/ready` and `/metrics`, for those who watch over servers.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::app::Shared;
use crate::models::{Model, Slot};
use crate::refusal::{Fault, Refusal};

/// A step of an engine that takes longer than this hangs. The longest honest one reads a chunk of a prompt with a model
/// that comes from disk.
const STUCK_AFTER: Duration = Duration::from_secs(120);

/// Whether every engine that has work goes on with it.
///
/// # Errors
/// 503 that names the model whose engine hangs.
pub async fn health(State(app): State<Shared>) -> Result<Json<Value>, Refusal> {
    for entry in app.models.list() {
        if let Slot::Ready(model) = entry.slot {
            check(&model)?;
        }
    }
    Ok(Json(json!({"status": "ok"})))
}

fn check(model: &Model) -> Result<(), Refusal> {
    let stats = model.engine.stats();
    if stats.running + stats.waiting > 0 && stats.since_last_step > STUCK_AFTER {
        let seconds = stats.since_last_step.as_secs();
        let message = format!("the engine of {} has made no step for {seconds} s", model.name);
        return Err(Refusal::new(Fault::Unavailable, message));
    }
    Ok(())
}

/// Whether every model is loaded.
///
/// # Errors
/// 503 that names those which are not.
pub async fn ready(State(app): State<Shared>) -> Result<Json<Value>, Refusal> {
    let list = app.models.list();
    let missing: Vec<_> = list.iter().filter(|entry| !matches!(entry.slot, Slot::Ready(_))).collect();
    if missing.is_empty() {
        return Ok(Json(json!({"status": "ready"})));
    }
    let names: Vec<_> = missing.iter().map(|entry| format!("{} is {}", entry.name, entry.slot.name())).collect();
    Err(Refusal::new(Fault::Unavailable, names.join(", ")))
}

/// Everything in Prometheus's text form.
pub async fn metrics(State(app): State<Shared>) -> Response {
    let media = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, media)], app.metrics.text()).into_response()
}
