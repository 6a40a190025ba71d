//! What Ollama's clients ask about models: `/api/tags`, `/api/show`, `/api/ps`, `/api/version`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::lines::{Kind, Lines};
use super::options::wants_unload;
use crate::app::{Shared, text_work};
use crate::fields::{Body, Unsupported, fields};
use crate::ids;
use crate::models::{Facts, Model};
use crate::refusal::Refusal;

/// Our own version, since ours are the answers.
pub async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// All models that answer.
pub async fn tags(State(app): State<Shared>) -> Json<Value> {
    let models: Vec<Value> = app.models.ready().iter().map(|(name, model)| tag(name, model)).collect();
    Json(json!({"models": models}))
}

/// The same, as running ones: they stay until they are unloaded.
pub async fn running(State(app): State<Shared>) -> Json<Value> {
    let running = app.models.ready().into_iter().map(|(name, model)| {
        let mut tag = tag(&name, &model);
        tag["size"] = json!(model.facts.weights_bytes);
        tag["size_vram"] = json!(0);
        tag["context_length"] = json!(model.facts.context);
        tag["expires_at"] = json!("9999-12-31T23:59:59Z");
        tag
    });
    Json(json!({"models": running.collect::<Vec<_>>()}))
}

fn tag(name: &str, model: &Model) -> Value {
    json!({
        "name": name,
        "model": name,
        "modified_at": ids::rfc3339(model.created),
        "size": model.facts.file_bytes,
        "digest": format!("{:064x}", digest(&model.facts)),
        "details": details(&model.facts),
    })
}

/// Tells models apart; of what is known without reading all weights.
fn digest(facts: &Facts) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (&facts.path, facts.file_bytes, facts.parameters, &facts.quantization).hash(&mut hasher);
    hasher.finish()
}

fn details(facts: &Facts) -> Value {
    let format = if facts.path.extension().is_some_and(|end| end == "gguf") { "gguf" } else { "safetensors" };
    json!({
        "parent_model": "",
        "format": format,
        "family": "llama",
        "families": ["llama"],
        "parameter_size": size(facts.parameters),
        "quantization_level": facts.quantization,
    })
}

fn size(parameters: u64) -> String {
    match parameters {
        n if n >= 1_000_000_000 => format!("{:.1}B", n as f64 / 1e9),
        n => format!("{:.0}M", n as f64 / 1e6),
    }
}

fields! {
    /// Which model.
    pub struct ShowFields {
        /// Name or alias.
        model: String,
        /// The same by its older name.
        name: String,
    }
}

const UNSUPPORTED: &[Unsupported] = &[
    ("verbose", &["*"], ""),
    ("system", &[], "set it in the conversation"),
    ("template", &[], ""),
    ("options", &[], ""),
];

/// What a model is.
///
/// # Errors
/// There is none of that name.
pub async fn show(State(app): State<Shared>, mut body: Body) -> Result<Json<Value>, Refusal> {
    let fields: ShowFields = body.read()?;
    body.unsupported(UNSUPPORTED)?;
    body.finish()?;
    let name = fields.model.or(fields.name).ok_or_else(|| Refusal::field("model", "model is required"))?;
    let model = app.models.get(Some(&name))?;
    let facts = &model.facts;
    let mut can = vec!["completion"];
    can.extend(model.format.is_ok().then_some("tools"));
    can.extend(model.tokenizer.control_id("[SUFFIX]").is_some().then_some("insert"));
    can.push("embedding");
    Ok(Json(json!({
        "modelfile": "",
        "parameters": "",
        "template": model.tokenizer.chat_template().unwrap_or_default(),
        "details": details(facts),
        "model_info": {
            "general.architecture": "llama",
            "general.parameter_count": facts.parameters,
            "llama.context_length": facts.context,
            "llama.embedding_length": facts.dim,
            "llama.block_count": facts.layers,
            "llama.expert_count": facts.experts,
            "llama.expert_used_count": facts.experts_per_token,
            "llama.vocab_size": facts.vocab_size,
        },
        "capabilities": can,
        "modified_at": ids::rfc3339(model.created),
    })))
}

/// A request without a prompt: makes sure that the model is there, or lets go of it.
///
/// # Errors
/// There is none of that name, or it cannot be opened.
pub async fn touch(app: &Shared, kind: Kind, name: &str, keep_alive: Option<&Value>) -> Result<Response, Refusal> {
    let own = app.models.own_name(name)?;
    let unload = wants_unload(keep_alive);
    let (of, target) = (app.clone(), own.clone());
    text_work(move || if unload { of.models.unload(&target) } else { of.models.load(&target, false) }).await?;
    let line = Lines::new(kind, name).only(if unload { "unload" } else { "load" });
    Ok(Json(line).into_response())
}
