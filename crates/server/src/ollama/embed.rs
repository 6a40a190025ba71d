//! `/api/embed`, and `/api/embeddings` by its older name.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::lines::ns;
use super::options::keep_alive;
use crate::app::Shared;
use crate::caller::Caller;
use crate::fields::{Body, Unsupported, fields};
use crate::on_demand::{self, Held};
use crate::openai::embeddings::embed;
use crate::refusal::Refusal;

fields! {
    /// Texts to embed, in Ollama's words.
    pub struct EmbedFields {
        /// Name or alias of a model.
        model: String,
        /// A text, or several.
        input: Value,
        /// The same for the older path.
        prompt: String,
        /// 0 to let go of the model afterwards, unless others use it; other times change nothing, since models stay.
        keep_alive: Value,
    }
}

const UNSUPPORTED: &[Unsupported] = &[
    ("options", &["*"], ""),
    // True is Ollama's default, and its clients send it; what is too long is refused all the same, and says so.
    ("truncate", &["true"], "prompts are never cut here"),
    ("dimensions", &[], "only the model's own width is given"),
];

/// Embeds texts.
///
/// # Errors
/// Whatever is wrong with the request.
pub async fn handle(State(app): State<Shared>, caller: Caller, mut body: Body) -> Result<Json<Value>, Refusal> {
    let started = Instant::now();
    let fields: EmbedFields = body.read()?;
    body.unsupported(UNSUPPORTED)?;
    body.finish()?;
    let name = fields.model.ok_or_else(|| Refusal::field("model", "model is required"))?;
    let afterwards = keep_alive(fields.keep_alive.as_ref(), &caller.ignored)?;
    let Held { model, using, load_time } = on_demand::held(&app.models, &name).await?;
    let is_old = fields.input.is_none();
    let input = fields.input.or(fields.prompt.map(Value::String)).unwrap_or(Value::Null);
    let mut embedded = embed(&app, &caller, &model, input).await?;
    drop(using.then(afterwards));
    if is_old {
        return Ok(Json(json!({"embedding": embedded.vectors.swap_remove(0)})));
    }
    Ok(Json(json!({
        "model": name,
        "embeddings": embedded.vectors,
        "total_duration": ns(started.elapsed()),
        "load_duration": ns(load_time),
        "prompt_eval_count": embedded.tokens,
    })))
}
