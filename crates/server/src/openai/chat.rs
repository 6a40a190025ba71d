//! `/v1/chat/completions`, for OpenAI's clients, Mistral's and everybody's who speaks as they do.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use octet_tokenizer::{Message, Prompt};
use serde_json::Value;
use std::sync::Arc;

use super::chat_stream::{ChatWriter, whole_body};
use super::response_format::{FIELD, constraint};
use super::wire::{Head, StreamOptions};
use crate::app::{Shared, text_work};
use crate::ask::Ask;
use crate::caller::{Caller, Dialect};
use crate::fields::{Body, Unsupported, fields};
use crate::messages::{self, tool_choice};
use crate::mistral;
use crate::models::Model;
use crate::prompt::Chat;
use crate::refusal::Refusal;
use crate::settings::{OctetFields, SamplingFields, one_of};
use crate::stream;

fields! {
    /// What is said, and how it is to be answered.
    pub struct ChatFields {
        /// Name or alias of a model; the only one if absent.
        model: String,
        /// The conversation. A last message of the assistant is continued.
        messages: Vec<Value>,
        /// Functions that may be called.
        tools: Vec<Value>,
        /// `auto`, `none`, `required`, or a function by name.
        tool_choice: Value,
        /// False for one call at most.
        parallel_tool_calls: bool,
        /// `text`, `json_object` (with `schema`, if you like), `json_schema`; beyond OpenAI `regex` and `grammar`.
        response_format: Value,
        /// Most tokens of the answer; the context's end if absent.
        max_tokens: usize,
        /// The same by its newer name.
        max_completion_tokens: usize,
        /// Answers to choose from.
        n: usize,
        /// Report probabilities.
        logprobs: bool,
        /// And those of so many other tokens, up to 20.
        top_logprobs: usize,
        /// Send the answer as it comes.
        stream: bool,
        /// With `include_usage`, a last event tells the tokens.
        stream_options: StreamOptions,
        /// Mistral's: put its safety text before the conversation.
        safe_prompt: bool,
    }
}

/// Documented by OpenAI or Mistral, and not served, but with these values.
const UNSUPPORTED: &[Unsupported] = &[
    ("audio", &[], "this model writes text only"),
    ("modalities", &["[\"text\"]"], "this model writes text only"),
    ("functions", &[], "give the functions as tools"),
    ("function_call", &["auto", "none"], "use tool_choice"),
    ("web_search_options", &[], "this server reaches no network"),
    ("reasoning_effort", &["none"], "this model does not reason apart from its answer"),
    ("verbosity", &["medium"], "ask for it in the conversation"),
    ("store", &[], "this endpoint keeps nothing"),
    ("moderation", &[], "this server has no moderation model"),
    ("prompt_mode", &[], "this model does not reason apart from its answer"),
    ("guardrails", &[], "this server has no moderation model"),
    ("document_image_limit", &["*"], ""),
    ("document_page_limit", &["*"], ""),
    ("adapter", &[], "name the adapter as the model"),
    ("service_tier", &["auto", "default"], "there is one tier"),
    // These say who asks, or how an answer may be had sooner; none can change its words.
    ("prediction", &["*"], ""),
    ("user", &["*"], ""),
    ("safety_identifier", &["*"], ""),
    ("prompt_cache_key", &["*"], ""),
    ("prompt_cache_retention", &["*"], ""),
    ("prompt_cache_options", &["*"], ""),
    ("metadata", &["*"], ""),
];

/// A request that has been read.
pub struct ChatRequest {
    /// Who answers.
    pub model: Arc<Model>,
    /// What the engine is asked.
    pub ask: Ask,
    /// The prompt, for those who want to see it.
    pub prompt: Prompt,
    /// Whether and how it is streamed.
    pub stream: Option<StreamOptions>,
    /// The text with which Mistral's answers begin.
    pub prefix: String,
}

