//! `/v1/messages` and `/v1/messages/count_tokens`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use octet_engine::Sampling;
use serde_json::{Value, json};

use super::conversation;
use super::messages_stream::{MessagesWriter, whole_body};
use crate::app::{Shared, text_work};
use crate::ask::{Ask, Constraint};
use crate::caller::{Caller, Ignored};
use crate::fields::{Body, Unsupported, fields};
use crate::ids;
use crate::messages;
use crate::models::Model;
use crate::prompt::Chat;
use crate::refusal::Refusal;
use crate::settings::{MAX_STOPS, check_stops, range};
use crate::stream;

fields! {
    /// A conversation.
    pub struct ConversationFields {
        /// Name or alias of a model; the only one if absent.
        model: String,
        /// Turns of user and assistant. A last turn of the assistant is continued.
        messages: Vec<Value>,
        /// A text or blocks of text.
        system: Value,
        /// What may be called.
        tools: Vec<Value>,
        /// Whether it may.
        tool_choice: Value,
        /// With `format` of type `json_schema`: what the answer has to look like.
        output_config: Value,
    }
}

fields! {
    /// How it is to be answered.
    pub struct AnswerFields {
        /// Most tokens of the answer; required.
        max_tokens: usize,
        /// 0 for greedy, up to 1.
        temperature: f32,
        /// Share of the probability that candidates are drawn from.
        top_p: f32,
        /// Keep this many candidates.
        top_k: usize,
        /// Texts that end the answer, up to 64.
        stop_sequences: Vec<String>,
        /// Send the answer as it comes.
        stream: bool,
    }
}

const UNSUPPORTED: &[Unsupported] = &[
    ("thinking", &[r#"{"type":"disabled"}"#], "this model does not think apart from its answer"),
    ("container", &[], "this server runs no code"),
    ("mcp_servers", &[], "this server reaches no network"),
    ("context_management", &[], "nothing is cut out of a conversation here"),
    ("service_tier", &["auto", "standard_only"], "there is one tier"),
    ("inference_geo", &["*"], ""),
    ("metadata", &["*"], ""),
    ("cache_control", &["*"], ""),
];

/// Answers a conversation.
///
/// # Errors
/// Whatever is wrong with the request.
pub async fn handle(State(app): State<Shared>, caller: Caller, mut body: Body) -> Result<Response, Refusal> {
    let fields: ConversationFields = body.read()?;
    let answer: AnswerFields = body.read()?;
    body.unsupported(UNSUPPORTED)?;
    let ignored = body.finish()?;
    let format = output_format(fields.output_config.as_ref())?;
    let (model, mut ask) = read(&app, fields, ignored).await?;
    let is_streamed = answer.stream == Some(true);
    apply(answer, &mut ask)?;
    if format.is_some() && ask.constraint.is_some() {
        return Err(Refusal::field(
            "output_config",
            "a forced tool call or a strict tool and an output format exclude each other",
        ));
    }
    ask.constraint = ask.constraint.take().or(format);
    let answer = app.answer(&caller, &model, &ask)?;
    let id = ids::long("msg_");
    if is_streamed {
        let writer = MessagesWriter::new(id, &model.name, answer.prompt_tokens());
        return Ok(stream::respond(answer, writer, app.patience()));
    }
    let whole = stream::whole(answer).await?;
    Ok(Json(whole_body(&id, &model.name, &whole)).into_response())
}

/// Counts the tokens of a conversation.
///
/// # Errors
/// Whatever is wrong with the request.
pub async fn count(State(app): State<Shared>, mut body: Body) -> Result<Json<Value>, Refusal> {
    let fields: ConversationFields = body.read()?;
    body.unsupported(UNSUPPORTED)?;
    let ignored = body.finish()?;
    let (_, ask) = read(&app, fields, ignored).await?;
    Ok(Json(json!({"input_tokens": ask.prompts[0].len()})))
}

async fn read(app: &Shared, fields: ConversationFields, ignored: Ignored) -> Result<(Arc<Model>, Ask), Refusal> {
    let model = app.models.get(fields.model.as_deref())?;
    let turns = conversation::read(fields.system, fields.messages.unwrap_or_default())?;
    let strict = messages::strict(fields.tools.as_deref().unwrap_or_default())?;
    let tools = conversation::tools(fields.tools.unwrap_or_default())?;
    let (choice, single) = conversation::tool_choice(fields.tool_choice.as_ref(), &tools)?;
    let writer = model.clone();
    let (ask, _) =
        text_work(move || writer.chat(Chat { messages: turns, tools, choice, single, strict, ignored })).await?;
    Ok((model, ask))
}

fn apply(fields: AnswerFields, ask: &mut Ask) -> Result<(), Refusal> {
    let missing = || Refusal::field("max_tokens", "max_tokens: field required, 1 or more");
    ask.ending.max_tokens = Some(fields.max_tokens.filter(|&n| n > 0).ok_or_else(missing)?);
    ask.ending.strings = fields.stop_sequences.unwrap_or_default();
    if ask.ending.strings.iter().any(|text| text.trim().is_empty()) {
        return Err(Refusal::field("stop_sequences", "stop_sequences: each has to hold more than space"));
    }
    check_stops("stop_sequences", &ask.ending.strings, MAX_STOPS)?;
    ask.sampling = Sampling {
        temperature: range("temperature", fields.temperature, 0.0, 1.0)?.unwrap_or(1.0),
        top_p: range("top_p", fields.top_p, f32::MIN_POSITIVE, 1.0)?.unwrap_or(1.0),
        top_k: fields.top_k.filter(|&k| k > 0),
        seed: ids::bits(),
        ..Sampling::default()
    };
    Ok(())
}

fn output_format(config: Option<&Value>) -> Result<Option<Constraint>, Refusal> {
    let Some(config) = config.and_then(Value::as_object) else { return Ok(None) };
    if let Some(name) = config.keys().find(|name| name.as_str() != "format") {
        return Err(Refusal::unsupported(&format!("output_config.{name}"), "only a format is known"));
    }
    match config.get("format") {
        None | Some(Value::Null) => Ok(None),
        Some(format) => match (format.get("type").and_then(Value::as_str), format.get("schema")) {
            (Some("json_schema"), Some(schema)) => Ok(Some(Constraint::JsonSchema(schema.clone()))),
            _ => Err(Refusal::field(
                "output_config.format",
                "output_config.format: has to be a json_schema with a schema",
            )),
        },
    }
}
