//! `/v1/responses`: OpenAI's newer form of a chat. Nothing is stored, so every request brings its whole conversation.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use octet_engine::Sampling;
use serde_json::Value;

use super::chat::{MAX_TOP_LOGPROBS, max_tokens};
use super::response_format::constraint;
use super::responses_input;
use super::responses_stream::{Outline, ResponseWriter, whole_body};
use crate::app::{Shared, text_work};
use crate::ask::Ask;
use crate::caller::Caller;
use crate::fields::{Body, Unsupported, fields};
use crate::ids;
use crate::messages::{self, tool_choice};
use crate::prompt::Chat;
use crate::refusal::Refusal;
use crate::settings::range;
use crate::stream;

fields! {
    /// A conversation in the form of items.
    pub struct ResponseFields {
        /// Name or alias of a model; the only one if absent.
        model: String,
        /// A user's message, or a list of messages, calls and their results.
        input: Value,
        /// A system message.
        instructions: String,
        /// Functions that may be called.
        tools: Vec<Value>,
        /// `auto`, `none`, `required`, or a function by name.
        tool_choice: Value,
        /// False for one call at most.
        parallel_tool_calls: bool,
        /// With `format`: what the answer has to look like.
        text: Value,
        /// Most tokens of the answer; the context's end if absent.
        max_output_tokens: usize,
        /// 0 for greedy, up to 2.
        temperature: f32,
        /// Share of the probability that candidates are drawn from.
        top_p: f32,
        /// Report probabilities of so many tokens, if `include` asks for them.
        top_logprobs: usize,
        /// `message.output_text.logprobs`.
        include: Vec<String>,
        /// Given back as it is.
        metadata: Value,
        /// Send the answer as it comes.
        stream: bool,
    }
}

const UNSUPPORTED: &[Unsupported] = &[
    ("previous_response_id", &[], "nothing is stored here; send the whole conversation as input"),
    ("conversation", &[], "nothing is stored here; send the whole conversation as input"),
    ("store", &[], "nothing is stored here"),
    ("background", &[], "start it at /octet/answers to have it go on by itself"),
    ("reasoning", &[r#"{"effort":"none"}"#], "this model does not reason apart from its answer"),
    ("truncation", &["disabled"], "prompts are never cut here: one that is too long is refused"),
    ("prompt", &[], "no prompts are stored here"),
    ("max_tool_calls", &[], "this server runs no tools"),
    ("service_tier", &["auto", "default"], "there is one tier"),
    ("user", &["*"], ""),
    ("safety_identifier", &["*"], ""),
    ("prompt_cache_key", &["*"], ""),
    ("prompt_cache_retention", &["*"], ""),
    ("stream_options", &["*"], ""),
];

/// Answers a conversation.
///
/// # Errors
/// Whatever is wrong with the request.
pub async fn handle(State(app): State<Shared>, caller: Caller, mut body: Body) -> Result<Response, Refusal> {
    let mut fields: ResponseFields = body.read()?;
    body.unsupported(UNSUPPORTED)?;
    let ignored = body.finish()?;
    let model = app.models.get(fields.model.as_deref())?;
    let messages = responses_input::read(fields.instructions.clone(), fields.input.take().unwrap_or(Value::Null))?;
    let strict = messages::strict(fields.tools.as_deref().unwrap_or_default())?;
    let tools = responses_input::tools(fields.tools.as_deref().unwrap_or_default())?;
    let choice = tool_choice(fields.tool_choice.as_ref(), &tools)?;
    let single = fields.parallel_tool_calls == Some(false);
    let chat = Chat { messages, tools, choice, single, strict, ignored };
    let writer = model.clone();
    let (mut ask, _) = text_work(move || writer.chat(chat)).await?;
    apply(&fields, &mut ask)?;
    let answer = app.answer(&caller, &model, &ask)?;
    let outline = Outline::new(&model.name, &fields, &ask);
    if fields.stream == Some(true) {
        return Ok(stream::respond(answer, ResponseWriter::new(outline), app.patience()));
    }
    let whole = stream::whole(answer).await?;
    Ok(Json(whole_body(&outline, &whole)).into_response())
}

fn apply(fields: &ResponseFields, ask: &mut Ask) -> Result<(), Refusal> {
    ask.sampling = Sampling {
        temperature: range("temperature", fields.temperature, 0.0, 2.0)?.unwrap_or(1.0),
        top_p: range("top_p", fields.top_p, f32::MIN_POSITIVE, 1.0)?.unwrap_or(1.0),
        seed: ids::bits(),
        ..Sampling::default()
    };
    ask.ending.max_tokens = max_tokens(fields.max_output_tokens)
        .map_err(|refusal| Refusal { param: Some("max_output_tokens".into()), ..refusal })?;
    for (index, what) in fields.include.iter().flatten().enumerate() {
        if what != "message.output_text.logprobs" {
            return Err(Refusal::field(format!("include[{index}]"), format!("{what} is nothing that this server has")));
        }
        ask.logprobs = Some(fields.top_logprobs.unwrap_or(0));
    }
    if ask.logprobs.is_none() && fields.top_logprobs.is_some_and(|n| n > 0) {
        let message = "top_logprobs is only for include: [\"message.output_text.logprobs\"]";
        return Err(Refusal::field("top_logprobs", message));
    }
    if fields.top_logprobs.is_some_and(|n| n > MAX_TOP_LOGPROBS) {
        return Err(Refusal::field("top_logprobs", format!("top_logprobs has to be 0 to {MAX_TOP_LOGPROBS}")));
    }
    let text = fields.text.as_ref();
    let mut keys = text.and_then(Value::as_object).into_iter().flat_map(|text| text.keys());
    if let Some(key) = keys.find(|key| !["format", "verbosity"].contains(&key.as_str())) {
        return Err(Refusal::unknown(format!("text.{key}")));
    }
    let verbosity = text.and_then(|text| text.get("verbosity")).and_then(Value::as_str);
    if verbosity.is_some_and(|word| word != "medium") {
        return Err(Refusal::unsupported("text.verbosity", "ask for it in the conversation"));
    }
    if let Some(format) = text.and_then(|text| text.get("format")).filter(|format| !format.is_null()) {
        let format = constraint(format, "text.format")?;
        if format.is_some() && ask.constraint.is_some() {
            return Err(Refusal::field(
                "text.format",
                "a forced tool call or a strict tool and a format exclude each other",
            ));
        }
        ask.constraint = ask.constraint.take().or(format);
    }
    Ok(())
}
