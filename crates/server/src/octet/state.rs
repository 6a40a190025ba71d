//! `/octet/state` and `/octet/models/…`: what the server has, does, and did, for the page; models put in and taken out.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::app::{Shared, plan_work};
use crate::fields::{Body, fields};
use crate::models::{Entry, Slot};
use crate::on_demand;
use crate::refusal::{Fault, Refusal};

/// Models, keys and versions.
pub async fn state(State(app): State<Shared>) -> Json<Value> {
    let keys = app.keys();
    let keys: Vec<Value> = keys
        .iter()
        .map(|key| {
            let [requests, tokens] = key.meter.standing().map(|standing| {
                standing.map(|s| json!({"limit": s.limit, "remaining": s.remaining, "reset_s": s.reset_s}))
            });
            let [used_requests, used_tokens] = key.meter.used();
            json!({"name": key.name, "running": key.meter.running(), "requests": requests, "tokens": tokens,
                "used_requests": used_requests, "used_tokens": used_tokens})
        })
        .collect();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": app.started.elapsed().as_secs(),
        "needs_key": !app.keys().is_empty(),
        "keeps_history": app.history.is_some(),
        "models": app.models.list().iter().map(model).collect::<Vec<_>>(),
        "aliases": app.models.aliases(),
        "keys": keys,
    }))
}

fn model(entry: &Entry) -> Value {
    let mut shown = json!({"name": entry.name, "path": entry.path, "state": entry.slot.name()});
    if !entry.adapters.is_empty() {
        shown["adapters"] = entry.adapters.iter().map(|adapter| adapter.name.as_str()).collect();
    }
    match &entry.slot {
        Slot::Failed(failure) => {
            shown["error"] = json!(failure.why);
            shown["does_not_fit"] = json!(failure.does_not_fit);
        }
        Slot::Ready(model) => {
            let stats = model.engine.stats();
            shown["facts"] = json!(model.facts);
            shown["can_chat"] = json!(model.format.is_ok());
            shown["chat_format"] = json!(model.format.as_ref().ok().map(|format| format.name()));
            shown["engine"] = json!({
                "waiting": stats.waiting,
                "running": stats.running,
                "kv_pages_used": stats.pages_used,
                "kv_pages_cached": stats.pages_cached,
                "kv_pages": stats.pages_total,
                "requests": stats.requests,
                "prompt_tokens": stats.prompt_tokens,
                "cached_tokens": stats.cached_tokens,
                "completion_tokens": stats.completion_tokens,
                "drafted_tokens": stats.drafted_tokens,
                "accepted_tokens": stats.accepted_tokens,
                "steps": stats.steps,
                "step_s": stats.step_time.as_secs_f64(),
            });
        }
        Slot::Unloaded | Slot::Loading | Slot::Unloading => {}
    }
    shown
}

/// What a model's experts did since it was loaded: tokens that each has seen, `[layers][experts]`; of `neighbours` pairs of
/// consecutive tokens (generated ones, and prompts whose routing was asked for), those with the same first choice and those with any expert in common, `[layers]`, beside the shares
/// that chance would give.
///
/// # Errors
/// No such model.
pub async fn experts(State(app): State<Shared>, Path(name): Path<String>) -> Result<Json<Value>, Refusal> {
    let model = app.models.get(Some(&name))?;
    let stats = model.engine.stats();
    let layers: Vec<&[u64]> = stats.experts.chunks(stats.num_experts.max(1)).collect();
    let (experts, chosen) = (model.facts.experts, model.facts.experts_per_token);
    Ok(Json(json!({
        "model": model.name,
        "experts_per_token": chosen,
        "tokens": layers,
        "neighbours": stats.neighbours,
        "repeats_first": stats.repeats_first,
        "repeats_any": stats.repeats_any,
        "by_chance": {"first": 1.0 / experts as f64, "any": in_common_by_chance(experts, chosen)},
    })))
}

/// The chance that two tokens have an expert in common: `1 - C(E - k, k) / C(E, k)`.
fn in_common_by_chance(experts: usize, chosen: usize) -> f64 {
    let others = |i: usize| experts.saturating_sub(chosen + i) as f64 / (experts - i) as f64;
    1.0 - (0..chosen).map(others).product::<f64>()
}

fields! {
    /// How a model is to be opened: the body of [`load`], which may be empty.
    pub struct LoadFields {
        /// Also where it is predicted not to fit in memory.
        load_anyway: bool,
    }
}

/// Opens a model; answers once it is there.
///
/// # Errors
/// No such model, it cannot be opened, or the body is none of [`LoadFields`].
pub async fn load(
    State(app): State<Shared>,
    Path(name): Path<String>,
    request: axum::extract::Request,
) -> Result<Json<Value>, Refusal> {
    let bytes = crate::fields::read(request, &app).await?;
    let mut body = if bytes.is_empty() { Body::default() } else { Body::parse(&bytes)? };
    let LoadFields { load_anyway } = body.read()?;
    body.finish()?;
    on_demand::load(&app.models, &name, load_anyway.unwrap_or(false)).await?;
    Ok(state(State(app)).await)
}

/// Lets go of a model, once its answers have ended.
///
/// # Errors
/// No such model.
pub async fn unload(State(app): State<Shared>, Path(name): Path<String>) -> Result<Json<Value>, Refusal> {
    on_demand::unload(&app.models, &name).await?;
    Ok(state(State(app)).await)
}

/// What may be asked of [`plan`]: shapes that the program knows, mixes, types of the KV cache.
///
/// # Errors
/// None that we know of.
pub async fn plan_choices(State(app): State<Shared>) -> Result<Json<Value>, Refusal> {
    (app.planner)(Value::Null).map(Json).map_err(|why| Refusal::new(Fault::Invalid, why))
}

/// What `octet plan` says, for the models of this server and the shapes that the program knows.
///
/// # Errors
/// A field that is wrong, or a model that cannot be read.
pub async fn plan(State(app): State<Shared>, request: axum::extract::Request) -> Result<Json<Value>, Refusal> {
    let bytes = crate::fields::read(request, &app).await?;
    let asked = serde_json::from_slice(&bytes);
    let mut asked: Value =
        asked.map_err(|error| Refusal::new(Fault::Invalid, format!("the body is not valid JSON: {error}")))?;
    // Models by name only: nobody looks at other files of this machine from outside.
    let name = asked.get("model").and_then(Value::as_str).unwrap_or_default().to_owned();
    match app.models.list().into_iter().find(|entry| entry.name == name) {
        Some(entry) => asked["model"] = json!(entry.path),
        None if name.contains(['/', '\\', '.']) || name.is_empty() => {
            return Err(Refusal::not_found(format!("model {name:?} is neither of this server nor a known shape")));
        }
        None => {}
    }
    let planned = plan_work(move || (app.planner)(asked).map_err(|why| Refusal::new(Fault::Invalid, why)));
    planned.await.map(Json)
}