/// Answers a conversation.
///
/// # Errors
/// Whatever is wrong with the request.
pub async fn handle(State(app): State<Shared>, caller: Caller, body: Body) -> Result<Response, Refusal> {
    let dialect = caller.dialect;
    let ChatRequest { model, ask, prompt, stream, prefix } = read(&app, dialect, body).await?;
    let answer = app.answer(&caller, &model, &ask)?;
    let head = Head::new("chatcmpl-", &model.name, &ask, || vec![prompt]);
    match stream {
        None => {
            let whole = stream::whole(answer).await?;
            Ok(axum::Json(whole_body(&head, dialect, &prefix, whole)).into_response())
        }
        Some(options) => {
            let writer = ChatWriter::new(head, dialect, options, prefix, ask.choices());
            Ok(stream::respond(answer, writer, app.patience()))
        }
    }
}

/// Reads a request.
///
/// # Errors
/// Whatever is wrong with it.
pub async fn read(app: &Shared, dialect: Dialect, mut body: Body) -> Result<ChatRequest, Refusal> {
    let chat: ChatFields = body.read()?;
    let sampling: SamplingFields = body.read()?;
    let octet: OctetFields = body.read()?;
    body.unsupported(UNSUPPORTED)?;
    let ignored = body.finish()?;
    let model = app.models.get(chat.model.as_deref())?;
    let mut messages = messages::read(chat.messages.unwrap_or_default())?;
    let prefix = messages.last().filter(|last| last.prefix).map_or(String::new(), |last| last.content.clone());
    let prefix = if dialect == Dialect::Mistral { prefix } else { String::new() };
    if chat.safe_prompt == Some(true) {
        messages.insert(0, Message::system(mistral::SAFE_PROMPT));
    }
    let strict = messages::strict(chat.tools.as_deref().unwrap_or_default())?;
    let tools = messages::tools(chat.tools.unwrap_or_default())?;
    let choice = tool_choice(chat.tool_choice.as_ref(), &tools)?;
    let conversation =
        Chat { messages, tools, choice, single: chat.parallel_tool_calls == Some(false), strict, ignored };
    let writer = model.clone();
    let (mut ask, prompt) = text_work(move || writer.chat(conversation)).await?;
    sampling.apply(&mut ask, dialect)?;
    octet.apply(&mut ask)?;
    ask.set_n(chat.n)?;
    let limits = one_of(["max_tokens", "max_completion_tokens"], chat.max_tokens, chat.max_completion_tokens)?;
    ask.ending.max_tokens = max_tokens(limits)?;
    ask.logprobs = logprobs(chat.logprobs, chat.top_logprobs)?;
    if let Some(constraint) = chat.response_format.map(|format| constraint(&format, FIELD)).transpose()?.flatten() {
        if ask.constraint.is_some() {
            return Err(Refusal::field(
                "response_format",
                "a forced tool call or a strict tool and a response_format exclude each other",
            ));
        }
        ask.constraint = Some(constraint);
    }
    let stream = stream_options(chat.stream, chat.stream_options)?;
    Ok(ChatRequest { model, ask, prompt, stream, prefix })
}

/// Options of a streamed answer; `None` for a whole one.
///
/// # Errors
/// Options without a stream.
pub fn stream_options(stream: Option<bool>, options: Option<StreamOptions>) -> Result<Option<StreamOptions>, Refusal> {
    match (stream.unwrap_or(false), options) {
        (true, options) => Ok(Some(options.unwrap_or_default())),
        (false, Some(_)) => Err(Refusal::field("stream_options", "stream_options is only for stream: true")),
        (false, None) => Ok(None),
    }
}

/// A limit on tokens of at least 1.
///
/// # Errors
/// It is 0.
pub fn max_tokens(given: Option<usize>) -> Result<Option<usize>, Refusal> {
    match given {
        Some(0) => Err(Refusal::field("max_tokens", "max_tokens is 0; it has to be 1 or more")),
        given => Ok(given),
    }
}

fn logprobs(asked: Option<bool>, top: Option<usize>) -> Result<Option<usize>, Refusal> {
    match (asked.unwrap_or(false), top) {
        (false, Some(n)) if n > 0 => Err(Refusal::field("top_logprobs", "top_logprobs is only for logprobs: true")),
        (true, Some(n)) if n > MAX_TOP_LOGPROBS => {
            Err(Refusal::field("top_logprobs", format!("top_logprobs is {n}; it has to be 0 to {MAX_TOP_LOGPROBS}")))
        }
        (asked, top) => Ok(asked.then_some(top.unwrap_or(0))),
    }
}

/// Most alternatives of a token.
pub const MAX_TOP_LOGPROBS: usize = 20;
