//! `/v1/completions`: texts to continue, in several forms, and what lm-evaluation-harness needs to score them.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use octet_engine::TextStart;
use octet_tokenizer::Prompt;
use serde_json::{Value, json};

use super::chat::stream_options;
use super::completions_stream::{CompletionWriter, whole_body};
use super::response_format::{FIELD, constraint};
use super::wire::{Head, StreamOptions};
use crate::app::{Shared, text_work};
use crate::ask::Ask;
use crate::caller::Caller;
use crate::fields::{Body, Unsupported, fields};
use crate::models::Model;
use crate::refusal::Refusal;
use crate::settings::{OctetFields, SamplingFields};
use crate::stream;

fields! {
    /// What is to be continued.
    pub struct CompletionFields {
        /// Name or alias of a model; the only one if absent.
        model: String,
        /// A text, several, token ids, or several lists of them.
        prompt: Value,
        /// What comes after the answer: the model fills the middle, if it was trained to.
        suffix: String,
        /// Most tokens of an answer; 16 if absent.
        max_tokens: usize,
        /// Answers to each prompt.
        n: usize,
        /// Report probabilities, and those of so many other tokens, up to 20.
        logprobs: usize,
        /// Give back the prompt before the answer, its probabilities too if those are asked for.
        echo: bool,
        /// Send the answer as it comes.
        stream: bool,
        /// With `include_usage`, a last event tells the tokens.
        stream_options: StreamOptions,
        /// What the answer has to look like, as in a chat.
        response_format: Value,
    }
}

const UNSUPPORTED: &[Unsupported] = &[
    ("best_of", &["1"], "ask for n answers and choose"),
    ("adapter", &[], "name the adapter as the model"),
    ("user", &["*"], ""),
];

/// Tokens of an answer where nobody says how many, as in OpenAI's API.
const MAX_TOKENS: usize = 16;
/// Most prompts of a request.
const MAX_PROMPTS: usize = 1024;

/// Continues one or several prompts.
///
/// # Errors
/// Whatever is wrong with the request.
pub async fn handle(State(app): State<Shared>, caller: Caller, mut body: Body) -> Result<Response, Refusal> {
    let fields: CompletionFields = body.read()?;
    let sampling: SamplingFields = body.read()?;
    let octet: OctetFields = body.read()?;
    body.unsupported(UNSUPPORTED)?;
    body.finish()?;
    let model = app.models.get(fields.model.as_deref())?;
    let is_filled = fields.suffix.is_some();
    let (ids, texts) = prompts(&model, fields.prompt, fields.suffix).await?;
    let mut ask = Ask { prompts: ids, ..Ask::new(Vec::new(), TextStart::Continued) };
    sampling.apply(&mut ask, caller.dialect)?;
    octet.apply(&mut ask)?;
    ask.set_n(fields.n)?;
    ask.echo = fields.echo.unwrap_or(false);
    ask.logprobs = logprobs(fields.logprobs)?;
    ask.constraint = fields.response_format.map(|format| constraint(&format, FIELD)).transpose()?.flatten();
    ask.ending.max_tokens = Some(fields.max_tokens.unwrap_or(MAX_TOKENS));
    if ask.ending.max_tokens == Some(0) && !ask.echo {
        return Err(Refusal::field("max_tokens", "max_tokens is 0, which only makes sense with echo: true"));
    }
    let stream = stream_options(fields.stream, fields.stream_options)?;
    let head = Head::new("cmpl-", &model.name, &ask, || exact(&model, &ask.prompts, &texts, is_filled));
    let texts = if ask.echo { texts } else { vec![String::new(); texts.len()] };
    let answer = app.answer(&caller, &model, &ask)?;
    match stream {
        None => Ok(axum::Json(whole_body(&head, &texts, ask.n, stream::whole(answer).await?)).into_response()),
        Some(options) => {
            let writer = CompletionWriter::new(head, options, texts, ask.n, caller.dialect);
            Ok(stream::respond(answer, writer, app.patience()))
        }
    }
}

/// The prompts for those who want to see them. Where a middle is filled, more goes in than the text that was given.
fn exact(model: &Model, ids: &[Vec<u32>], texts: &[String], is_filled: bool) -> Vec<Prompt> {
    let one = |(ids, text): (&Vec<u32>, &String)| match is_filled {
        true => model.prompt_of(ids.clone()),
        false => Prompt { ids: ids.clone(), text: text.clone() },
    };
    ids.iter().zip(texts).map(one).collect()
}

fn logprobs(asked: Option<usize>) -> Result<Option<usize>, Refusal> {
    match asked {
        Some(n) if n > super::chat::MAX_TOP_LOGPROBS => {
            let most = super::chat::MAX_TOP_LOGPROBS;
            Err(Refusal::field("logprobs", format!("logprobs is {n}; it has to be 0 to {most}")))
        }
        asked => Ok(asked),
    }
}

/// Ids and text of each prompt.
async fn prompts(
    model: &Arc<Model>,
    prompt: Option<Value>,
    suffix: Option<String>,
) -> Result<(Vec<Vec<u32>>, Vec<String>), Refusal> {
    let given = read_prompts(prompt.unwrap_or_else(|| json!("")))?;
    if given.len() > MAX_PROMPTS {
        return Err(Refusal::field("prompt", format!("{} prompts; at most {MAX_PROMPTS} in a request", given.len())));
    }
    let model = model.clone();
    text_work(move || {
        let encode = |prompt| match prompt {
            Given::Text(text) => match &suffix {
                Some(suffix) => Ok((model.fill(&text, suffix)?, text)),
                None => Ok((model.encode(&text), text)),
            },
            Given::Ids(_) if suffix.is_some() => {
                Err(Refusal::field("suffix", "suffix is for prompts of text, not of token ids"))
            }
            Given::Ids(ids) => {
                let text = model.tokenizer.decode(&ids);
                Ok((ids, text))
            }
        };
        Ok(given.into_iter().map(encode).collect::<Result<Vec<_>, _>>()?.into_iter().unzip())
    })
    .await
}

enum Given {
    Text(String),
    Ids(Vec<u32>),
}

fn read_prompts(prompt: Value) -> Result<Vec<Given>, Refusal> {
    let wrong =
        |at: String| Refusal::field(at.clone(), format!("{at} has to be a text, token ids, or a list of either"));
    let ids = |items: &[Value], at: &str| {
        let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| wrong(at.into()));
        items.iter().map(id).collect::<Result<Vec<u32>, _>>()
    };
    match prompt {
        Value::String(text) => Ok(vec![Given::Text(text)]),
        Value::Array(items) if items.is_empty() => Err(Refusal::field("prompt", "prompt is an empty list")),
        Value::Array(items) if items[0].is_number() => Ok(vec![Given::Ids(ids(&items, "prompt")?)]),
        Value::Array(items) => {
            let one = |(index, item): (usize, Value)| match item {
                Value::String(text) => Ok(Given::Text(text)),
                Value::Array(items) => ids(&items, &format!("prompt[{index}]")).map(Given::Ids),
                _ => Err(wrong(format!("prompt[{index}]"))),
            };
            items.into_iter().enumerate().map(one).collect()
        }
        _ => Err(wrong("prompt".into())),
    }
}
