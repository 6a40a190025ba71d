//! `/api/chat`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::lines::{Kind, Lines};
use super::options;
use crate::app::{Shared, text_work};
use crate::caller::Caller;
use crate::fields::{Body, Unsupported, fields};
use crate::messages;
use crate::on_demand::{self, Held};
use crate::prompt::Chat;
use crate::refusal::Refusal;
use crate::stream;

fields! {
    /// A conversation in Ollama's words.
    pub struct OllamaChatFields {
        /// Name or alias of a model.
        model: String,
        /// The conversation; empty to see whether the model is there. A last message of the assistant is continued.
        messages: Vec<Value>,
        /// Functions that may be called.
        tools: Vec<Value>,
        /// `json` or a JSON schema.
        format: Value,
        /// Sampling and limits.
        options: Value,
        /// False for one object; lines if absent.
        stream: bool,
        /// 0 to let go of the model after the answer, unless others use it; other times change nothing, since models stay.
        keep_alive: Value,
    }
}

pub(super) const UNSUPPORTED: &[Unsupported] = &[
    ("think", &[], "this model does not think apart from its answer"),
    ("logprobs", &[], "ask for them at /v1/chat/completions"),
    ("top_logprobs", &["0"], "ask for them at /v1/chat/completions"),
    ("truncate", &[], "prompts are never cut here: one that is too long is refused"),
    ("shift", &[], "a context that is full ends the answer"),
];

/// Answers a conversation.
///
/// # Errors
/// Whatever is wrong with the request.
pub async fn handle(State(app): State<Shared>, caller: Caller, mut body: Body) -> Result<Response, Refusal> {
    let fields: OllamaChatFields = body.read()?;
    body.unsupported(UNSUPPORTED)?;
    body.finish()?;
    let name = fields.model.ok_or_else(|| Refusal::field("model", "model is required"))?;
    let given = fields.messages.unwrap_or_default();
    let afterwards = options::keep_alive(fields.keep_alive.as_ref(), &caller.ignored)?;
    if given.is_empty() {
        return super::models::touch(&app, Lines::new(Kind::Chat, &name).without_effect(&caller.ignored), afterwards)
            .await;
    }
    let Held { model, using, load_time } = on_demand::held(&app.models, &name).await?;
    let messages = messages::read(given.into_iter().map(plain).collect::<Result<_, _>>()?)?;
    let tools = messages::tools(fields.tools.unwrap_or_default())?;
    let chat = Chat { messages, tools, ignored: caller.ignored.clone(), ..Chat::default() };
    let writer = model.clone();
    let (mut ask, _) = text_work(move || writer.chat(chat)).await?;
    options::apply(fields.options, &mut ask, &caller.ignored)?;
    ask.constraint = options::format(fields.format)?;
    let answer = app.answer(&caller, &model, &ask)?.using(using.then(afterwards));
    let lines = Lines::new(Kind::Chat, &name).after_load(load_time).without_effect(&caller.ignored);
    match fields.stream {
        Some(false) => Ok(Json(lines.whole(answer).await?).into_response()),
        _ => Ok(stream::respond(answer, lines, app.patience())),
    }
}

/// Ollama's message in OpenAI's form: results of tools name the tool, not the call.
fn plain(mut message: Value) -> Result<Value, Refusal> {
    let Some(object) = message.as_object_mut() else { return Ok(message) };
    for name in ["images", "thinking"] {
        match object.remove(name) {
            Some(Value::Array(list)) if name == "images" && !list.is_empty() => {
                return Err(Refusal::unsupported("images", "this model reads text only"));
            }
            _ => {}
        }
    }
    if object.get("role").and_then(Value::as_str) == Some("tool") {
        if let Some(name) = object.remove("tool_name") {
            object.insert("name".into(), name);
        }
        // v3 wants an id; Ollama's clients have none to give.
        object.entry("tool_call_id").or_insert_with(|| "000000000".into());
    }
    if let Some(Value::Array(calls)) = object.get_mut("tool_calls") {
        for call in calls.iter_mut().filter_map(Value::as_object_mut) {
            call.entry("id").or_insert_with(|| "000000000".into());
            if let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) {
                function.remove("index");
            }
        }
    }
    Ok(message)
}
