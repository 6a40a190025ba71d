//! What Ollama's clients ask about models: `/api/tags`, `/api/show`, `/api/ps`, `/api/version`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::lines::Lines;
use crate::app::Shared;
use crate::fields::{Body, Unsupported, fields};
use crate::ids;
use crate::models::Facts;
use crate::on_demand::{self, Afterwards};
use crate::refusal::Refusal;

/// Our own version, since ours are the answers.
pub async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// All models, in memory or not: those that are not are opened when they are asked for.
pub async fn tags(State(app): State<Shared>) -> Json<Value> {
    let known = app.models.known();
    let models: Vec<Value> = known.iter().map(|(name, known)| tag(name, known.created, &known.facts)).collect();
    Json(json!({"models": models}))
}

/// Those in memory: they stay until they are unloaded.
pub async fn running(State(app): State<Shared>) -> Json<Value> {
    let running = app.models.ready().into_iter().map(|(name, model)| {
        let mut tag = tag(&name, model.created, &model.facts);
        tag["size"] = json!(model.facts.weights_bytes);
        tag["size_vram"] = json!(0);
        tag["context_length"] = json!(model.facts.context);
        tag["expires_at"] = json!("9999-12-31T23:59:59Z");
        tag
    });
    Json(json!({"models": running.collect::<Vec<_>>()}))
}

fn tag(name: &str, created: u64, facts: &Facts) -> Value {
    json!({
        "name": name,
        "model": name,
        "modified_at": ids::rfc3339(created),
        "size": facts.file_bytes,
        "digest": format!("{:064x}", digest(facts)),
        "details": details(facts),
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

/// What a model is; one that is not in memory is not opened for that.
///
/// # Errors
/// There is none of that name.
pub async fn show(State(app): State<Shared>, mut body: Body) -> Result<Json<Value>, Refusal> {
    let fields: ShowFields = body.read()?;
    body.unsupported(UNSUPPORTED)?;
    body.finish()?;
    let name = fields.model.or(fields.name).ok_or_else(|| Refusal::field("model", "model is required"))?;
    let known = app.models.known_as(&name)?;
    let facts = &known.facts;
    let mut can = vec!["completion"];
    can.extend(known.can_chat.then_some("tools"));
    can.extend(known.can_fill.then_some("insert"));
    can.push("embedding");
    Ok(Json(json!({
        "modelfile": "",
        "parameters": "",
        "template": known.template.as_deref().unwrap_or_default(),
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
        "modified_at": ids::rfc3339(known.created),
    })))
}

/// A request without a prompt: makes sure that the model is there, or lets go of it at once. `lines` are those of an answer.
///
/// # Errors
/// There is none of that name, or it cannot be opened.
pub async fn touch(app: &Shared, lines: Lines, afterwards: Afterwards) -> Result<Response, Refusal> {
    let own = app.models.own_name(lines.model())?;
    let reason = match afterwards {
        Afterwards::Keep => {
            on_demand::load(&app.models, &own, false).await?;
            "load"
        }
        Afterwards::Unload => {
            on_demand::unload(&app.models, &own).await?;
            "unload"
        }
    };
    Ok(Json(lines.only(reason)).into_response())
}
